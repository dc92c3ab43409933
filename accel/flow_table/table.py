"""The cache: futures with their place in the flow's base space and what the flow's Jacobian is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch

from fastloop.accel.flow_table.fast import Nearest
from fastloop.accel.flow_table.mixture import features_of

__all__ = ["FlowTable"]


@dataclass(frozen=True)
class FlowTable:
    """K futures of an unconditional flow f (CacheFlow, Maeda et al. 2025, arXiv 2505.13140).

    With p(x | c) = q(z | c) / |det J_f(z)| everything but q is the same for all conditions c.

    Attributes:
        z: (K, d) f^-1 of the futures.
        features: (K, 2 d + 1) of `features_of(z)`.
        log_det: (K,) log |det J_f(z)|, with whatever else is constant in the density of a future.
        log_reference: (K,) log-density, up to a constant, with which the futures themselves are
            spread over the base space.
        futures: (K, T, F) in the agent's frame.
        feasible: (K,) bool, which of them may be drawn; all of them are weighed.
        metric: (d,) how far a future moves with each coordinate of z, by which neighbors are found.
    """

    z: torch.Tensor
    features: torch.Tensor
    log_det: torch.Tensor
    log_reference: torch.Tensor
    futures: torch.Tensor
    feasible: torch.Tensor
    metric: torch.Tensor

    @classmethod
    def of(
        cls,
        z: torch.Tensor,
        log_det: torch.Tensor,
        log_reference: torch.Tensor,
        futures: torch.Tensor,
        feasible: torch.Tensor | None = None,
        metric: torch.Tensor | None = None,
    ) -> FlowTable:
        """The table of some futures; all are feasible, and all coordinates weigh the same as in
        the paper, where nothing else is said.

        Raises:
            ValueError: for no futures, for parts of different lengths, for numbers that are not
                finite, and when nothing is feasible.
        """
        if feasible is None:
            feasible = torch.ones(len(z), dtype=torch.bool, device=z.device)
        metric = z.new_ones(z.shape[-1]) if metric is None else metric
        parts = {"z": z, "log_det": log_det, "log_reference": log_reference, "futures": futures}
        lengths = {name: len(part) for name, part in parts.items()} | {"feasible": len(feasible)}
        if not len(z):
            raise ValueError("the table is empty: build it from at least one future")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the parts of a table are of one length, got {lengths}")
        if z.ndim != 2 or futures.ndim != 3 or log_det.ndim != 1 or log_reference.ndim != 1:
            shapes = {name: tuple(part.shape) for name, part in parts.items()}
            raise ValueError(
                f"a table holds z (K, d), log_det (K,), log_reference (K,) and futures (K, T, F), "
                f"got {shapes}"
            )
        if metric.shape != z.shape[1:]:
            raise ValueError(
                f"a metric has a number a coordinate, {z.shape[1]}, got {tuple(metric.shape)}"
            )
        parts["metric"] = metric
        if strange := [name for name, part in parts.items() if not part.isfinite().all()]:
            raise ValueError(f"the table's {', '.join(strange)} must be finite numbers")
        if not feasible.any():
            raise ValueError("no future of the table is feasible, so none can be drawn")
        features = features_of(z).T.contiguous().T  # products want futures innermost
        return cls(z, features, log_det, log_reference, futures, feasible, metric)

    @cached_property
    def nearest(self) -> Nearest:
        """Finds the feasible future next to a point whose coordinates are multiplied by the metric;
        prepared when it is first asked for."""
        return Nearest(self.z * self.metric, self.feasible)

    def __len__(self) -> int:
        return len(self.z)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> FlowTable:
        """A copy elsewhere, or in another precision."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return FlowTable(
            **{
                name: part.to(device, dtype if part.is_floating_point() else None)
                for name, part in parts.items()
            }
        )
