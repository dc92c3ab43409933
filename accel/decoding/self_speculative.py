"""Drafted by the model without some of its layers, verified by all of them: the same tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice, Greedy
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.cycle import Cycle
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import LayeredModel
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.passes import Passes, causal
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.skipping import Skipping
from fastloop.accel.decoding.windows import Windows

__all__ = ["SelfSpeculative"]


@dataclass(frozen=True)
class SelfSpeculative:
    """Self-speculation by layer skipping (Draft & Verify, Zhang et al. 2023).

    A cycle drafts a window value by value in passes through some of the layers, which read the
    keys and values that all layers kept; then one causal pass through all of them reads the window,
    and what it would not have said itself is dropped from there on. Drafts keep nothing. Given
    slots are neither drafted nor compared, and a window goes on up to the next value behind it.

    Attributes:
        skip: layers that drafts leave out, counted from 0.
        window: slots that are drafted and verified at once.
        choice: which token stands in a slot; drafts make it too.
    """

    skip: tuple[int, ...]
    window: int = 4
    choice: Choice = field(default_factory=Greedy)

    exactness: ClassVar[Exactness] = Exactness.LOSSLESS
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.CAUSAL, Regime.CAUSAL_CONTEXT})
    shifts: ClassVar[frozenset[int]] = frozenset({1})
    refusal: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"a window has at least one slot, got {self.window}")

    @property
    def name(self) -> str:
        """The same whatever is skipped."""
        return "self_speculation"

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """See `Driver`: the model has to have the layers that drafts leave out."""
        Skipping(cast(LayeredModel, model), self.skip)

    def decode(
        self,
        model: LanguageModel,
        context: Context,
        canvas: Canvas,
        *,
        continued: bool = True,
        debug: bool = False,
    ) -> Decoded:
        """See `driver.Driver`."""
        shallow = Skipping(cast(LayeredModel, model), self.skip)
        rows, n = len(context.logits), len(canvas)
        answer = Answer(model.spec, canvas, rows, context.logits.device)
        passes = Passes(model, context, debug=debug)
        windows = Windows.of(answer.canvas, self.window)
        # From slot c: a window, and what is given behind it.
        stop = [windows.jump[min(c + self.window, n) - 1] for c in range(n)] + [n]
        cycle = Cycle(answer, passes, self.choice)
        drafted = accepted = 0
        cycles: Counter[int] = Counter()

        at = [0] * rows  # the host's copy of cycle.at
        while now := [c for c in at if c < n]:
            cycle.tell()
            if not continued and all(windows.jump[c] == n for c in now):
                break  # every token stands
            begin, ends = at, [stop[c] for c in at]
            with _drafting(passes, shallow):
                guess = self._draft(answer, passes, begin, ends)
            end = torch.tensor(ends, device=guess.device)
            width = max(stop[c] - c for c in now)
            told = cycle.verify(guess, end, width)
            for c, (count, _) in zip(begin, told, strict=True):
                if count:
                    drafted += windows.values(c + 1, stop[c])
                    accepted += windows.values(c + 1, c + count)
                    cycles[count] += 1
            at = [c for _, c in told]
        return Decoded.of(
            self.name, self.exactness, answer, passes,
            drafted=drafted, accepted=accepted, cycles=cycles,
        )  # fmt: skip

    def _draft(
        self, answer: Answer, passes: Passes, begin: list[int], ends: list[int]
    ) -> torch.Tensor:
        """The answer (B, n) with proposals from slot `begin` up to slot `ends` of each row."""
        n, device, context = len(answer), answer.tokens.device, passes.context
        guess = answer.tokens.clone()
        first, end = (torch.tensor(slots, device=device)[:, None] for slots in (begin, ends))
        read = 0
        for offset in range(1, max(e - b for b, e in zip(begin, ends, strict=True))):
            inside = [b + offset for b, e in zip(begin, ends, strict=True) if b + offset < e]
            if not any(answer.values[slot] for slot in inside):
                continue  # it is given in every row, and read with the next
            slots = first + torch.arange(read, offset + 1, device=device)
            slots, real = slots.clamp(max=n - 1), slots < end
            new = offset - read
            logits = passes.run("draft", guess.gather(1, slots[:, :-1]), causal(new, device))
            passes.keep(new, new, torch.full_like(first[:, 0], new))
            proposed = answer.choose(
                self.choice, logits[:, -1:], slots[:, -1:], context.position[:, None]
            )
            where = real[:, -1:] & ~answer.given[slots[:, -1:]]
            stands = guess.gather(1, slots[:, -1:])
            guess = guess.scatter(1, slots[:, -1:], torch.where(where, proposed, stands))
            read = offset
        return guess


@contextmanager
def _drafting(passes: Passes, shallow: Skipping) -> Iterator[None]:
    """Passes go through fewer layers, and nothing that they read is kept."""
    model, context = passes.model, passes.context
    kv = cast(KVCache, _Draft(context.kv, shallow.kept))
    passes.model = shallow
    passes.context = Context(kv, context.visible, context.position, context.logits)
    try:
        yield
    finally:
        passes.model, passes.context = model, context


class _Draft:
    """What some layers have kept, with a draft's own keys and values behind it."""

    written: torch.Tensor | None = None
    shared = 0  # it is read whole

    def __init__(self, kept: KVCache, layers: tuple[int, ...]) -> None:
        self.layers = len(layers)
        self._kept, self._which = kept, layers
        self._own = KVCache(self.layers, 1)

    @property
    def length(self) -> int:
        return self._kept.length + self._own.length

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self._kept.read(self._which[layer])
        own = self._own.append(layer, keys, values)
        keys, values = (torch.cat(parts, 2) for parts in zip(kept, own, strict=True))
        return keys, values

    def crop(self, slots: int) -> None:
        self._own.crop(slots)
