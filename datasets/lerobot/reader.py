"""Reads a LeRobot dataset of any version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.lerobot import v1, v2, v3
from fastloop.datasets.lerobot.episodes import demonstration, observed
from fastloop.datasets.lerobot.info import Info

__all__ = ["read"]


@os_errors_are_faults()
def read(
    path: str | Path,
    keys: Iterable[str] | None = None,
    *,
    rename: Mapping[str, str] | None = None,
    on_fault: OnFault = raise_fault,
) -> list[Demonstration]:
    """Read the demonstrations of a LeRobot dataset, version 1, 2.0, 2.1 or 3.0.

    Numbers are in memory; camera images are decoded when they are asked for, uint8 (N, 3, H, W).
    Where no actions were recorded, a demonstration's actions have no elements.

    Args:
        path: its folder, with ``meta`` (or ``meta_data``) inside.
        keys: the observations, by the names that `rename` gives them; by default all features that
            are called ``observation``. Other features can be asked for.
        rename: the dataset's name of a feature to ours, where they differ; for instance
            ``observation.image`` to ``observation.images.top``.
        on_fault: gets the fault of each episode that cannot be read.

    Raises:
        DatasetError: it is no such folder, or its description is damaged; by default also for an
            episode that is.
    """
    root, names = Path(path), dict(rename or {})
    ours = {new: old for old, new in names.items()}
    wanted = None if keys is None else [ours.get(key, key) for key in keys]
    if (root / "meta/info.json").exists():
        info = Info.read(root / "meta/info.json")
        if info.version[0] not in (2, 3):
            version = ".".join(map(str, info.version))
            raise DatasetError(f"{root} is of version {version}; 1, 2 and 3 can be read")
        wanted = observed(info, wanted, str(root))
        episodes = (v3 if info.version[0] == 3 else v2).episodes(root, info, wanted)
    elif (root / "meta_data/info.json").exists():
        info, table = v1.read_info(root)
        wanted = observed(info, wanted, str(root))
        episodes = v1.episodes(root, table)
    else:
        raise DatasetError(
            f"{root} is no LeRobot dataset: it has neither meta/info.json nor meta_data/info.json"
        )
    found = []
    for rows in episodes:
        try:
            found.append(demonstration(info, rows(), wanted, names))
        except DatasetError as fault:
            on_fault(fault)
    return found
