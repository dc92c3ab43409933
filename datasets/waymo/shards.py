"""Where each frame is in a folder of shards, whose frames are shuffled."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastloop.datasets import tfrecord
from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.waymo import frames
from fastloop.datasets.waymo.frames import FUTURE, Frame

__all__ = ["FrameIndex", "Place", "index"]

SCHEMA = 1


@dataclass(frozen=True)
class Place:
    """Where one frame is, and what is known of it without reading it.

    Attributes:
        shard: its file.
        offset, length: of its record, in bytes.
        name: ``<sequence>-<index>``.
        sequence, index: the drive, and the place in it at 10 Hz.
        raters: how many trajectories of it people rated.
        short: how many of these have fewer than 20 points.
        logged: whether what the vehicle did next is there.
    """

    shard: Path
    offset: int
    length: int
    name: str
    sequence: str
    index: int
    raters: int
    short: int
    logged: bool

    def read(self, *, verify: bool = True) -> Frame:
        """The frame; arguments and faults as in `frames.read`."""
        return frames.read(self.shard, self.offset, self.length, verify=verify)


class FrameIndex:
    """Frames by name, and sequences in order.

    Attributes:
        places: frame name to place, in the order of the shards.
        sequences: sequence to its places, rising in time. Few have all frames of the drive.
    """

    def __init__(self, places: Iterable[Place], on_fault: OnFault = raise_fault) -> None:
        """Two frames of one name are a fault, and the first is kept."""
        self.places: dict[str, Place] = {}
        self.sequences: dict[str, list[Place]] = {}
        for place in places:
            first = self.places.setdefault(place.name, place)
            if first is place:
                self.sequences.setdefault(place.sequence, []).append(place)
            else:
                on_fault(
                    DatasetError(
                        f"{place.shard} at byte {place.offset}: frame {place.name} is already in "
                        f"{first.shard} at byte {first.offset}"
                    )
                )
        for drive in self.sequences.values():
            drive.sort(key=lambda place: place.index)


def index(
    root: str | Path,
    pattern: str = "*.tfrecord*",
    *,
    cache: str | Path | None = None,
    on_fault: OnFault = raise_fault,
    progress: Callable[[int, int], None] | None = None,
) -> FrameIndex:
    """Find all frames under `root`, looking at a few kilobytes of each.

    JPEGs are passed over, hence payloads are not checked until they are read.

    Args:
        root: a folder of shards, or one file.
        pattern: of the file names in the folder.
        cache: folder that keeps what was found, a small file for each shard, so that it is looked
            for once, and from where it stopped. A shard of another size or time is looked at again.
        on_fault: told of each record that is no frame, and of each name that occurs twice.
        progress: told how many of how many shards are done.

    Raises:
        DatasetError: without shards, where the cache cannot be written, and by `raise_fault`.
    """
    shards = _shards(Path(root), pattern)
    places = []
    for done, shard in enumerate(shards, 1):
        found, faults = _cached(shard, Path(cache)) if cache is not None else _look(shard)
        for fault in faults:
            on_fault(DatasetError(fault))
        places += found
        if progress is not None:
            progress(done, len(shards))
    return FrameIndex(places, on_fault)


@os_errors_are_faults()
def _shards(root: Path, pattern: str) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DatasetError(f"{root} does not exist; expected a folder of TFRecord shards, or one")
    # A shard under a `.partial` or `.gstmp` name is still on its way.
    shards = sorted(
        path
        for path in root.iterdir()
        if fnmatch.fnmatchcase(path.name, pattern)
        and not path.name.endswith((".partial", ".gstmp"))
        and path.is_file()
    )
    if not shards:
        there = sorted(path.name for path in root.iterdir())[:5]
        raise DatasetError(f"{root} has no file {pattern!r}; it holds {', '.join(there) or '-'}")
    return shards


def _look(shard: Path) -> tuple[list[Place], list[str]]:
    """The frames of one shard, and what is wrong with it."""
    places: list[Place] = []
    faults: list[DatasetError] = []
    for offset, payload in tfrecord.records(shard, verify=False, on_fault=faults.append):
        try:
            frame = frames.parse(payload, shard, offset)
        except DatasetError as fault:
            faults.append(fault)
            continue
        places.append(
            Place(
                shard=shard,
                offset=offset,
                length=len(payload),
                name=frame.name,
                sequence=frame.sequence,
                index=frame.index,
                raters=len(frame.raters),
                short=sum(len(rater) < FUTURE for rater in frame.raters),
                logged=frame.future is not None,
            )
        )
    return places, [str(fault) for fault in faults]


COLUMNS = {
    "offset": int, "length": int, "name": str, "sequence": str, "index": int, "raters": int,
    "short": int, "logged": bool,
}  # fmt: skip


def _cached(shard: Path, cache: Path) -> tuple[list[Place], list[str]]:
    """As `_look`, from the cache where it is of this very file, and into it where it is not."""
    path = cache / f"{shard.name}.frames.json"
    stat = shard.stat()
    stamp = [SCHEMA, stat.st_size, stat.st_mtime_ns]
    try:
        known = json.loads(path.read_text("utf-8"))
        if known["stamp"] == stamp:
            return _places(shard, known["frames"]), [str(fault) for fault in known["faults"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # none yet, or a damaged one: it is made anew
    places, faults = _look(shard)
    rows = [[getattr(place, column) for column in COLUMNS] for place in places]
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"stamp": stamp, "frames": rows, "faults": faults}), "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DatasetError(
            f"the index of {shard} cannot be kept as {path} ({error.strerror}); "
            "cache= names a folder that can be written"
        ) from error
    return places, faults


def _places(shard: Path, rows: Any) -> list[Place]:
    """Places of the rows of a cache file; raises ValueError or TypeError where they are none."""
    places = []
    for row in rows:
        values = dict(zip(COLUMNS, row, strict=True))
        if any(type(values[column]) is not kind for column, kind in COLUMNS.items()):
            raise ValueError(f"no row of an index: {row}")
        places.append(Place(shard=shard, **values))
    return places
