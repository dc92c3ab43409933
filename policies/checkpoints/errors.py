"""What is wrong with a checkpoint, said to the person who gave it."""

from __future__ import annotations

__all__ = ["CheckpointError", "RefusedError"]


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says what was expected and what was found."""


class RefusedError(CheckpointError):
    """A checkpoint tries to run or import something; nothing of it was executed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"refused: the file tries to {what}. Nothing of it was run")
