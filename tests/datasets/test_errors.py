"""What the system refuses is a fault of every reader, and names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastloop.datasets import (
    adroit_demos,
    eth_ucy,
    human_motion,
    lerobot,
    pickles,
    predictions,
    replay_buffer,
    robomimic,
)
from fastloop.datasets.errors import DatasetError, os_errors_are_faults
from fastloop.datasets.logs import argoverse2, comma2k19, commonroad, lyft, scenarionet
from fastloop.datasets.logs import nuscenes as nuscenes_logs
from fastloop.datasets.logs import open as opening
from fastloop.datasets.nuscenes import maps, tables
from fastloop.datasets.waymo import shards, submission

READERS: dict[str, Callable[[Path], Any]] = {
    "adroit": adroit_demos.read,
    "argoverse2": lambda path: list(argoverse2.read(path)),
    "comma2k19": lambda path: list(comma2k19.read(path)),
    "commonroad": lambda path: list(commonroad.read(path)),
    "eth_ucy": lambda path: eth_ucy.split(path, "eth", "train"),
    "h36m": human_motion.h36m,
    "amass": human_motion.amass,
    "lerobot": lerobot.read,
    "lyft": lambda path: list(lyft.read(path)),
    "nuscenes": lambda path: tables.read_tables(path, "v1.0-mini"),
    "nuscenes, logs": lambda path: list(nuscenes_logs.read(path)),
    "nuscenes, maps": lambda path: maps.open_map(path, "boston-seaport"),
    "open": opening.open_logs,
    "pickles": pickles.load,
    "predictions": lambda path: predictions.read(path.with_suffix(".json"), steps=6),
    "replay_buffer": replay_buffer.read,
    "robomimic": robomimic.read,
    "scenarionet": lambda path: list(scenarionet.read(path)),
    "submission": submission.read,
    "wod_e2e": shards.index,
}


@pytest.mark.parametrize("name", READERS)
def test_a_path_that_cannot_be_looked_at_is_a_fault(name: str, tmp_path: Path) -> None:
    # The name is longer than file systems have them; looking for it is refused for all users.
    with pytest.raises(DatasetError, match=r"a{250}"):
        READERS[name](tmp_path / ("a" * 300))


def test_the_file_is_named(tmp_path: Path) -> None:
    message = r"gone cannot be read \(No such file"
    with pytest.raises(DatasetError, match=message), os_errors_are_faults():
        (tmp_path / "gone").read_bytes()
