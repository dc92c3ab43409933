"""What is handed in to the Waymo end-to-end driving challenge, written and read."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloop.datasets.errors import DatasetError, OnFault, os_errors_are_faults, raise_fault
from fastloop.datasets.waymo.protos import messages, parse, text

__all__ = ["Submission", "check_metadata", "read", "read_frames", "write"]

MESSAGE = "waymo.open_dataset.E2EDChallengeSubmission"
POINTS = 20
LARGEST = 64 << 20  # bytes, unpacked: some 200 times the 1,505 frames of the challenge


@dataclass(frozen=True)
class Submission:
    """Predictions and who made them; ``write(path, it.predictions, **it.metadata)`` repeats it.

    Attributes:
        predictions: frame name to (20, 2) m, x forward and y left of the present rear axle, at
            t + 0.25 s to t + 5 s.
        metadata: by the argument names of `write`.
    """

    predictions: Mapping[str, NDArray[np.float64]]
    metadata: Mapping[str, Any]


def write(
    path: str | Path,
    predictions: Mapping[str, ArrayLike],
    *,
    account_name: str,
    unique_method_name: str,
    uses_public_model_pretraining: bool,
    num_model_parameters: str,
    public_model_names: Sequence[str] = (),
    authors: Sequence[str] = (),
    affiliation: str = "",
    description: str = "",
    method_link: str = "",
    frames: Collection[str] | None = None,
    shards: int = 1,
) -> Path:
    """Write the file to upload, whole or not at all; the same predictions give the same bytes.

    Args:
        path: ends in ``.tar.gz``.
        predictions: frame name to (20, 2) m, as in `Submission`; stored as float32.
        account_name: the email address registered at waymo.com/open.
        unique_method_name: short; the leaderboard shows the latest result of each name.
        uses_public_model_pretraining: whether the model began from a public language or vision
            model; then name them in `public_model_names`.
        num_model_parameters: a whole number with a suffix, for instance ``200K`` or ``7B``.
        public_model_names, authors, affiliation, description, method_link: as they shall be shown.
        frames: the frames that the challenge asks for (see `read_frames`); None: not checked.
        shards: parts to split the predictions into.

    Raises:
        DatasetError: something is missing or malformed; nothing was written.
    """
    path = Path(path)
    if not path.name.endswith(".tar.gz"):
        raise DatasetError(f"{path}: a submission is a .tar.gz")
    metadata = {
        "account_name": account_name,
        "unique_method_name": unique_method_name,
        "uses_public_model_pretraining": uses_public_model_pretraining,
        "num_model_parameters": num_model_parameters,
        "public_model_names": public_model_names,
        "authors": authors,
        "affiliation": affiliation,
        "description": description,
        "method_link": method_link,
    }
    check_metadata(metadata)
    checked = {name: _trajectory(name, points) for name, points in predictions.items()}
    _check_frames(checked, frames)
    if not 1 <= shards <= len(checked):
        raise DatasetError(f"{shards} shards of {len(checked)} predictions, expected 1 or more")

    partial = path.with_name(path.name + ".partial")
    try:
        with (
            partial.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w") as archive,
        ):
            for number, part in enumerate(_parts(checked, metadata, shards)):
                entry = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/part{number}")
                entry.size = len(part)
                archive.addfile(entry, io.BytesIO(part))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@os_errors_are_faults()
def read(path: str | Path, *, on_fault: OnFault = raise_fault) -> Submission:
    """Read a submission: its ``.tar.gz`` or ``.tar``, a folder of parts, or one part.

    Archives are read in memory; nothing is unpacked to disk, whatever its path says.

    Args:
        path: the file or folder.
        on_fault: told of a prediction that is malformed or of a frame that has two; it is left out.

    Raises:
        DatasetError: there is no such file, it is no submission, or it holds no prediction.
    """
    path = Path(path)
    predictions: dict[str, NDArray[np.float64]] = {}
    metadata: dict[str, Any] | None = None
    twice = set()
    for where, payload in _payloads(path):
        message = parse(MESSAGE, payload, where=where)
        said = _metadata(message, where)
        if metadata not in (None, said):
            on_fault(DatasetError(f"{where}: its metadata differ from those of the first part"))
        metadata = metadata or said
        for number, row in enumerate(message.predictions):
            try:
                name = text(row, "frame_name", where=f"prediction {number}")
                if not name:
                    raise DatasetError(f"prediction {number} has no frame name")
                if name in twice or predictions.pop(name, None) is not None:
                    twice.add(name)
                    raise DatasetError(f"frame {name} is predicted twice")
                if len(row.trajectory.pos_x) != len(row.trajectory.pos_y):
                    raise DatasetError(f"frame {name}: not as many x as y")
                points = np.stack([row.trajectory.pos_x, row.trajectory.pos_y], axis=-1)
                predictions[name] = _trajectory(name, points)
            except DatasetError as fault:
                on_fault(DatasetError(f"{where}: {fault}"))
    if not predictions:
        raise DatasetError(f"{path} holds no prediction")
    return Submission(predictions, metadata or {})


def read_frames(path: str | Path) -> list[str]:
    """The frames that the challenge asks for, from either file that comes with the test split.

    Args:
        path: ``test_sequence_frames_for_submission.json``, an object of frame index by sequence, or
            the ``..._as_list.txt`` beside it, whose names may be lines or a list.

    Raises:
        DatasetError: it is neither, is empty, or names a frame twice.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            pairs = json.loads(text, object_pairs_hook=list)
            names = [f"{sequence}-{index:03d}" for sequence, index in pairs]
        else:
            names = re.findall(r"[^\s,\[\]'\"]+", text)
    except (OSError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise DatasetError(f"{path} lists no frames: {error}") from error
    if not names:
        raise DatasetError(f"{path} lists no frames")
    for name in names:
        if not re.fullmatch(r".+-\d{3,}", name):
            raise DatasetError(f"{path}: {name!r} is no frame name: <sequence>-<three digits>")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(f"{path} names {_some(twice)} twice")
    return names


def _trajectory(name: str, points: ArrayLike) -> NDArray[np.float64]:
    """A prediction as it is stored, or what is wrong with it."""
    try:
        with np.errstate(over="ignore"):
            stored = np.asarray(points, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"frame {name}: no numbers of one shape: {error}") from error
    if stored.shape != (POINTS, 2):
        raise DatasetError(
            f"frame {name}: a trajectory of shape {stored.shape}, expected {(POINTS, 2)}: "
            "x and y at t + 0.25 s to t + 5 s"
        )
    if not np.isfinite(stored).all():
        raise DatasetError(f"frame {name}: the trajectory holds nan or inf")
    return stored.astype(np.float64)


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise `DatasetError` where metadata, by the argument names of `write`, would be refused."""
    required = (
        "account_name", "unique_method_name", "uses_public_model_pretraining",
        "num_model_parameters",
    )  # fmt: skip
    missing = [name for name in required if metadata[name] in (None, "")]
    if missing:
        raise DatasetError(f"the challenge requires {', '.join(missing)}")
    for name, value in metadata.items():
        many = name in ("authors", "public_model_names")
        words = value if many and not isinstance(value, str) else [value]
        if name != "uses_public_model_pretraining" and (
            (many and isinstance(value, str)) or not all(isinstance(it, str) for it in words)
        ):
            raise DatasetError(
                f"{name} is {value!r}, expected {'a list of texts' if many else 'a text'}"
            )
    if "@" not in metadata["account_name"]:
        raise DatasetError(
            f"account_name is {metadata['account_name']!r}, expected the email address registered "
            "at waymo.com/open"
        )
    if not isinstance(metadata["uses_public_model_pretraining"], bool):
        raise DatasetError(
            "uses_public_model_pretraining is "
            f"{metadata['uses_public_model_pretraining']!r}, expected true or false"
        )
    if not re.fullmatch(r"\d+[KMBTkmbt]", str(metadata["num_model_parameters"])):
        raise DatasetError(
            f"num_model_parameters is {metadata['num_model_parameters']!r}, expected a whole "
            "number with the suffix K, M, B or T, for instance 200K"
        )


def _check_frames(predictions: Mapping[str, Any], frames: Collection[str] | None) -> None:
    if not predictions:
        raise DatasetError("there are no predictions")
    if frames is None:
        return
    expected = set(frames)
    missing = [name for name in frames if name not in predictions]
    extra = [name for name in predictions if name not in expected]
    if missing or extra:
        raise DatasetError(
            f"of {len(expected)} frames, {len(missing)} have no prediction ({_some(missing)}), and "
            f"{len(extra)} predictions are for other frames ({_some(extra)})"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"


def _parts(
    predictions: Mapping[str, NDArray[np.float64]], metadata: Mapping[str, Any], shards: int
) -> Iterator[bytes]:
    names = list(predictions)
    for number in range(shards):
        part = messages(MESSAGE)(submission_type="E2ED_SUBMISSION", **metadata)
        share = slice(number * len(names) // shards, (number + 1) * len(names) // shards)
        for name in names[share]:
            row = part.predictions.add(frame_name=name)
            row.trajectory.pos_x.extend(predictions[name][:, 0])
            row.trajectory.pos_y.extend(predictions[name][:, 1])
        yield part.SerializeToString(deterministic=True)


def _metadata(message: Any, where: str) -> dict[str, Any]:
    plain = (
        "account_name", "unique_method_name", "num_model_parameters", "affiliation", "description",
        "method_link",
    )  # fmt: skip
    return {
        **{name: text(message, name, where=where) for name in plain},
        "uses_public_model_pretraining": message.uses_public_model_pretraining,
        "public_model_names": list(message.public_model_names),
        "authors": list(message.authors),
    }


def _payloads(path: Path) -> Iterator[tuple[str, bytes]]:
    """The serialized parts and where they are."""
    if path.is_dir():
        files = [it for it in path.iterdir() if it.is_file() and not it.name.startswith(".")]
        if not files:
            raise DatasetError(f"{path} holds no part")
        for file in sorted(files, key=lambda it: _natural(it.name)):
            yield str(file), _bounded(file)
        return
    data = _bounded(path)
    try:
        archive = tarfile.open(fileobj=io.BytesIO(data), mode="r:")  # noqa: SIM115
    except tarfile.TarError:
        yield str(path), data  # one part
        return
    except (ValueError, OverflowError, EOFError) as error:
        raise DatasetError(f"{path} is a damaged archive: {error}") from error
    yield from _members(path, archive, len(data))


def _members(path: Path, archive: tarfile.TarFile, size: int) -> Iterator[tuple[str, bytes]]:
    try:
        entries = [it for it in archive.getmembers() if it.isfile()]
        entries.sort(key=lambda it: _natural(it.name))
        for entry in entries:
            if PurePosixPath(entry.name).name.startswith("."):
                continue  # what macOS puts beside a file
            where = f"{path}:{entry.name}"
            if entry.issparse() or not 0 <= entry.size <= size:
                raise DatasetError(f"{where} says that it is {entry.size} bytes, which it is not")
            yield where, archive.extractfile(entry).read()  # type: ignore[union-attr]
    except DatasetError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
        raise DatasetError(f"{path} is a damaged archive: {error}") from error


def _bounded(path: Path) -> bytes:
    """A file's bytes, unzipped, and no more of them than a submission can have."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if len(data) > LARGEST:
        raise DatasetError(f"{path} is larger than {LARGEST} bytes, and no submission is")
    if not data:
        raise DatasetError(f"{path} is empty")
    return data


def _natural(name: str) -> list[Any]:
    """A sort key by which part10 comes after part9."""
    return [(words, len(digits), digits) for words, digits in re.findall(r"(\D*)(\d*)", name)]
