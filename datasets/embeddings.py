"""What a frozen encoder makes of demonstrations, computed once (PTP, Torne et al. 2025)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.demonstration import Demonstration, DemonstrationError, Frames, is_image
from fastloop.datasets.hdf5 import new_file, numbers

__all__ = ["EMBEDDING", "Embeddings"]

EMBEDDING = "embedding"
FORMAT = "fastloop.embeddings"
VERSION = 1

Encode = Callable[[Mapping[str, Frames]], NDArray[Any]]


class Embeddings:
    """The embedding of every frame of some demonstrations, in an HDF5 file.

    ``data/demo_<i>/embedding`` is (N, F) float32, a row for each frame of demonstration i. The
    actions stay where they were recorded. The file's attributes are its format, version and digest:
    a sha256 of the encoder's digest and of the demonstrations, as far as that is cheap: their
    lengths, actions and low-dimensional observations, the first, middle and last images of each.

    The file appears whole. Until then each finished demonstration is a file of its own beside it,
    in ``<name>.parts``, from which a killed run goes on.

    Args:
        path: of the file, which need not be there yet.
        demonstrations: whose frames are encoded.
        keys: observations that the encoder reads.
        encode: N frames of these observations to (N, F).
        encoder: digest of all that decides an embedding beside the frame.

    Raises:
        DemonstrationError: what is at `path` is something else, or of another encoder, or of other
            demonstrations.
    """

    def __init__(
        self,
        path: Path,
        demonstrations: Sequence[Demonstration],
        keys: Sequence[str],
        encode: Encode,
        *,
        encoder: str,
    ) -> None:
        self.path = path
        self.demonstrations = demonstrations
        self.keys = tuple(keys)
        self.encode = encode
        self.digest = _digest(encoder, demonstrations, keys)
        self.parts = path.with_name(path.name + ".parts")
        if path.exists():
            self._check()

    def __len__(self) -> int:
        return len(self.demonstrations)

    def write(self) -> Iterator[int]:
        """Encode what is missing; yields how many demonstrations are done, after each.

        Raises:
            OSError: when the disk is full; the finished demonstrations are safe.
        """
        if self.path.exists():
            yield len(self)
            return
        self.parts.mkdir(parents=True, exist_ok=True)
        for index, demonstration in enumerate(self.demonstrations):
            if self._part(index) is None:
                seen = {key: demonstration.observations[key] for key in self.keys}
                self._keep(index, self.encode(seen).astype(np.float32))
            yield index + 1
        self._join()

    def read(self, keys: Sequence[str] = ()) -> list[Demonstration]:
        """The demonstrations with their embeddings in place of all observations but `keys`.

        Raises:
            DemonstrationError: the file is damaged.
        """
        try:
            with h5py.File(self.path, "r") as file:
                embeddings = [
                    numbers(file[f"data/demo_{i}/embedding"], f"{self.path}:demo_{i}")
                    for i in range(len(self))
                ]
        except DemonstrationError:
            raise
        except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise DemonstrationError(f"{self.path} is damaged ({error}): delete it") from error
        return [
            dataclasses.replace(
                demonstration,
                observations={EMBEDDING: embedding}
                | {key: demonstration.observations[key] for key in keys},
            )
            for demonstration, embedding in zip(self.demonstrations, embeddings, strict=True)
        ]

    def _check(self) -> None:
        try:
            with h5py.File(self.path, "r") as file:
                names = ("format", "version", "digest")
                kind, version, digest = (file.attrs.get(name) for name in names)
        except (OSError, RuntimeError) as error:
            raise DemonstrationError(f"{self.path} is no readable HDF5 file ({error})") from error
        if (kind, version) != (FORMAT, VERSION):
            raise DemonstrationError(
                f"{self.path} is of format {kind}, version {version}; embeddings are of {FORMAT}, "
                f"version {VERSION}: give another path"
            )
        if digest != self.digest:
            raise DemonstrationError(
                f"{self.path} holds the embeddings of another encoder (weights, crop, normalizer, "
                f"inputs) or of other demonstrations: its digest is {digest}, wanted is "
                f"{self.digest}; delete it, or give another path"
            )

    def _place(self, index: int) -> Path:
        return self.parts / f"{self.digest[:16]}_{index}.npy"

    def _part(self, index: int) -> NDArray[np.float32] | None:
        """The embeddings of a demonstration, where they are finished."""
        try:
            part: NDArray[np.float32] = np.load(self._place(index), allow_pickle=False)
        except (EOFError, OSError, ValueError):
            return None
        return part if part.ndim == 2 and len(part) == len(self.demonstrations[index]) else None

    def _keep(self, index: int, embeddings: NDArray[np.float32]) -> None:
        place = self._place(index)
        partial = place.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                np.save(file, embeddings)
            os.replace(partial, place)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise OSError(
                error.errno,
                f"cannot write {place} ({error.strerror}); the finished demonstrations are safe: "
                "make room and run the same command again",
            ) from error

    def _join(self) -> None:
        with new_file(self.path) as file:
            file.attrs.update(format=FORMAT, version=VERSION, digest=self.digest)
            for index in range(len(self)):
                file[f"data/demo_{index}/embedding"] = self._part(index)
        for index in range(len(self)):
            self._place(index).unlink()
        with contextlib.suppress(OSError):  # parts of another encoder are left alone
            self.parts.rmdir()


def _digest(encoder: str, demonstrations: Sequence[Demonstration], keys: Sequence[str]) -> str:
    digest = hashlib.sha256(encoder.encode())
    for demonstration in demonstrations:
        told: dict[str, Frames] = {"": demonstration.actions}
        for key, frames in (told | {key: demonstration.observations[key] for key in keys}).items():
            places = [0, len(frames) // 2, -1] if is_image(frames) else slice(None)
            digest.update(f"{key} {frames.shape} {frames.dtype}".encode())
            digest.update(np.ascontiguousarray(frames[places]).tobytes())
    return digest.hexdigest()
