"""The linear map between an environment's units and the network's, one per observation key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["MODES", "LinearNormalizer"]

MODES = ("limits", "gaussian")
STATS = ("min", "max", "mean", "std")

_MIN_RANGE = 1e-4  # narrower than this is a constant, which is shifted to 0 and not scaled


class LinearNormalizer(nn.Module):
    """y = x * scale + offset on the last axis, as in Diffusion Policy (Chi et al. 2023).

    State-dict keys are the published ones, ``params_dict.<field>.{scale,offset}`` and
    ``params_dict.<field>.input_stats.{min,max,mean,std}``. A field may contain dots
    (``params_dict.observation.state.scale``): what follows it is one of these six endings, so the
    name is whatever stands between. The numbers are data of the training set, not parameters: an
    optimizer and an average of weights never see them.

    Args:
        widths: fields that a policy needs and the length of each, identity until fitted or loaded.
            Loading then insists on them; further fields in the file are kept.
    """

    def __init__(self, widths: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self._fields: dict[str, dict[str, torch.Tensor]] = {}
        for field, width in (widths or {}).items():
            self.set_identity(field, width)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, in the order in which they came."""
        return tuple(self._fields)

    def width(self, field: str) -> int:
        """Length of a field; 1 means one scale for elements of any number."""
        return len(self._field(field)["scale"])

    def stats(self, field: str) -> dict[str, torch.Tensor]:
        """What is known of the raw data: `min`, `max`, `mean` and `std`, each (width,)."""
        known = self._field(field)
        return {
            name: known[f"input_stats.{name}"] for name in STATS if f"input_stats.{name}" in known
        }

    def normalize(self, field: str, x: torch.Tensor) -> torch.Tensor:
        """From the environment's units to the network's: (..., width) to (..., width)."""
        numbers = self._fitting(field, x)
        return x * numbers["scale"] + numbers["offset"]

    def unnormalize(self, field: str, x: torch.Tensor) -> torch.Tensor:
        """From the network's units to the environment's: (..., width) to (..., width)."""
        numbers = self._fitting(field, x)
        return (x - numbers["offset"]) / numbers["scale"]

    @torch.no_grad()
    def fit(self, data: Mapping[str, torch.Tensor], mode: str = "limits") -> None:
        """Set one field per entry of `data`, each (..., width) with every sample of the dataset.

        Args:
            data: raw samples; all axes but the last are flattened.
            mode: ``limits`` maps min and max to -1 and 1, ``gaussian`` mean and deviation to 0
                and 1. Elements that never change are mapped to 0.

        Raises:
            ValueError: an unknown mode, fewer than two samples, or samples that are not finite.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
        for field, samples in data.items():
            x = samples.reshape(-1, samples.shape[-1]).float()
            if len(x) < 2:
                raise ValueError(f"field {field!r} needs at least two samples to fit, got {len(x)}")
            low, high, mean, std = x.amin(0), x.amax(0), x.mean(0), x.std(0)
            if mode == "limits":
                constant = high - low < _MIN_RANGE
                scale = 2 / torch.where(constant, 2, high - low)
                offset = torch.where(constant, -low, -1 - scale * low)
            else:
                scale = 1 / torch.where(std < _MIN_RANGE, 1, std)
                offset = -mean * scale
            self.set_field(
                field, scale, offset, dict(zip(STATS, (low, high, mean, std), strict=True))
            )

    def set_identity(self, field: str, width: int = 1) -> None:
        """Leave a field as it is."""
        self.set_field(field, torch.ones(width), torch.zeros(width))

    def set_image(self, field: str) -> None:
        """Map pixels in [0, 1] to [-1, 1], one scale for all of them."""
        self.set_field(field, torch.tensor([2.0]), torch.tensor([-1.0]))

    def set_field(
        self,
        field: str,
        scale: torch.Tensor,
        offset: torch.Tensor,
        stats: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Set a field to given numbers, each (width,).

        Raises:
            ValueError: they are not finite vectors of one length, or a scale is 0.
        """
        numbers = {"scale": scale, "offset": offset}
        numbers |= {f"input_stats.{name}": value for name, value in (stats or {}).items()}
        self._fields[field] = _checked(field, numbers)

    def _field(self, field: str) -> dict[str, torch.Tensor]:
        if field not in self._fields:
            known = ", ".join(self._fields) or "nothing"
            raise ValueError(f"the normalizer has no field {field!r}; it has {known}")
        return self._fields[field]

    def _fitting(self, field: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
        numbers = self._field(field)
        width = len(numbers["scale"])
        if width not in (1, x.shape[-1]):
            raise ValueError(
                f"field {field!r} has {width} elements, got {x.shape[-1]} in {tuple(x.shape)}"
            )
        return numbers

    # Field names with dots cannot be buffers, so the module keeps its tensors in a dict and tells
    # torch how to move, save and load them.

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        for numbers in self._fields.values():
            for name, value in numbers.items():
                numbers[name] = fn(value)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for field, numbers in self._fields.items():
            for name, value in numbers.items():
                destination[f"{prefix}params_dict.{field}.{name}"] = value

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        start = f"{prefix}params_dict."
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in state_dict.items():
            if key.startswith(start):
                field, name = _split(key, start)
                found.setdefault(field, {})[name] = value
        if not found:
            raise ValueError(
                f"the checkpoint has no normalizer: no key starts with {start!r}. Its actions "
                "would be in the network's units, not the robot's; use a checkpoint that was "
                "saved with its normalizer"
            )
        loaded = {field: _checked(field, numbers) for field, numbers in found.items()}
        for field, ours in self._fields.items():
            if field not in loaded:
                raise ValueError(
                    f"the checkpoint's normalizer has no field {field!r}; it has "
                    + ", ".join(loaded)
                )
            given, wanted = len(loaded[field]["scale"]), len(ours["scale"])
            if given not in (1, wanted):
                raise ValueError(
                    f"the checkpoint's normalizer has {given} elements for field {field!r}, the "
                    f"policy has {wanted}"
                )
        like = next((n["scale"] for n in self._fields.values()), torch.empty(0))
        self._fields = {
            field: {name: value.to(like, copy=True) for name, value in numbers.items()}
            for field, numbers in loaded.items()
        }


def _split(key: str, start: str) -> tuple[str, str]:
    """The field and the ending of a state-dict key."""
    for name in ("scale", "offset", *(f"input_stats.{stat}" for stat in STATS)):
        field = key[len(start) :].removesuffix("." + name)
        if field and field != key[len(start) :]:
            return field, name
    raise ValueError(
        f"unexpected normalizer key {key!r}; expected {start}<field>. followed by scale, offset or "
        f"input_stats.{{{','.join(STATS)}}}"
    )


def _checked(field: str, numbers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Refuse numbers that would silently give wrong actions."""
    for name in ("scale", "offset"):
        if name not in numbers:
            raise ValueError(f"the normalizer's field {field!r} has no {name}")
    shape = numbers["scale"].shape
    for name, value in numbers.items():
        if value.ndim != 1 or not len(value) or value.shape != shape:
            raise ValueError(
                f"the normalizer's {field!r} {name} has shape {tuple(value.shape)}; expected a "
                f"vector as long as its scale {tuple(shape)}"
            )
        if not value.isfinite().all():
            raise ValueError(f"the normalizer's {field!r} {name} is not finite: {value.tolist()}")
    if (numbers["scale"] == 0).any():
        raise ValueError(f"the normalizer's {field!r} scale has a 0, which cannot be undone")
    return {name: value.detach().clone() for name, value in numbers.items()}
