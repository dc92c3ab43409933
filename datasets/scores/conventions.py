"""How published tables of open-loop planning on nuScenes were made, and their faults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["CONVENTIONS", "DEFINITION", "FAULTS", "HORIZONS", "Convention", "checked"]

HORIZONS: Mapping[str, int] = MappingProxyType({"1s": 2, "2s": 4, "3s": 6})
"""Name of a horizon to its number of waypoints at 2 Hz."""

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "masked_as_zero": (
            "Missing futures count as zero error and no collision; mended, they are left out."
        ),
        "filtered_as_free": (
            "Steps at which the recorded vehicle itself touches something count as no collision; "
            "mended, they are left out."
        ),
        "vehicles_only": "People are not looked at; mended, vehicles and people are.",
        "late_objects_invisible": (
            "Objects that were not known at the present time, or not seen well, are never hit; "
            "mended, whatever is annotated at the step itself is."
        ),
        "frame_offset": (
            "Objects are drawn about the rear axle and plans about the lidar, 0.94 m ahead of it; "
            "mended, both are about the lidar."
        ),
        "resampled_grid": (
            "Each step's objects are drawn about the vehicle's pose at that step and the grid is "
            "sampled to the present pose as if the vehicle drove an arc; mended, objects are where "
            "they are. It makes a difference only with cells."
        ),
        "fixed_heading": "The planned box never turns; mended, it points along its path.",
        "heading_reset": (
            "The planned box points as at present wherever a step is shorter than 1 m, even after "
            "a turn; mended, it keeps its last heading."
        ),
        "cells": (
            "Overlap is that of cells, of corners rounded and waypoints truncated: up to a cell "
            "off; mended, it is that of the boxes."
        ),
        "border_clipping": (
            "Cells beyond the grid are looked up at its border; mended, they are free. "
            "Boxes know no border: without cells it makes no difference."
        ),
        "point_cell": (
            "The cell looked up under a waypoint is half a cell off, or (VAD) 25 m; mended, it is "
            "the right one. It concerns the collisions of points alone."
        ),
    }
)
"""Switches: what a reference does wrong, and what is done where the switch is off."""

DEFINITION = frozenset(
    {"cells", "filtered_as_free", "fixed_heading", "heading_reset", "vehicles_only"}
)
"""Those of `FAULTS` that belong to what a convention says it counts: without them its figure is no
longer comparable with published ones. The others are slips of its code."""


@dataclass(frozen=True)
class Convention:
    """One way to make a table.

    Attributes:
        pooling: how steps make a horizon of K waypoints: ``instant`` takes the K-th, ``mean`` the
            mean of the first K; ``any`` is that mean for L2, and for collisions whether one of the
            first K collides.
        faults: the switches that reproduce it.
        whole: samples count only if all their futures exist.
        ahead_m: from the point that plans are of to the middle of the vehicle's box.
        cell_m: of its grid, which reaches 50 m to each side.
        rows, columns: the axis along which indices of the grid grow: 0 forward, 1 left; and sign.
        row_shift: cells by which its lookup is displaced along the rows.
        point_from_m: from the grid's edge to its origin, as its lookup of points has it.
    """

    pooling: Literal["instant", "mean", "any"]
    faults: frozenset[str]
    whole: bool = True
    ahead_m: float = 0.5
    cell_m: float = 0.5
    rows: tuple[int, int] = (0, 1)
    columns: tuple[int, int] = (1, 1)
    row_shift: int = 0
    point_from_m: float = 49.75


_COMMON = frozenset({"filtered_as_free", "cells", "border_clipping", "point_cell"})

CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        "uniad": Convention(
            "instant",
            _COMMON | {"masked_as_zero", "vehicles_only", "fixed_heading"},
            whole=False,
            columns=(1, -1),
        ),
        "stp3": Convention(
            "mean",
            _COMMON | {"frame_offset", "resampled_grid", "late_objects_invisible", "fixed_heading"},
        ),
        "vad": Convention(
            "mean",
            _COMMON | {"late_objects_invisible", "fixed_heading"},
            rows=(0, -1),
            columns=(1, -1),
            row_shift=1,
            point_from_m=24.875,
        ),
        "omnidrive": Convention(
            "any",
            _COMMON | {"late_objects_invisible", "vehicles_only", "heading_reset"},
            ahead_m=0.5 + 0.985793,  # its plans are of the rear axle; the others' of the lidar
            cell_m=0.1,
            rows=(1, 1),
            columns=(0, 1),
            point_from_m=49.95,
        ),
        "exact": Convention("any", frozenset()),
    }
)
"""UniAD @dd161b22, ST-P3 @6b11e132, VAD @1688c4b1, OmniDrive @807c86a0 (after BEV-Planner);
(UniAD's boxes are those of its first release, which its published figures come from);
and ``exact``, nobody's: whether the vehicle's box has hit anybody's by then."""


def checked(convention: str, faults: Collection[str]) -> tuple[Convention, frozenset[str]]:
    """The convention of that name and the switches; raises ValueError for names unknown."""
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; have: {', '.join(CONVENTIONS)}")
    if isinstance(faults, str) or (unknown := set(faults) - set(FAULTS)):
        given = repr(faults) if isinstance(faults, str) else ", ".join(map(repr, sorted(unknown)))
        raise ValueError(f"unknown faults {given}; have: {', '.join(FAULTS)}, as a collection")
    return CONVENTIONS[convention], frozenset(faults)
