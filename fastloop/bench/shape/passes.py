"""Passes over random tokens, timed, and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.model import LanguageModel
from fastloop.accel.decoding.passes import causal
from fastloop.accel.graph import recording

__all__ = ["Pass", "bandwidth", "time_in_turns", "wait"]


class Pass:
    """One pass over new random tokens of every row of a context, which are forgotten again.

    Args:
        model: that made the context.
        context: of one row, or of branches.
        new: tokens of each row.
        seed: of the tokens.
    """

    def __init__(self, model: LanguageModel, context: Context, new: int, seed: int = 0) -> None:
        self.model, self.context, self.new = model, context, new
        source, rows = torch.Generator().manual_seed(seed), len(context.position)
        device = context.position.device
        ids = torch.randint(model.spec.vocab, (rows, new), generator=source)
        self.ids = ids.to(device)
        self.positions = context.position[:, None] + torch.arange(new, device=device)
        seen = context.visible[:, None].expand(-1, new, -1)
        self.mask = torch.cat([seen, causal(new, device).expand(rows, -1, -1)], -1)

    def __call__(self) -> torch.Tensor:
        """Logits (B, Q, V)."""
        logits = self.model.forward(
            self.ids, positions=self.positions, mask=self.mask, kv=self.context.kv
        )
        self.context.kv.crop(self.new)
        return logits

    def prepare(self) -> None:
        """Record it, where it is to be, and make it a few times."""
        with recording():
            for _ in range(3):
                self()


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int, block: int, device: torch.device
) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of a call, in blocks of calls that queue up, and of calls that are waited for.

    Args:
        calls: by name; warm.
        repeats: turns, each begun by another call.
        block: calls of a block.
        device: that is waited for.

    Returns:
        by name: (repeats,) the mean of each block, and (repeats,) single calls.
    """
    timed: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    names = list(calls)
    for turn in range(repeats):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            for count, spent in zip((block, 1), timed[name], strict=True):
                wait(device)
                started = perf_counter()
                for _ in range(count):
                    calls[name]()
                wait(device)
                spent.append(1e3 * (perf_counter() - started) / count)
    return timed


def bandwidth(mib: int, device: torch.device, repeats: int = 10) -> float:
    """Bytes a second, read and written both, of a copy of so much memory within the device."""
    source = torch.rand(mib * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    spent = []
    for _ in range(repeats):
        wait(device)
        started = perf_counter()
        target.copy_(source)
        wait(device)
        spent.append(perf_counter() - started)
    return 2 * source.numel() * source.element_size() / median(spent)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
