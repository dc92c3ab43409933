"""Reads bags: rosbag2 folders and their files, sqlite3 or MCAP, and MCAP files of others.

A folder's files are read one by one, in the order of its metadata: what the metadata say of a topic
need not be what its files say, and ``rosbags`` then finds nothing in the whole. It reads sqlite3;
``mcap`` reads MCAP, and also tells when messages were sent and what there is in files whose end was
never written.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from fastloop.deploy.transport.base import Sample
from fastloop.extras import require

__all__ = ["BagError", "read_bag"]

_STORAGES = (".mcap", ".db3")
_LARGEST = 2**30  # bytes of one message, decompressed


class BagError(ValueError):
    """A bag that cannot be read; the text says why."""


def read_bag(path: str | Path, topics: Collection[str] | None = None) -> Iterator[Sample]:
    """The messages of a bag, in the order of their arrival then.

    Args:
        path: a folder, or a ``.mcap`` or ``.db3`` file; each may be compressed (``.zstd``).
        topics: those wanted; None for all.

    Yields:
        samples: received when they were recorded; stamped where the bag knows when they were sent.
            Messages that are no CDR are left out.

    Raises:
        BagError: it is none, or is damaged; what comes before the damage has been yielded.
    """
    path = Path(path)
    files, per_message = _files(path)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for file in files:
            if file.suffix == ".zstd":
                file = _decompressed(file, folder)
            for sample in _read_file(file, topics):
                if per_message:
                    data = _decompress(sample.data, file)
                    yield Sample(
                        sample.topic, sample.type, data, sample.stamp_ns, sample.received_ns
                    )
                else:
                    yield sample


def _files(path: Path) -> tuple[list[Path], bool]:
    """The files of a bag, and whether each of their messages is compressed by itself."""
    if not path.exists():
        raise BagError(f"there is no bag at {path}")
    if path.is_file():
        if not {path.suffix, path.with_suffix("").suffix} & set(_STORAGES):
            raise BagError(f"{path} is no bag: a folder, or a file that ends in .mcap or .db3")
        return [path], False
    metadata = path / "metadata.yaml"
    if not metadata.exists():  # written at the end of a recording
        found = sorted((file for file in path.iterdir() if file.suffix in _STORAGES), key=_number)
        if not found:
            raise BagError(f"{path} holds no metadata.yaml, and no .mcap or .db3 file")
        return found, False
    try:
        told = yaml.safe_load(metadata.read_text())["rosbag2_bagfile_information"]
        names = [Path(name).name for name in told["relative_file_paths"]]
        mode = str(told.get("compression_mode") or "none").lower()
        form = told.get("compression_format")
    except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BagError(f"{metadata} is no metadata of rosbag2: {error!r}") from error
    if mode != "none" and form != "zstd":
        raise BagError(f"{path} is compressed as {form!r}; only zstd can be read")
    if missing := [name for name in names if not (path / name).exists()]:
        raise BagError(f"{path} lacks {', '.join(missing)}, which its metadata name")
    return [path / name for name in names], mode == "message"


def _number(file: Path) -> tuple[int, str]:
    """A sort key by which bag_10 comes after bag_9."""
    number = re.search(r"(\d+)$", file.stem)
    return int(number[1]) if number else 0, file.name


def _read_file(file: Path, topics: Collection[str] | None) -> Iterator[Sample]:
    return (_by_mcap if file.suffix == ".mcap" else _by_rosbags)(file, topics)


def _by_rosbags(file: Path, topics: Collection[str] | None) -> Iterator[Sample]:
    reader = require("rosbags.rosbag2", extra="ros").Reader
    try:
        with reader(file) as bag:
            wanted = [c for c in bag.connections if topics is None or c.topic in topics]
            if not wanted:
                return
            for connection, time, data in bag.messages(connections=wanted):
                yield Sample(connection.topic, connection.msgtype, bytes(data), None, time)
    except Exception as error:  # the parsers of bytes let through whatever they raise
        raise BagError(f"{file} cannot be read to its end: {error!r}") from error


def _by_mcap(file: Path, topics: Collection[str] | None) -> Iterator[Sample]:
    mcap = require("mcap.reader", extra="ros")
    wanted = None if topics is None else list(topics)
    try:
        with file.open("rb") as stream:
            reader = mcap.make_reader(stream)
            try:
                whole = reader.get_summary() is not None
            except Exception:  # of an end that is not there
                whole = False
            if not whole:
                stream.seek(0)
                reader = mcap.NonSeekingReader(stream)
            found = reader.iter_messages(topics=wanted, log_time_order=whole)
            for schema, channel, message in found:
                if channel.message_encoding == "cdr" and schema is not None:
                    yield Sample(
                        channel.topic, schema.name, message.data, message.publish_time or None,
                        message.log_time,
                    )  # fmt: skip
    except Exception as error:  # the parsers of bytes let through whatever they raise
        raise BagError(f"{file} cannot be read to its end: {error!r}") from error


def _decompressed(file: Path, folder: Path) -> Path:
    """`file` without its last ending, in `folder`."""
    zstandard: Any = require("zstandard", extra="ros")
    plain = folder / file.stem
    try:
        with file.open("rb") as packed, plain.open("wb") as out:
            zstandard.ZstdDecompressor().copy_stream(packed, out)
    except (zstandard.ZstdError, OSError) as error:
        raise BagError(f"{file} cannot be decompressed: {error}") from error
    return plain


def _decompress(data: bytes, file: Path) -> bytes:
    zstandard: Any = require("zstandard", extra="ros")
    try:
        plain: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=_LARGEST)
    except zstandard.ZstdError as error:
        raise BagError(f"{file} has a message that cannot be decompressed: {error}") from error
    return plain
