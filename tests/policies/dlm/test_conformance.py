"""The check of adapters: right ones pass, and each way of being wrong has a line that says so."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding import ModelSpec, Regime
from fastloop.accel.decoding.layered import layers_of
from fastloop.policies.dlm import load_language_model
from fastloop.policies.dlm.conformance import conformance, table
from fastloop.policies.dlm.decoder import Decoder

KEPT = "passes over what is kept equal one whole pass"
BATCH = "prompts of different lengths do not mix"
LOGITS = "logits: one row a token, finite, float32 or wider"
MASKED = "what a mask hides changes nothing, what it shows does"
POSITIONS = "positions are those that are given"
DROPPED = "a pass that is dropped leaves nothing behind"
PROMPT = "a prompt's last logits are those of one whole pass"
SPECIAL = "special tokens are of the vocabulary"
STATELESS = "a second prompt does not change what the first one says"


def spec(regime, shift=1):
    return ModelSpec(regime, 64, 63, stop_id=5, logit_shift=shift, block_size=4)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("regime", Regime)
def test_every_regime_passes(stock, regime, shift):
    checks = conformance(Decoder(stock("Qwen3"), spec(regime, shift)))
    assert all(check.passed for check in checks), table(checks)
    names = {check.name for check in checks}
    assert {KEPT, BATCH, LOGITS, MASKED, POSITIONS, DROPPED, SPECIAL, STATELESS} <= names
    assert (PROMPT in names) == (regime is not Regime.FULL)
    slots = "keys in slots of their own give the same answer"
    assert (slots in names) == (regime in (Regime.FULL, Regime.PREFIX_LM))
    lossless = "speculation says what token by token does"
    assert (lossless in names) == (shift == 1 and regime in (Regime.CAUSAL, Regime.CAUSAL_CONTEXT))


def test_published_checkpoints_pass(tmp_path, kind, family, stock, published):
    published(tmp_path, kind, stock(family[kind]))
    dtype = "bfloat16" if kind == "sdar" else "float32"
    checks = conformance(load_language_model(tmp_path, dtype), seed=1)
    assert all(check.passed for check in checks), table(checks)


def test_prompts_of_ones_own(stock):
    model = Decoder(stock("Llama"), spec(Regime.PREFIX_LM))
    assert all(check.passed for check in conformance(model, [[1, 2, 3], [4, 5]]))
    failed = [check for check in conformance(model, [[1, 2], [4, 5]]) if not check.passed]
    assert [(check.name, check.found.split(":")[0]) for check in failed] == [
        (BATCH, "positions [2, 2]")
    ]


class IgnoresPositions(Decoder):
    def rotary(self, positions):
        return super().rotary(torch.zeros_like(positions))


class OffByOne(Decoder):
    def prefill(self, prompts, *, room):
        context = super().prefill(prompts, room=room)
        context.position += 1
        return context


class IgnoresMasks(Decoder):
    def forward(self, ids, *, positions, mask, kv):
        return super().forward(ids, positions=positions, mask=torch.ones_like(mask), kv=kv)


class SeesNothingBefore(Decoder):
    def forward(self, ids, *, positions, mask, kv):
        mask = mask.clone()
        mask[:, :, : kv.length] = False
        return super().forward(ids, positions=positions, mask=mask, kv=kv)


class Remembers(Decoder):
    calls = 0

    def prefill(self, prompts, *, room):
        self.calls += 1
        return super().prefill(prompts, room=room)

    def head(self, hidden):
        return super().head(hidden) * self.calls


class KeepsTwice(Decoder):
    def forward(self, ids, *, positions, mask, kv):
        logits = super().forward(ids, positions=positions, mask=mask, kv=kv)
        for layer in range(self.layers):
            keys, values = kv.read(layer)
            kv.write(layer, keys[:, :, -1:], values[:, :, -1:])
        return logits


class ReadsCausally(Decoder):
    def read(self, prompts):
        read = super().read(prompts)
        return replace(read, mask=read.mask.tril())


class ShowsWhatFillsUp(Decoder):
    def read(self, prompts):
        read = super().read(prompts)
        return replace(read, visible=torch.ones_like(read.visible))


class ShowsWhatFillsUpInFront(Decoder):
    """Of a full model: as a pass that knows of no prompts of different lengths."""

    def forward(self, ids, *, positions, mask, kv):
        hidden = self.embed(ids)
        return self.head(layers_of(self, range(self.layers), hidden, positions, mask, kv))


class Narrow(Decoder):
    def head(self, hidden):
        return super().head(hidden).bfloat16()


class NotANumber(Decoder):
    def head(self, hidden):
        return super().head(hidden).log()


@pytest.mark.parametrize(
    ("broken", "regime", "told"),
    [
        (IgnoresPositions, Regime.CAUSAL_CONTEXT, {POSITIONS}),
        (OffByOne, Regime.CAUSAL, {KEPT}),
        (IgnoresMasks, Regime.CAUSAL, {MASKED, KEPT, BATCH}),
        (SeesNothingBefore, Regime.BLOCK_CAUSAL, {KEPT}),
        (Remembers, Regime.PREFIX_LM, {STATELESS}),
        (KeepsTwice, Regime.PREFIX_LM, {DROPPED}),
        (ReadsCausally, Regime.BLOCK_CAUSAL, {PROMPT, KEPT}),
        (ReadsCausally, Regime.PREFIX_LM, {PROMPT, KEPT}),
        (ShowsWhatFillsUp, Regime.CAUSAL_CONTEXT, {BATCH}),
        (ShowsWhatFillsUpInFront, Regime.FULL, {BATCH}),
        (Narrow, Regime.CAUSAL, {LOGITS}),
        (NotANumber, Regime.CAUSAL, {LOGITS}),
    ],
)
def test_what_is_wrong_is_said(stock, broken, regime, told):
    failed = {c.name for c in conformance(broken(stock("Qwen2"), spec(regime))) if not c.passed}
    assert told <= failed


@pytest.mark.parametrize(
    "changes", [{"mask_id": 64}, {"stop_ids": (63,)}, {"null_id": -1}, {"logit_shift": 2}]
)
def test_special_tokens_that_cannot_be(stock, changes):
    model = Decoder(stock("Qwen2"), spec(Regime.FULL))
    model.spec = replace(model.spec, **changes)
    checks = {check.name: check for check in conformance(model)}
    assert not checks[SPECIAL].passed
    assert "of 64" in checks[SPECIAL].found


def test_an_error_is_a_line_and_the_others_go_on(stock):
    class Fails(Decoder):
        def prefill(self, prompts, *, room):
            raise RuntimeError("no memory")

    checks = {c.name: c for c in conformance(Fails(stock("Llama"), spec(Regime.CAUSAL)))}
    assert checks[KEPT].found == "RuntimeError: no memory"
    assert checks[MASKED].passed
    lines = table(list(checks.values())).splitlines()
    assert len(lines) == len(checks)
    assert f"FAILED  {KEPT}" in "\n".join(lines)
