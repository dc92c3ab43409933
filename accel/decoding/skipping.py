"""Layers that change little are left out, of every pass or of drafts only.

Native language diffusion models (LLaDA) have early layers that hardly turn a hidden state, models
that began as autoregressive ones have none (Skip to the Good Part, arXiv 2603.07475): of the former
`Skipping` is the model that decodes, for the latter it is a drafter (`self_speculative.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastloop.accel.decoding.layered import LayeredModel, Wrapped

__all__ = ["Skipping", "Watched", "redundant"]


class Skipping(Wrapped):
    """A model without some of its layers: they neither compute nor keep anything, in any pass.

    Its layers are numbered anew; `kept` says which ones of the model they are. What it answers is
    `Exactness.LOSSY`, and `compose` lets it decode only where the model is a native one.

    Args:
        model: any.
        skip: layers to leave out, counted from 0; an empty set changes nothing.

    Raises:
        ValueError: for a layer that the model has not, or when none is left.
    """

    def __init__(self, model: LayeredModel, skip: Iterable[int]) -> None:
        super().__init__(model)
        self.skip = frozenset(skip)
        if not self.skip < set(range(model.layers)):
            raise ValueError(
                f"asked to skip layers {sorted(self.skip)} of 0 to {model.layers - 1}: name some "
                "of them, but not all"
            )
        self.kept = tuple(layer for layer in range(model.layers) if layer not in self.skip)
        self.layers = len(self.kept)
        if self.skip:
            left_out = tuple(sorted(self.skip))
            self.spec = replace(
                model.spec, skipped=model.spec.skipped + left_out,
                digest=f"{model.spec.digest}, without layers {left_out}",
            )  # fmt: skip

    def project(
        self, layer: int, hidden: torch.Tensor, rotary: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `LayeredModel.project`."""
        return self.model.project(self.kept[layer], hidden, rotary)

    def finish(self, layer: int, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.finish`."""
        return self.model.finish(self.kept[layer], hidden, mixed)


class Watched(Wrapped):
    """A model that notes how little each of its layers turns a hidden state.

    Decode a few hundred prompts with it, as they will be decoded later, and ask `similarity`.
    """

    def __init__(self, model: LayeredModel) -> None:
        super().__init__(model)
        self._sums: list[torch.Tensor | None] = [None] * model.layers
        self._tokens = [0] * model.layers

    def finish(self, layer: int, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.finish`."""
        after = super().finish(layer, hidden, mixed)
        cosine = torch.nn.functional.cosine_similarity(hidden.float(), after.float(), dim=-1)
        total, self._tokens[layer] = cosine.sum(), self._tokens[layer] + cosine.numel()
        before = self._sums[layer]
        self._sums[layer] = total if before is None else before + total
        return after

    @property
    def similarity(self) -> list[float]:
        """Cosine between what enters a layer and what leaves it, a mean over all tokens passed.

        Raises:
            ValueError: when nothing has been read yet.
        """
        if not all(self._tokens):
            raise ValueError("no token has passed all layers yet: decode something first")
        sums = [0.0 if total is None else float(total) for total in self._sums]
        return [total / tokens for total, tokens in zip(sums, self._tokens, strict=True)]


def redundant(similarity: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` layers that are missed least, in rising order.

    Greedily those of the highest similarity, but never the first, the last, or two neighbors:
    layers left out in a row hurt more than the sum of them.

    Args:
        similarity: of each layer (`Watched.similarity`).
        count: how many.

    Raises:
        ValueError: when so many cannot be found.
    """
    chosen: list[int] = []
    inner = range(1, len(similarity) - 1)
    for layer in sorted(inner, key=lambda layer: -similarity[layer]):
        if len(chosen) < count and not {layer - 1, layer + 1} & set(chosen):
            chosen.append(layer)
    if count < 0 or len(chosen) < count:
        raise ValueError(
            f"of {len(similarity)} layers {len(chosen)} can be skipped, no two of them neighbors, "
            f"asked for {count}"
        )
    return tuple(sorted(chosen))
