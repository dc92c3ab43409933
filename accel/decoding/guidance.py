"""Classifier-free guidance: away from what a model says when it has not been asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.model import LanguageModel, Regime

__all__ = ["Guided"]


class Guided:
    """A model that is asked twice, with its prompt and with nothing but masks in its place.

    Unsupervised guidance (Nie et al. 2024, SMDM): a model trained to fill masks anywhere knows what
    an answer is like without its prompt, so no prompts had to be dropped in training. Its logits
    are c + weight * (c - u), c with the prompt and u without; weight 0 is the model itself, -1 what
    it says unasked. Both are rows of one batch of 2 B, each with keys and values of its own, so
    that any driver may be used and what its answers equal stays what it was.

    Attributes:
        model: that is asked.
        weight: of what the prompt changes.
        null: makes of a prompt one of the same length that asks nothing; None for a prompt of
            token ids: the mask id in place of each.
        spec: the model's, with a digest of its own, since guided confidences are others.

    Raises:
        ValueError: for a model that reads its prompt causally, and so never saw one masked.
    """

    def __init__(
        self, model: LanguageModel, weight: float, null: Callable[[Any], Any] | None = None
    ) -> None:
        if model.spec.regime in (Regime.CAUSAL, Regime.CAUSAL_CONTEXT):
            raise ValueError(
                f"a {model.spec.regime.value} model was never trained on prompts that are masked, "
                "so guidance away from them means nothing"
            )
        self.model, self.weight = model, weight
        self.null = null or self._masked
        told = f"{model.spec.digest}, guided by {weight:g}"
        self.spec = replace(model.spec, digest=told, guided=weight)

    def prefill(self, prompts: Sequence[Any], *, room: int) -> Context:
        """See `LanguageModel`; `Context.kv` is of 2 B rows, all else of B.

        Raises:
            ValueError: when a prompt without its question is not as long as with it, or has
                another token where it is read in each pass.
        """
        both = self.model.prefill([*prompts, *map(self.null, prompts)], room=room)
        asked, unasked = both.position.chunk(2)
        if not torch.equal(asked, unasked):
            raise ValueError("a prompt that asks nothing must be as long as the one that it is of")
        prompt = None
        if both.prompt is not None:
            # A prompt that is read in each pass comes with its ids: those that are not to be
            # shown to the second half are beyond the vocabulary by V.
            asked_ids, unasked_ids = both.prompt.chunk(2)
            hidden = asked_ids != unasked_ids
            if (unasked_ids[hidden] != self.spec.mask_id).any():
                raise ValueError(
                    "a prompt that is read in each pass asks nothing where it holds the mask id "
                    f"{self.spec.mask_id}, and is the same elsewhere; `null` made something else"
                )
            prompt = torch.where(hidden, asked_ids + self.spec.vocab, asked_ids)
        return Context(both.kv, both.visible.chunk(2)[0], asked, self._guided(both.logits), prompt)

    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """See `LanguageModel`."""
        vocab, rows = self.spec.vocab, len(ids)
        unasked = ids.where(ids < vocab, self.spec.mask_id)
        logits = self.model.forward(
            torch.cat([ids % vocab, unasked]),
            positions=positions.repeat(2, 1),
            mask=mask.expand(rows, -1, -1).repeat(2, 1, 1),
            kv=kv,
        )
        return self._guided(logits)

    def _guided(self, logits: torch.Tensor) -> torch.Tensor:
        asked, unasked = logits.chunk(2)
        return asked + self.weight * (asked - unasked)

    def _masked(self, prompt: Any) -> torch.Tensor:
        return torch.full_like(torch.as_tensor(prompt), self.spec.mask_id)
