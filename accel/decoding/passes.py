"""Forward passes over new slots, and the books about them."""

from __future__ import annotations

import copy
import time
from collections import Counter
from typing import Any

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.model import LanguageModel

__all__ = ["PHASES", "Moment", "Passes", "bidirectional", "causal"]

PHASES = ("prefill", "draft", "verify", "denoise", "keep")


class Passes:
    """Runs a model over what follows a context, and counts.

    What a pass read is in the cache until `keep` or `drop` says what becomes of it.

    Attributes:
        forwards: passes, by phase (`PHASES`).
        host_syncs: times that the host waited for a value of the device.
    """

    def __init__(self, model: LanguageModel, context: Context, *, debug: bool = False) -> None:
        self.model, self.context, self.debug = model, context, debug
        self.forwards = Counter(dict.fromkeys(PHASES, 0))
        self.host_syncs = 0
        self._fed: Counter[str] = Counter()
        self._first = context.kv.length
        self._spans: list[tuple[str, Moment, Moment]] = []
        if debug and context.kv.written is None:
            context.kv.written = torch.full_like(context.visible, -1, dtype=torch.int64)

    @property
    def tokens_fed(self) -> int:
        """Slots of a row that went through the model, filling included."""
        return self._fed.total()

    def aside(self, context: Context) -> Passes:
        """Passes over another context, which are entered in the same books."""
        other = copy.copy(self)
        other.context = context
        return other

    def run(
        self,
        phase: str,
        ids: torch.Tensor,
        window: torch.Tensor,
        *,
        back: int = 0,
        offsets: torch.Tensor | None = None,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, Q, V) of ids (B, Q), the first of which is at the context's next position.

        Args:
            phase: of `PHASES`.
            ids: (B, Q) int64.
            window: (B or 1, Q, Q) bool, which of the new slots a new one sees; it sees all
                visible ones before.
            back: how many positions earlier the first is, where nothing at all is kept.
            offsets: (B or 1, Q) int64, how far behind the context's next position each is; None
                for one after the other.
            real: (B, Q) bool, False where a row is only filled up; None where none is.
        """
        context, (rows, new) = self.context, ids.shape
        before = context.visible[:, None].expand(-1, new, -1)
        mask = torch.cat([before, window.expand(rows, -1, -1)], -1)
        if offsets is None:
            offsets = torch.arange(new, device=ids.device) - back
        positions = context.position[:, None] + offsets
        if real is not None:
            positions = positions.where(real, -1)
        logits = self.forward(phase, ids, positions, mask, context.kv)
        if context.kv.written is not None:
            context.kv.written = torch.cat([context.kv.written, ids], 1)
        return logits

    def forward(
        self,
        phase: str,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        kv: KVCache,
    ) -> torch.Tensor:
        """`LanguageModel.forward`, counted; `kv` need not be the context's."""
        start = Moment()
        logits = self.model.forward(ids, positions=positions, mask=mask, kv=kv)
        self._spans.append((phase, start, Moment()))
        self.forwards[phase] += 1
        self._fed[phase] += ids.shape[1]
        return logits

    def keep(self, read: int, kept: int, accepted: torch.Tensor) -> None:
        """Of the last `read` slots keep the first `kept`, of which (B,) `accepted` stand in a row.

        The others of those `kept` stay hidden from the row.
        """
        context = self.context
        context.kv.crop(read - kept)
        stands = torch.arange(kept, device=accepted.device) < accepted[:, None]
        context.visible = torch.cat([context.visible, stands], 1)
        context.position = context.position + accepted

    def drop(self, read: int) -> None:
        """Keep nothing of the last `read` slots."""
        self.context.kv.crop(read)

    def host(self, values: torch.Tensor) -> list[Any]:
        """The one way in which values come to the host while decoding, counted."""
        self.host_syncs += 1
        return list(values.tolist())

    def check(self, tokens: torch.Tensor) -> None:
        """Under `debug`: every slot that is kept was read from the token (B, n) that stands there.

        Raises:
            RuntimeError: for the first row in which one was not.
        """
        context = self.context
        if not self.debug or context.kv.written is None:
            return
        for row, (seen, written) in enumerate(
            zip(context.visible, context.kv.written, strict=True)
        ):
            read = written[self._first :][seen[self._first :]]
            stands = tokens[row, : len(read)]
            if not torch.equal(read, stands):
                raise RuntimeError(
                    f"row {row}: keys and values were kept of tokens {read.tolist()}, "
                    f"where {stands.tolist()} stand"
                )

    def stage_ms(self) -> dict[str, float]:
        """Milliseconds in passes of each phase; waits for the device."""
        spent = dict.fromkeys(PHASES, 0.0)
        for phase, start, stop in self._spans:
            spent[phase] += stop.since_ms(start, self.context.logits.device)
        return {phase: ms for phase, ms in spent.items() if ms}


def causal(slots: int, device: torch.device | str) -> torch.Tensor:
    """Window (1, Q, Q) in which a slot sees itself and those before."""
    return torch.ones(1, slots, slots, dtype=torch.bool, device=device).tril()


def bidirectional(slots: int, device: torch.device | str) -> torch.Tensor:
    """Window (1, Q, Q) in which every slot sees every other."""
    return torch.ones(1, slots, slots, dtype=torch.bool, device=device)


class Moment:
    """Now, on the host and where the GPU's queue has come to; nobody waits."""

    def __init__(self) -> None:
        """Take both times."""
        self.seconds = time.perf_counter()
        self.event: torch.cuda.Event | None = None
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self.event.record()

    def since_ms(self, start: Moment, device: torch.device) -> float:
        """Milliseconds of work on a device since an earlier moment; waits for a GPU."""
        if device.type != "cuda" or self.event is None or start.event is None:
            return 1e3 * (self.seconds - start.seconds)
        self.event.synchronize()
        elapsed: float = start.event.elapsed_time(self.event)
        return elapsed
