"""Keys and values that are kept until attention drifts, and then from that layer on read anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.commits import Commit
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.denoise import SectionDiffusion
from fastloop.accel.decoding.drift import Drifting
from fastloop.accel.decoding.kv import KeysValues, KVCache
from fastloop.accel.decoding.layered import LayeredModel
from fastloop.accel.decoding.model import LanguageModel, ModelSpec, Regime
from fastloop.accel.decoding.result import Decoded, Exactness

__all__ = ["Elastic"]


@dataclass(frozen=True)
class Elastic(SectionDiffusion):
    """`SectionDiffusion` that reads little of what it sees in a pass (Elastic-Cache).

    A pass is over the first open slots, those written since the last one, and for each layer the
    read token that open slots attended to most. Where the attention of that token has turned
    (cosine below `gamma`), every layer from the next on is computed for all tokens, whose inputs to
    that layer were kept; layers before go on with old keys and values (arXiv 2510.14973). Only the
    first open slots are written. The prompt of a ``prefix_lm`` model is not among the tokens: its
    keys are exact. Rows decide for themselves; the host reads one number a layer.

    Attributes:
        gamma: 0 never reads anew, as no cosine of weights is less; above 1 only the first layer
            keeps anything, which still is not the same as a pass with nothing kept.
        window: how many open slots are read and may be written.
        refresh: every so many passes all of it is read anew; 1 keeps nothing, None does so in the
            first pass only.

    Raises:
        ValueError: for a window or a refresh below 1, a commit policy that edits, or an answer
            that is cut or seeded.
    """

    gamma: float = 0.9
    window: int = 16
    refresh: int | None = None

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE_KV
    regimes: ClassVar[frozenset[Regime]] = frozenset({Regime.FULL, Regime.PREFIX_LM})
    refusal: ClassVar[str] = "its keys stay right, so none need be watched for drift"

    def __post_init__(self) -> None:
        if self.window < 1 or (self.refresh is not None and self.refresh < 1):
            raise ValueError(
                f"window and refresh are 1 or more, got {self.window} and {self.refresh}"
            )
        if self.commit.edits:
            raise ValueError(
                f"{type(self.commit).__name__} writes over slots that {self.name} no longer reads"
            )
        if self.seed or self.truncate:
            raise ValueError(
                f"{self.name} keeps hidden states of all slots, and no logits before them: leave "
                "seed and truncate False"
            )

    @property
    def name(self) -> str:
        """The same whatever is written when."""
        return "elastic_cache"

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """See `Driver`: the model has to be passed layer by layer, too."""
        super().check(model, canvas)
        self._reader(model)

    def decode(
        self,
        model: LanguageModel,
        context: Context,
        canvas: Canvas,
        *,
        continued: bool = True,
        debug: bool = False,
    ) -> Decoded:
        """See `driver.Driver`; the context stays as it was."""
        reader = self._reader(model)
        inner = replace(self, commit=_Leading(self.commit, self.window))
        nowhere = replace(context, kv=_Nowhere(context.kv))
        decoded = SectionDiffusion.decode(
            inner, reader, nowhere, canvas, continued=continued, debug=debug
        )
        return replace(
            decoded,
            host_syncs=decoded.host_syncs + reader.host_syncs,
            tokens_fed=round(reader.layer_tokens / reader.layers),
            kv_bytes=context.kv.bytes + reader.bytes,
        )

    def _reader(self, model: LanguageModel) -> Drifting:
        return Drifting(cast(LayeredModel, model), self.gamma, self.window, self.refresh)


@dataclass(frozen=True)
class _Leading(Commit):
    """Another policy, over the first `count` open slots."""

    policy: Commit
    count: int

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        return self.policy(logits, tokens, self._leading(unwritten))

    def passes(self, values: int) -> int | None:
        return self.policy.passes(values) if values <= self.count else None

    def begin(self, values: int) -> Commit:
        return replace(self, policy=self.policy.begin(values))

    def heard(self, logits: torch.Tensor, unwritten: torch.Tensor) -> torch.Tensor:
        return self.policy.heard(logits, self._leading(unwritten))

    def check(self, spec: ModelSpec, canvas: Canvas) -> None:
        self.policy.check(spec, canvas)

    def _leading(self, unwritten: torch.Tensor) -> torch.Tensor:
        return unwritten & (unwritten.cumsum(1) <= self.count)


class _Nowhere(KVCache):
    """A prompt's keys, behind which nothing is kept: a reader of its own keeps what it likes."""

    def __init__(self, prompt: KVCache) -> None:
        super().__init__(prompt.layers, 1)
        self._prompt = prompt

    @property
    def length(self) -> int:
        return self._prompt.length

    def read(self, layer: int) -> KeysValues:
        return self._prompt.read(layer)

    def crop(self, slots: int) -> None:
        if self.written is not None:
            self.written = self.written[:, : self.length]
