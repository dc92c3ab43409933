"""Training a forecaster inside the bench; a killed run goes on where it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rich.console import Console

from fastloop.datasets.trajectories import Trajectories
from fastloop.policies.training import Trainer
from fastloop.progress import bar
from fastloop.sims.interrupts import Interrupts

__all__ = ["data_digest", "train"]


def data_digest(data: Trajectories) -> str:
    """What identifies the numbers that are learned from."""
    made = hashlib.sha256(f"{data.past.shape} {data.future.shape}".encode())
    made.update(data.past.tobytes())
    made.update(data.future.tobytes())
    return made.hexdigest()[:16]


def train(
    name: str, trainer: Trainer, folder: Path, save_every: int, console: Console, stop: Interrupts
) -> bool:
    """Train to the end or until somebody asks to stop; whether it came to the end.

    The state is kept in `folder`.

    Raises:
        ValueError: a saved state is damaged, or of another configuration or other data.
        FloatingPointError: the loss is no longer finite; the last saved state is intact.
    """
    state, total = folder / f"{name}.pt", trainer.config.steps
    if state.exists():
        trainer.resume(state)
    if trainer.step >= total:
        return True
    losses: list[float] = []
    with bar(f"training {name}", total, console) as advance:
        while trainer.step < total and not stop.requested:
            losses = [*losses[-99:], trainer.advance()]
            advance(trainer.step, f"loss {sum(losses) / len(losses):.4f}")
            if trainer.step % save_every == 0:
                trainer.save(state)
    trainer.save(state)
    return trainer.step >= total
