"""Masked diffusion of models that see all slots at once, with keys that are kept though stale."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch.nn.functional import pad

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.caches import Cache, NoCache, Progress
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice, Greedy
from fastloop.accel.decoding.commits import Commit, Confidence
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.passes import Passes
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.scheduling import BlockWindow, Window
from fastloop.accel.decoding.slots import SlotStore, check_slots
from fastloop.accel.decoding.windows import blocks

__all__ = ["CachedDiffusion"]


@dataclass(frozen=True)
class CachedDiffusion:
    """The one loop for any cache, commit policy and window.

    ``full``: prompt and answer share the slots, and the prompt is read again when the cache says
    so; ``prefix_lm``: the slots are of the answer, behind the exact keys of the prompt. The host
    reads three numbers a pass.

    Attributes:
        choice: which token stands in a slot.
        commit: which slots are written after a pass.
        cache: which keys are kept.
        window: where may be written.

    Raises:
        ValueError: when the parts cannot be right together.
    """

    choice: Choice = field(default_factory=Greedy)
    commit: Commit = field(default_factory=Confidence)
    cache: Cache = field(default_factory=NoCache)
    window: Window = field(default_factory=BlockWindow)

    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.FULL, Regime.PREFIX_LM})
    shifts: ClassVar[frozenset[int]] = frozenset({0, 1})
    refusal: ClassVar[str] = (
        "keys of what it has finished stay right, so none that are stale need be kept"
    )

    def __post_init__(self) -> None:
        if self.commit.edits:
            raise ValueError(
                f"{self.name} and {type(self.commit).__name__}: a policy that alters what is "
                "written has to hear of slots that are no longer read; use SectionDiffusion"
            )

    @property
    def name(self) -> str:
        """Of the window where it is not blocks, and of the cache."""
        return "_".join(filter(None, (self.window.name, self.cache.name)))

    @property
    def exactness(self) -> Exactness:
        """That of the cache."""
        return Exactness.EXACT_KV if self.cache.exact else Exactness.APPROXIMATE_KV

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """See `Driver`: keys of all layers have to lie in the same slots."""
        check_slots(self.name, model.spec)
        if canvas is not None:
            self.commit.check(model.spec, self.window.cut(canvas))

    def decode(
        self,
        model: LanguageModel,
        context: Context,
        canvas: Canvas,
        *,
        continued: bool = True,
        debug: bool = False,
    ) -> Decoded:
        """See `driver.Driver`; the context stays as it was.

        Raises:
            RuntimeError: when the commit policy leaves all open slots open.
        """
        self.check(model, canvas)
        spec, canvas = model.spec, self.window.cut(canvas)
        passes = Passes(model, context, debug=debug)
        answer = Answer(spec, canvas, len(context.logits), context.logits.device)
        state = _State(answer, passes)
        commit, current = self.commit, -1
        while True:
            state.look(self.window)
            plan = self.cache(state.progress)
            writable = state.progress.open & state.progress.window
            if plan.writable is not None:
                writable &= plan.writable
            span, widest, extent = passes.host(state.plan(plan.queried, plan.seen, writable))
            if not widest:
                break
            if passes.forwards["denoise"] == sum(answer.values):
                raise RuntimeError(
                    f"{self.commit} left slots open after {sum(answer.values)} passes: each has to "
                    "write at least one slot of a row"
                )
            start, end = state.spans[span]
            if span != current:
                commit, current = self.commit.begin(sum(answer.values[start:end])), span
            logits = state.read(widest, extent, start, end)
            slots = torch.arange(start, end, device=logits.device)[None]
            unwritten = writable[:, state.lead + start : state.lead + end]
            logits = commit.heard(answer.within(logits, slots), unwritten)
            tokens = self.choice(logits, context.position[:, None] + slots)
            state.write(start, end, tokens, commit(logits, tokens, unwritten))
        values, rows = sum(answer.values), len(answer.tokens)
        decoded = Decoded.of(
            self.name, self.exactness, answer, passes, drafted=rows * values,
            accepted=max(0, rows * (values - passes.forwards["denoise"])),
        )  # fmt: skip
        return replace(decoded, kv_bytes=decoded.kv_bytes + state.store.bytes)


class _State:
    """What a call knows. Slots of the store are `lead` of the prompt, then those of the answer."""

    def __init__(self, answer: Answer, passes: Passes) -> None:
        self.answer, self.passes = answer, passes
        context, (rows, n) = passes.context, answer.tokens.shape
        device = answer.tokens.device
        self.prompt = answer.tokens[:, :0] if context.prompt is None else context.prompt
        self.lead = self.prompt.shape[1]
        slots = self.lead + n
        self.store = SlotStore(context.kv, slots)
        self.progress = Progress(rows, self.lead, n, device)
        self.spans = blocks(answer.canvas)
        lengths = torch.tensor([end - start for start, end in self.spans], dtype=torch.int64)
        self._span_of = torch.arange(len(self.spans)).repeat_interleave(lengths).to(device)
        self._mark = torch.full((rows, 2), -1, device=device)
        self._numbers = torch.arange(slots + 1, device=device)
        self._positions = context.position[:, None] - self.lead + self._numbers

    def look(self, window: Window) -> None:
        """Where the rows stand; they go on to the next span when all of them have filled one."""
        open = self._open()
        span = pad(
            torch.where(open, self._span_of, len(self.spans)), (0, 1), value=len(self.spans)
        ).amin()
        inside = self._span_of == span
        region = window(inside, open & inside)
        epoch = window.epoch((self.progress.written >= 0).sum(1))
        mark = torch.stack([span.expand_as(epoch), epoch], 1)
        renewed, self._mark = (mark != self._mark).any(1), mark
        self.progress.look(pad(open, (self.lead, 0)), pad(region, (self.lead, 0)), renewed)

    def _open(self) -> torch.Tensor:
        """(B, n) bool, slots that hold the mask id; none in a row that has told all up to its stop.

        A stop id ends a row only when every slot before it is written.
        """
        tokens, slots = self.answer.tokens, self._numbers[None, : len(self.answer)]
        open = tokens == self.answer.spec.mask_id
        if not self.answer.stoppable:
            return open
        ended = self.answer.stops(tokens, slots).cumsum(1) > 0
        return open & (open & ~ended).any(1, keepdim=True)

    def plan(
        self, queried: torch.Tensor, seen: torch.Tensor | None, writable: torch.Tensor
    ) -> torch.Tensor:
        """Settle what the next pass is over, (B, N) each; what the host has to know of it.

        Returns:
            (3,) int64: the span, slots queried of the row with the most of them (0 when nothing is
            left to be written), and the end of what is seen.
        """
        shift = self.answer.spec.logit_shift
        told = pad(writable[:, shift:], (0, shift))  # whose logits speak of what may be written
        exist = self._positions[:, :-1] >= 0  # others fill up a shorter prompt, in front
        on = self.progress.window.any(1, keepdim=True)
        self._queried = (queried | told) & exist & on
        self._seen = exist if seen is None else (seen | self._queried) & exist
        extent = torch.where(self._seen, self._numbers[1:], 0).amax()
        return torch.stack([self._mark[0, 0], self._queried.sum(1).amax(), extent])

    def read(self, widest: int, extent: int, start: int, end: int) -> torch.Tensor:
        """The pass; logits (B, Q, V) of the Q slots of an answer from `start` up to `end`.

        Those of slots that were not to be told are of other slots.
        """
        spec, context, queried = self.answer.spec, self.passes.context, self._queried
        # A row with fewer slots than others is filled up with one that nobody sees, at position 0.
        order = queried.long().sort(dim=1, descending=True, stable=True).indices[:, :widest]
        real = self._numbers[:widest] < queried.sum(1, keepdim=True)
        slots = torch.where(real, order, queried.shape[1])
        board = torch.cat([self.prompt, pad(self.answer.tokens, (0, 1), value=spec.mask_id)], 1)
        if self.passes.debug:
            self.store.check(slots, self._seen & queried.any(1, keepdim=True), board)
        self.store.expect(slots, extent)
        logits = self.passes.forward(
            "denoise",
            board.gather(1, slots),
            torch.where(real, self._positions.gather(1, slots), 0),
            torch.cat([context.visible, self._seen[:, :extent]], 1)[:, None].expand(-1, widest, -1),
            self.store,
        )
        first = self.lead + start - spec.logit_shift
        at = (queried.cumsum(1) - 1).clamp(min=0)  # where in the pass a slot stands
        at = at[:, max(first, 0) : self.lead + end - spec.logit_shift]
        logits = logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))
        # The slot behind a prompt that is kept is told by the prompt's last token.
        return logits if first >= 0 else torch.cat([context.logits[:, None], logits], 1)

    def write(self, start: int, end: int, tokens: torch.Tensor, where: torch.Tensor) -> None:
        """Tokens (B, Q) into those slots from `start` up to `end` that (B, Q) `where` says."""
        part = self.answer.tokens[:, start:end]
        self.answer.tokens[:, start:end] = torch.where(where, tokens, part)
        self.progress.passed(pad(where, (self.lead + start, len(self.answer) - end)))
