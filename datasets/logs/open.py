"""Opens recorded drives of any format that there is a reader for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

from fastloop.datasets.driving_log import DrivingLog
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.logs import argoverse2, scenarionet

__all__ = ["FORMATS", "format_of", "open_logs"]


def _holds(*patterns: str) -> Callable[[Path], bool]:
    """Whether a path is, or is a folder that holds, something called like one of `patterns`."""
    return lambda path: any(
        path.match(pattern) or (path.is_dir() and next(path.glob(pattern), None) is not None)
        for pattern in patterns
    )


def _is_scenarionet(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".pkl"
    return (path / scenarionet.SUMMARY).exists() or any(
        map(scenarionet.is_scenario_file, path.iterdir())
    )


def _is_argoverse2(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".parquet"
    return argoverse2.is_log(path) or any(map(argoverse2.is_log, path.iterdir()))


FORMATS: Mapping[str, tuple[str, Callable[[Path], bool]]] = {
    "scenarionet": (
        f"a scenario sd_*.pkl, or a folder of such or with {scenarionet.SUMMARY}",
        _is_scenarionet,
    ),
    "waymo_motion": ("a *.tfrecord* of scenarios, or a folder of such", _holds("*.tfrecord*")),
    "argoverse2": (
        "a folder with scenario_<id>.parquet or annotations.feather, or a folder of such",
        _is_argoverse2,
    ),
    "nuscenes": ("a root with v1.0-*/scene.json", _holds("v1.0-*/scene.json")),
    "lyft": ("a *.zarr store, a zip of one, or a folder of such", _holds("*.zarr", "*.zarr.zip")),
    "comma2k19": (
        "a segment with global_pose/, a route of such, or a folder of routes",
        _holds("global_pose", "*/global_pose", "*/*/global_pose"),
    ),
    "commonroad": ("an *.xml, or a folder of such", _holds("*.xml")),
}
"""Modules of this package, what each reads, and how a path of it is known."""


@os_errors_are_faults()
def format_of(path: str | Path) -> str:
    """Which of `FORMATS` a file or folder is of, by the names in it; nothing is opened.

    Raises:
        DatasetError: where it does not exist or is of none, with what there is.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path} does not exist")
    for name, (_what, is_one) in FORMATS.items():
        if is_one(path):
            return name
    formats = "".join(f"\n    {name}: {what}" for name, (what, _) in FORMATS.items())
    raise DatasetError(f"{path} holds no recorded drives of a known format:{formats}")


def open_logs(path: str | Path, *, on_fault: OnFault = raise_fault) -> Iterator[DrivingLog]:
    """The drives in a file or folder, read one after the other by the reader of its format.

    Args:
        path: as `FORMATS` tells.
        on_fault: told of each drive that cannot be read, which is then passed over.

    Raises:
        DatasetError: at once as `format_of`; later by `raise_fault`.
        MissingExtraError: where the format needs a package that is not installed.
    """
    reader = import_module(f"fastloop.datasets.logs.{format_of(path)}")
    logs: Iterator[DrivingLog] = reader.read(path, on_fault=on_fault)
    return logs
