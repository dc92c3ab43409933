"""Normalization statistics of demonstrations: exact, in one pass, by LeRobot's names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fastloop.datasets.demonstration import Demonstration, is_image
from fastloop.datasets.errors import DatasetError

__all__ = ["QUANTILES", "Running", "Statistics", "compute", "read"]

Statistics = dict[str, NDArray[Any]]
"""Of one feature: min, max, mean, std (of the population) and the `QUANTILES` (q01 ...), each of
the shape of a frame, (3, 1, 1) in 0 .. 1 for images; and count (1,), the number of frames."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
BLOCK = 64  # frames decoded at a time
LEVELS = np.arange(256)


def compute(
    demonstrations: Iterable[Demonstration], keys: Iterable[str] | None = None
) -> dict[str, Statistics]:
    """The statistics of observations and of ``action`` over all frames.

    Quantiles are those of all numbers, as `numpy.quantile` has them; LeRobot averages estimates of
    the episodes' quantiles instead, which is another number.

    Args:
        demonstrations: gone through once; images are decoded in blocks.
        keys: of observations; all when None.

    Raises:
        DatasetError: there is no demonstration, one lacks an observation, or a file is damaged.
    """
    wanted = None if keys is None else list(keys)
    running: dict[str, Running] = {}
    for demonstration in demonstrations:
        frames = dict(demonstration.observations)
        if missing := [key for key in wanted or () if key not in frames]:
            raise DatasetError(f"a demonstration has no {missing}; it has {sorted(frames)}")
        chosen = {key: frames[key] for key in (frames if wanted is None else wanted)}
        for key, values in (chosen | {"action": demonstration.actions}).items():
            running.setdefault(key, Running()).add(values)
    if not running:
        raise DatasetError("there is no demonstration to take the statistics of")
    return {key: one.statistics() for key, one in running.items()}


class Running:
    """The statistics of one feature, whose frames come a stretch at a time.

    Images are counted by their values; other numbers are kept, as they are in memory anyway.
    """

    def __init__(self) -> None:
        self.kept: list[NDArray[Any]] = []
        self.histogram = np.zeros((3, 256), np.int64)  # channel by value
        self.count = 0

    def add(self, frames: Any) -> None:
        """Take in frames (N, ...), uint8 (N, 3, H, W) for images."""
        self.count += len(frames)
        if not is_image(frames):
            self.kept.append(np.asarray(frames))
            return
        for start in range(0, len(frames), BLOCK):
            block = frames[start : start + BLOCK]
            for channel in range(3):
                self.histogram[channel] += np.bincount(block[:, channel].ravel(), minlength=256)

    def merge(self, other: Running) -> None:
        """Take in what another has seen."""
        self.kept += other.kept
        self.histogram += other.histogram
        self.count += other.count

    def statistics(self) -> Statistics:
        """Of everything so far; at least one frame."""
        found = self._of_numbers() if self.kept else self._of_images()
        return found | {"count": np.array([self.count])}

    def _of_numbers(self) -> Statistics:
        values = np.concatenate(self.kept)
        exact = values.astype(np.float64)
        quantiles = np.quantile(exact, [*QUANTILES.values()], axis=0)
        found = {
            "min": values.min(axis=0),
            "max": values.max(axis=0),
            "mean": exact.mean(axis=0),
            "std": exact.std(axis=0),
            **dict(zip(QUANTILES, quantiles, strict=True)),
        }
        return {name: np.atleast_1d(value) for name, value in found.items()}

    def _of_images(self) -> Statistics:
        pixels = self.histogram.sum(axis=1)
        seen = self.histogram > 0
        mean = self.histogram @ LEVELS / pixels
        deviation = LEVELS - mean[:, None]
        found = {
            "min": seen.argmax(axis=1),
            "max": 255 - seen[:, ::-1].argmax(axis=1),
            "mean": mean,
            "std": np.sqrt((self.histogram * deviation**2).sum(axis=1) / pixels),
            **{name: self._quantile(share) for name, share in QUANTILES.items()},
        }
        return {name: (value / 255).reshape(3, 1, 1) for name, value in found.items()}

    def _quantile(self, share: float) -> NDArray[np.float64]:
        """Between the two values in order that it falls between, like `numpy.quantile`."""
        reached = self.histogram.cumsum(axis=1)
        place = share * (int(reached[0, -1]) - 1)
        low, high = (
            np.array([np.searchsorted(row, at, side="right") for row in reached], np.float64)
            for at in (np.floor(place), np.ceil(place))
        )
        value: NDArray[np.float64] = low + (high - low) * (place - np.floor(place))
        return value


def read(path: str | Path) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Read the statistics that LeRobot writes: ``stats.json``, or version 1's safetensors.

    Returns:
        feature to name (``min``, ``mean`` ...) to numbers.

    Raises:
        DatasetError: the file does not exist, is damaged, or holds anything but numbers.
    """
    path = Path(path)
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    try:
        if path.suffix == ".safetensors":
            named = load_file(path)
            if strange := [name for name in named if "/" not in name]:
                raise ValueError(f"{strange[0]!r} is not called <feature>/<statistic>")
            flat: Mapping[tuple[str, str], Any] = {
                (name.rpartition("/")[0], name.rpartition("/")[2]): v for name, v in named.items()
            }
        else:
            facts = json.loads(path.read_text(encoding="utf-8"))
            flat = {(key, name): v for key, of in facts.items() for name, v in of.items()}
        for (key, name), value in flat.items():
            numbers = np.asarray(value)
            if not (np.issubdtype(numbers.dtype, np.number) or numbers.dtype == np.bool_):
                raise ValueError(f"{name} of {key!r} is not of numbers")
            found.setdefault(key, {})[name] = numbers.astype(np.float64)
    except (
        AttributeError, OSError, OverflowError, RecursionError, SafetensorError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        raise DatasetError(f"{path} holds no statistics: {error}") from error
    return found
