"""What cannot be right is refused before the first pass, and what is left out is told."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding import (
    Autoregressive,
    CachedDiffusion,
    Canvas,
    Confidence,
    DualCache,
    Elastic,
    Exactness,
    FlashBlock,
    Guided,
    HierarchicalDiffusion,
    JointThreshold,
    Learned,
    Pruned,
    Regime,
    SectionDiffusion,
    SelfSpeculative,
    Skipping,
    SlidingWindow,
    Speculative,
    Streaming,
    TiDAR,
    compose,
    decode,
    rollouts,
)
from fastloop.accel.decoding.commits import BlockFilter, Calibration

WITHDRAWN, LATE = ((0, 0.0),), ((2, 0.5),)


def converted(model):
    """One that began as an autoregressive model."""
    model.spec = replace(model.spec, native=False)
    return model


def learned(slots, digest=""):
    zeros = torch.zeros(slots, slots), torch.zeros(slots), torch.zeros(slots, slots)
    return Learned(BlockFilter(Calibration(digest, slots), *zeros, torch.zeros(slots)))


class Opaque:
    """A model whose layers cannot be called one by one."""

    def __init__(self, model):
        self.spec, self.prefill, self.forward = model.spec, model.prefill, model.forward


@pytest.mark.parametrize(
    ("regime", "driver"),
    [
        (Regime.CAUSAL_CONTEXT, Speculative()),
        (Regime.CAUSAL_CONTEXT, TiDAR()),
        (Regime.CAUSAL_CONTEXT, SectionDiffusion()),
        (Regime.BLOCK_CAUSAL, SectionDiffusion()),
        (Regime.PREFIX_LM, CachedDiffusion(cache=DualCache())),
        (Regime.FULL, CachedDiffusion(cache=DualCache())),
        (Regime.FULL, Elastic()),
    ],
    ids=str,
)
def test_what_is_left_out_is_lossy_whatever_the_driver(toy, regime, driver):
    model, canvas = toy.Model(regime), toy.canvas(1)
    assert compose(model, driver) is driver.exactness is not Exactness.LOSSY
    assert decode(model, [toy.prompt], canvas, driver).exactness is driver.exactness
    parts = [Skipping(model, {1})]
    if regime is not Regime.FULL and not isinstance(driver, CachedDiffusion):
        parts += [Pruned(model, layer=1, keep=WITHDRAWN)]
        parts += [Pruned(Skipping(model, {1}), layer=1, keep=WITHDRAWN)]
    for part in parts:
        assert compose(part, driver, canvas) is Exactness.LOSSY
        decoded = decode(part, [toy.prompt], canvas, driver)
        assert decoded.exactness is Exactness.LOSSY
        assert not decoded.report().exact
        if regime is Regime.CAUSAL_CONTEXT:
            branches = rollouts(part, toy.prompt, canvas, driver, seeds=(1, 2), temperature=0.5)
            assert branches.exactness is Exactness.LOSSY
    assert compose(Skipping(model, ()), driver) is driver.exactness
    if regime is not Regime.FULL:
        for pruned in (Pruned(model, layer=3, keep=WITHDRAWN), Pruned(model, layer=1, keep=())):
            assert pruned.spec == model.spec


def test_whoever_is_left_a_part_is_another_model(toy):
    model = toy.Model(Regime.PREFIX_LM)
    parts = [
        model, Skipping(model, {1}), Skipping(model, {0}), Skipping(Skipping(model, {1}), {0}),
        Pruned(model, layer=1, keep=WITHDRAWN), Pruned(model, layer=2, keep=WITHDRAWN),
    ]  # fmt: skip
    assert len({part.spec.digest for part in parts}) == len(parts)
    assert Skipping(Skipping(model, {1}), {0}).spec.skipped == (1, 0)


@pytest.mark.parametrize("regime", Regime)
def test_converted_models_skip_in_drafts_only(toy, regime):
    model = converted(toy.Model(regime))
    driver = Autoregressive() if regime is Regime.CAUSAL else SectionDiffusion()
    with pytest.raises(ValueError, match=r"layers \[1\] cannot be skipped in every pass.*drafts"):
        decode(Skipping(model, {1}), [toy.prompt], toy.canvas(0), driver)
    assert not model.calls
    if regime in SelfSpeculative.regimes:
        assert compose(model, SelfSpeculative((1,))) is Exactness.LOSSLESS


def cases(toy):
    """Model, driver, canvas and whether it branches, with the reason."""
    free = Canvas.free(12, toy.VOCAB, block_size=6)
    late = Pruned(toy.Model(), keep=LATE)
    opaque = Opaque(toy.Model())
    prefix = Pruned(toy.Model(Regime.PREFIX_LM), layer=1, keep=WITHDRAWN)
    block = toy.Model(Regime.BLOCK_CAUSAL)
    other = Canvas.free(12, 9, block_size=6)
    masked = replace(free, tokens=free.tokens + toy.MASK, given=~free.given)
    return [
        (late, Speculative(), free, False, "verifies what it drafted, and after 2 passes"),
        (late, TiDAR(), free, False, "verifies what it drafted"),
        (late, SectionDiffusion(), free, True, "prune before they branch"),
        (prefix, CachedDiffusion(), free, False, "later layers of a model that prunes hold fewer"),
        (Pruned(toy.Model(), layer=1, keep=WITHDRAWN), HierarchicalDiffusion(), free, False,
         "hierarchical_diffusion keeps keys of all layers in the same slots"),
        (opaque, FlashBlock(), free, False, "Opaque is not passed .* which FlashBlock needs"),
        (opaque, SelfSpeculative((1,)), free, False, "Opaque is not passed .* which Skipping"),
        (Opaque(toy.Model(Regime.FULL)), Elastic(), free, False, "which Drifting needs"),
        (toy.Model(), SelfSpeculative((3,)), free, False, "of 0 to 2"),
        (Guided(block, 1.0), SectionDiffusion(), free, True, "two rows for each"),
        (Guided(block, 1.0), FlashBlock(), free, False, "Guided is not passed"),
        (block, SectionDiffusion(commit=learned(5)), free, False, "the largest .* has 6"),
        (block, SectionDiffusion(commit=learned(6, "x")), free, False, "of the model 'x'"),
        (block, HierarchicalDiffusion(commit=learned(6), part=4), free, False, "largest .* has 4"),
        (toy.Model(Regime.PREFIX_LM), CachedDiffusion(commit=learned(6), window=SlidingWindow()),
         free, False, "the largest .* has 12"),
        (toy.Model(Regime.CAUSAL), Streaming(commit=learned(6)), free, False, "largest .* has 12"),
        (block, SectionDiffusion(truncate=True), free, False, "never reads behind the block"),
        (toy.Model(Regime.FULL), SectionDiffusion(truncate=True), free, False, "of fixed length"),
        (toy.Model(Regime.FULL), SectionDiffusion(seed=True), free, False, "keeps nothing"),
        (toy.Model(Regime.FULL), SectionDiffusion(commit=JointThreshold(), truncate=True), free,
         False, "written over by this commit policy"),
        (toy.Model(), Speculative(), other, False, "made for 9 tokens, the model has 23"),
        (toy.Model(), Autoregressive(), masked, False, "a given slot holds the mask id"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(22))
def test_what_cannot_be_right_is_refused_before_the_first_pass(toy, number, monkeypatch):
    model, driver, canvas, branches, reason = cases(toy)[number]
    base = model

    def never(*_, **__):
        raise AssertionError("the prompt was read")

    while hasattr(base, "model"):
        base = base.model
    monkeypatch.setattr(base, "prefill", never)
    monkeypatch.setattr(model, "prefill", never)
    if branches:
        with pytest.raises(ValueError, match=reason):
            rollouts(model, toy.prompt, canvas, driver, seeds=(1,), temperature=1.0)
        return
    with pytest.raises(ValueError, match=reason):
        decode(model, [toy.prompt], canvas, driver)


def test_all_cases_are_run(toy):
    assert len(cases(toy)) == 22


def test_what_may_be_composed_on_top_of_each_other(toy):
    """Guided, pruned and skipped at once, by a driver that keeps a block's context."""
    model, canvas = toy.Model(Regime.BLOCK_CAUSAL), toy.canvas(3)
    prompt = [3, 18, 19, 20, 21, 18, 19, 2]
    part = Guided(Pruned(Skipping(model, {1}), layer=1, keep=((0, 0.5),)), 0.5)
    driver = SectionDiffusion(commit=Confidence(0.4))
    assert compose(part, driver, canvas) is Exactness.LOSSY
    decoded = decode(part, [prompt], canvas, driver, debug=True)
    assert toy.MASK not in decoded.tokens
    assert torch.equal(decoded.tokens[0][canvas.given], canvas.tokens[canvas.given])


def test_a_filter_may_be_for_the_parts_of_blocks(toy):
    model, canvas = toy.Model(Regime.BLOCK_CAUSAL), Canvas.free(12, toy.VOCAB, block_size=6)
    driver = HierarchicalDiffusion(commit=learned(4), part=4)
    decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
    assert toy.MASK not in decoded.tokens
