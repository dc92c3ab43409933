"""An answer while it is written, one row for each of a batch."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice
from fastloop.accel.decoding.model import ModelSpec

__all__ = ["Answer"]


class Answer:
    """B copies of a canvas, on the device, in which slots that are not written hold the mask id.

    Where one token only may stand it stands from the start, as if it were given.

    Attributes:
        tokens: (B, n) int64.
        given: (n,) bool, on the device.
        values: for each slot whether it is to be filled, on the host.
        stoppable: whether some slot may hold a stop id of the model.

    Raises:
        ValueError: when the canvas is of another vocabulary, or a slot may hold nothing but the
            mask id.
    """

    def __init__(
        self, spec: ModelSpec, canvas: Canvas, rows: int, device: torch.device | str
    ) -> None:
        if canvas.allowed.shape[1] != spec.vocab:
            raise ValueError(
                f"the canvas is made for {canvas.allowed.shape[1]} tokens, the model has "
                f"{spec.vocab}"
            )
        host = canvas.to("cpu")
        allowed = host.allowed.clone()
        allowed[:, spec.mask_id] = False
        kinds = sorted(set(host.kind[~host.given].tolist()))
        if not allowed[kinds].any(1).all():
            raise ValueError(f"a slot may hold nothing but the mask id {spec.mask_id}")
        host = replace(host, allowed=allowed).settled(keep=spec.stop_ids)
        if (host.tokens[host.given] == spec.mask_id).any():
            raise ValueError(f"a given slot holds the mask id {spec.mask_id}")
        self.spec, self.canvas = spec, host
        self.values: list[bool] = (~host.given).tolist()
        self.stoppable = bool(allowed[kinds][:, list(spec.stop_ids)].any())
        self._stops = torch.tensor(spec.stop_ids, dtype=torch.int64, device=device)
        self.given = host.given.to(device)
        self._kind, self._allowed = host.kind.to(device), allowed.to(device)
        self._choices = _few_tokens(allowed, sorted(set(host.kind[~host.given].tolist())), device)
        empty = host.tokens.masked_fill(~host.given, spec.mask_id).to(device)
        self.tokens = empty.expand(rows, -1).clone()

    def __len__(self) -> int:
        return len(self.values)

    def within(self, logits: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Logits (B, Q, V) of slots (B or 1, Q), -inf where a token may not stand."""
        return logits.masked_fill(~self._allowed[self._kind[slots]], float("-inf"))

    def choose(
        self, choice: Choice, logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Tokens (B, Q) for slots (B or 1, Q) that are at positions (B, Q)."""
        if self._choices is None:
            return choice(self.within(logits, slots), positions)
        tokens, real = (table[self._kind[slots]] for table in self._choices)
        few = logits.gather(-1, tokens.expand(*logits.shape[:2], -1))
        chosen = choice(few.masked_fill(~real, float("-inf")), positions, tokens)
        return tokens.expand_as(few).gather(-1, chosen[..., None])[..., 0]

    def stops(self, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Where (B, Q) tokens of slots (B or 1, Q) end the answer: a stop id that was not given."""
        if not self.stoppable:
            return torch.zeros_like(tokens, dtype=torch.bool)
        return torch.isin(tokens, self._stops) & ~self.given[slots]

    def finished(self) -> torch.Tensor:
        """The tokens (B, n); all that follows a stop id that was chosen is the first of them."""
        if not self.stoppable:
            return self.tokens
        slots = torch.arange(len(self), device=self.tokens.device)[None]
        stops = self.stops(self.tokens, slots)
        ended = stops.cumsum(1) > stops.long()
        return self.tokens.masked_fill(ended, self.spec.stop_ids[0])


def _few_tokens(
    allowed: torch.Tensor, kinds: list[int], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """For each kind of slot the tokens that may stand there (kinds, C), rising, and which of them
    are real and no padding; None where that is no small part of the vocabulary."""
    most = int(allowed[kinds].sum(1).max()) if kinds else 1
    if most > allowed.shape[1] // 4:
        return None
    real, tokens = allowed.to(torch.uint8).topk(most, dim=1)
    tokens, order = tokens.sort(dim=1)
    return tokens.to(device), real.gather(1, order).bool().to(device)
