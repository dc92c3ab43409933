"""Pieces that are done, on disk, so that a run that stopped goes on."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np

from fastloop.run_folder import claim
from fastloop.score.pieces import Scored

__all__ = ["PieceStore"]

COLUMN = "column/"


class PieceStore:
    """One ``.npz`` a piece under ``pieces/`` of a run folder.

    Args:
        folder: the run folder.
        digest: of everything that decides a figure.

    Raises:
        ValueError: the folder holds pieces of something else.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder / "pieces"
        claim(
            self.folder,
            digest,
            f"{folder} holds the pieces of another configuration, policy or data set; choose "
            "another run_dir, or repeat the command that made it",
        )

    def load(self, index: int, samples: int) -> Scored | None:
        """Piece `index` of so many samples; None where it is not done or its file is damaged."""
        try:
            with np.load(self._path(index), allow_pickle=False) as held:
                arrays = dict(held)
            faults = json.loads(str(arrays["faults"]))
            plans, scored = arrays["plans"], arrays["scored"]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return None
        if len(plans) != samples or len(scored) != samples:
            return None
        columns = {
            name.removeprefix(COLUMN): array
            for name, array in arrays.items()
            if name.startswith(COLUMN)
        }
        return Scored(index, plans, scored, columns, faults)

    def save(self, piece: Scored) -> None:
        """Keep a piece; it appears whole or not at all."""
        path = self._path(piece.index)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(
                file, plans=piece.plans, scored=piece.scored,
                faults=np.array(json.dumps(dict(piece.faults))),
                **{COLUMN + name: array for name, array in piece.columns.items()},
            )  # fmt: skip
        os.replace(partial, path)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npz"
