"""What the decoding engine asks of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from enum import StrEnum
from typing import Any, Protocol

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache

__all__ = ["LanguageModel", "ModelSpec", "Regime"]


class Regime(StrEnum):
    """What attends to what, as the checkpoint was trained.

    - ``full``: everything sees everything, so nothing may be kept (LLaDA, Dream);
    - ``prefix_lm``: the prompt sees itself, the answer sees all (LaViDa);
    - ``block_causal``: a block sees itself and all blocks before it, and its keys and values are
      kept from such a pass (Fast-dLLM v2, SDAR, DiffusionVL);
    - ``causal_context``: a block that is being denoised sees itself and all before it; what is
      finished is causal, token by token, and is kept from a causal pass (Fast-dVLM, Fast-dDrive);
    - ``causal``: autoregressive.
    """

    FULL = "full"
    PREFIX_LM = "prefix_lm"
    BLOCK_CAUSAL = "block_causal"
    CAUSAL_CONTEXT = "causal_context"
    CAUSAL = "causal"


@dataclass(frozen=True)
class ModelSpec:
    """Facts of a checkpoint that decide what may be done with it.

    Attributes:
        regime: what attends to what.
        vocab: V, rows of the logits.
        mask_id: the token that stands for "not yet written"; never written itself.
        stop_ids: each of them ends an answer; the first also stands behind its end.
        null_id: fills the rest of a field; None where nothing does.
        logit_shift: 1 where the logits of position p - 1 speak of position p, else 0.
        block_size: of a block as trained.
        digest: of the checkpoint.
        native: whether it was trained to fill masks from the start (LLaDA); others began as
            autoregressive models, and have no layers to spare.
        skipped: layers that are left out of every pass (`Skipping`).
        pruned: after how many passes which share of the tokens of pictures is left (`Pruned`).
        guided: weight of what the prompt changes (`Guided`); 0 for a model as it is.
        stop_id: the first of `stop_ids`, None where there is none; may be given instead of them,
            and is not asked where they are.
    """

    regime: Regime
    vocab: int
    mask_id: int
    stop_ids: tuple[int, ...] = ()
    null_id: int | None = None
    logit_shift: int = 1
    block_size: int = 32
    digest: str = ""
    native: bool = False
    skipped: tuple[int, ...] = ()
    pruned: tuple[tuple[int, float], ...] = ()
    guided: float = 0.0
    stop_id: InitVar[int | None] = None

    def __post_init__(self, stop_id: int | None) -> None:
        stop_ids = self.stop_ids or (() if stop_id is None else (stop_id,))
        object.__setattr__(self, "stop_ids", stop_ids)
        object.__setattr__(self, "stop_id", stop_ids[0] if stop_ids else None)


class LanguageModel(Protocol):
    """A language model with keys and values that are kept, one class a family of checkpoints."""

    spec: ModelSpec

    def prefill(self, prompts: Sequence[Any], *, room: int) -> Context:
        """Read one prompt for each of B rows, once.

        Args:
            prompts: B of what the model's own preparation makes: token ids, pictures.
            room: slots for tokens that will follow.
        """
        ...

    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """One pass over new tokens; their keys and values are appended to `kv`.

        Whoever does not want to keep them calls ``kv.crop``.

        Args:
            ids: (B, Q) int64.
            positions: (B, Q) int64, going on from `Context.position`; negative where a row is only
                filled up, so that what is said there means nothing, and nobody else looks there.
            mask: (B or 1, Q, kv.length + Q) bool, True where a query may look.
            kv: of these B rows, appended in place.

        Returns:
            logits (B, Q, V), float32 or wider, where they lie (`ModelSpec.logit_shift` not
            applied).
        """
        ...
