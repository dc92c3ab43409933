"""Layers that are left out: nothing else changes, and drafts without them lose nothing."""

import pytest
import torch

from fastloop.accel.decoding import (
    Autoregressive,
    Confidence,
    Gumbel,
    KVCache,
    Regime,
    SectionDiffusion,
    decode,
    rollouts,
)
from fastloop.accel.decoding.self_speculative import SelfSpeculative
from fastloop.accel.decoding.skipping import Skipping, Watched, redundant

DIFFUSION = [regime for regime in Regime if regime is not Regime.CAUSAL]
DRIVER = SectionDiffusion(commit=Confidence(0.3))


def logits_of(model, prompt):
    """What is said of the slot behind a prompt, and then of four slots in one pass."""
    context = model.prefill([prompt], room=8)
    ids = torch.tensor([[1, 2, 22, 22]])
    mask = torch.ones(1, 4, context.kv.length + 4, dtype=torch.bool)
    said = model.forward(
        ids, positions=context.position[:, None] + torch.arange(4), mask=mask, kv=context.kv
    )
    return torch.cat([context.logits[:, None], said], 1)


@pytest.mark.parametrize("regime", DIFFUSION)
def test_nothing_skipped_is_the_model(toy, regime):
    for seed in range(2):
        model, canvas = toy.Model(regime, seed=seed), toy.canvas(seed)
        plain, skipped = (logits_of(m, toy.prompt) for m in (model, Skipping(model, ())))
        torch.testing.assert_close(skipped, plain, rtol=0, atol=1e-12)
        expected = decode(model, [toy.prompt], canvas, DRIVER)
        decoded = decode(Skipping(model, ()), [toy.prompt], canvas, DRIVER, debug=True)
        assert torch.equal(decoded.tokens, expected.tokens)
        assert decoded.forwards == expected.forwards


@pytest.mark.parametrize("regime", DIFFUSION)
def test_a_layer_that_adds_nothing_can_be_skipped_exactly(toy, regime):
    model = toy.Model(regime, layers=4)
    whole = logits_of(Skipping(model, ()), toy.prompt)
    for part in model.parts[2][1:]:  # its two outputs
        part.zero_()
    without = logits_of(Skipping(model, {2}), toy.prompt)
    assert torch.equal(without, logits_of(Skipping(model, ()), toy.prompt))
    assert not torch.allclose(without, whole)  # it did add something before


@pytest.mark.parametrize("regime", DIFFUSION)
def test_skipped_is_the_model_that_never_had_the_layer(toy, regime):
    for seed in range(2):
        model, smaller = (toy.Model(regime, seed=seed, layers=4) for _ in range(2))
        del smaller.parts[1]
        smaller.layers = 3
        canvas = toy.canvas(seed)
        expected = decode(smaller, [toy.prompt], canvas, DRIVER)
        decoded = decode(Skipping(model, {1}), [toy.prompt], canvas, DRIVER)
        assert torch.equal(decoded.tokens, expected.tokens)
        assert decoded.kv_bytes == expected.kv_bytes  # nothing is held for it
        torch.testing.assert_close(
            logits_of(Skipping(model, {1}), toy.prompt), logits_of(smaller, toy.prompt),
            rtol=0, atol=1e-12,
        )  # fmt: skip


@pytest.mark.parametrize("regime", DIFFUSION)
def test_every_pass_skips_the_same(toy, regime):
    model, canvas = toy.Model(regime), toy.canvas(0)
    context = model.prefill([toy.prompt], room=len(canvas))
    with pytest.raises(ValueError, match="2 layers over what 3 have read"):
        DRIVER.decode(Skipping(model, {1}), context, canvas)


def test_what_fills_up_a_prompt_is_hidden(toy):
    model = toy.Model(Regime.FULL)
    short, canvas = torch.tensor([toy.prompt]), torch.tensor([[1, 22, 22]])
    ids = torch.cat([short, canvas], 1)
    filled = torch.cat([torch.tensor([[9, 8]]), ids], 1)  # in front, at negative positions
    said = []
    for tokens, fill in ((ids, 0), (filled, 2)):
        new = tokens.shape[1]
        logits = Skipping(model, {1}).forward(
            tokens, positions=torch.arange(new)[None] - fill,
            mask=torch.ones(1, new, new, dtype=torch.bool), kv=KVCache(2, new),
        )  # fmt: skip
        said.append(logits[:, fill:])
    torch.testing.assert_close(said[1], said[0], rtol=0, atol=1e-12)


def test_sets_of_layers(toy):
    model = toy.Model()
    assert Skipping(model, {1, 0}).kept == (2,)
    for skip in ({3}, {-1}, {0, 1, 2}):
        with pytest.raises(ValueError, match="of 0 to 2"):
            Skipping(model, skip)
    stacked = Skipping(Skipping(toy.Model(layers=4), {1}), {1})
    once = Skipping(toy.Model(layers=4), {1, 2})
    assert torch.equal(logits_of(stacked, toy.prompt), logits_of(once, toy.prompt))
    assert redundant([1.0, 0.9, 0.8, 0.95, 0.5, 0.7, 1.0], 2) == (1, 3)
    assert redundant([1.0, 0.9, 0.95, 0.8, 0.5, 0.7, 1.0], 2) == (2, 5)  # no neighbors
    assert redundant([1.0, 0.9], 0) == ()
    with pytest.raises(ValueError, match="2 can be skipped"):
        redundant([0.9] * 5, 3)
    with pytest.raises(ValueError, match="asked for -1"):
        redundant([0.9] * 5, -1)


@pytest.mark.parametrize("regime", DIFFUSION)
def test_similarity_is_that_of_what_enters_and_leaves(toy, regime):
    model, canvas = toy.Model(regime), toy.canvas(1)
    for part in model.parts[1][1:]:
        part.mul_(1e-3)
    seen = [[], [], []]
    finish = model.finish

    def spied(layer, hidden, mixed):
        after = finish(layer, hidden, mixed)
        norms = hidden.norm(dim=-1) * after.norm(dim=-1)
        seen[layer].append(((hidden * after).sum(-1) / norms).flatten())
        return after

    model.finish = spied
    watched = Watched(model)
    with pytest.raises(ValueError, match="decode something first"):
        _ = watched.similarity
    expected = decode(watched, [toy.prompt] * 2, canvas, DRIVER)
    means = [float(torch.cat(layer).mean()) for layer in seen]
    assert watched.similarity == pytest.approx(means, abs=1e-6)
    assert redundant(watched.similarity, 1) == (1,)
    assert torch.equal(expected.tokens, decode(model, [toy.prompt] * 2, canvas, DRIVER).tokens)


@pytest.mark.parametrize("skip", [(), (1,), (0,), (0, 2)])
@pytest.mark.parametrize("regime", [Regime.CAUSAL, Regime.CAUSAL_CONTEXT])
def test_drafts_without_layers_lose_nothing(toy, regime, skip):
    for seed in range(2):
        model = toy.Model(regime, seed=seed, stop_id=7 if seed % 2 else None)
        for part in model.parts[1][1:]:
            part.mul_(0.2)  # so that some drafts are right
        canvas = toy.canvas(seed)
        prompts = [toy.prompt, toy.prompt[::-1], [5] * len(toy.prompt)]
        for window in (1, 3, 5):
            plain = decode(model, prompts, canvas, Autoregressive())
            driver = SelfSpeculative(skip, window=window)
            decoded = decode(model, prompts, canvas, driver, debug=True)
            assert torch.equal(decoded.tokens, plain.tokens)
            if skip == ():
                # Of a row that stops, the rest of a window is neither right nor wrong.
                assert decoded.accepted == decoded.drafted or seed % 2
            assert window > 1 or decoded.forwards["draft"] == 0
            assert decoded.forwards["verify"] <= plain.forwards["keep"] + 1


def test_some_drafts_are_right_and_some_are_wrong(toy):
    model = toy.Model(seed=1)
    for part in model.parts[1][1:]:
        part.mul_(0.2)
    drafted = accepted = 0
    for seed in range(4):
        decoded = decode(model, [toy.prompt], toy.canvas(seed), SelfSpeculative((1,)))
        drafted, accepted = drafted + decoded.drafted, accepted + decoded.accepted
    assert 0.2 * drafted < accepted < 0.9 * drafted


def test_samples_and_branches_lose_nothing(toy):
    model, canvas = toy.Model(seed=3), toy.canvas(3)
    expected, decoded = (
        rollouts(model, toy.prompt, canvas, driver, seeds=range(3), temperature=0.7, debug=True)
        for driver in (Autoregressive(), SelfSpeculative((1,), window=3))
    )
    assert torch.equal(decoded.tokens, expected.tokens)
    gumbel = Gumbel(0.7, (5,))
    expected, decoded = (
        decode(model, [toy.prompt], canvas, driver)
        for driver in (Autoregressive(gumbel), SelfSpeculative((0, 1), choice=gumbel))
    )
    assert torch.equal(decoded.tokens, expected.tokens)


def test_what_is_kept_is_of_all_layers(toy):
    model, canvas = toy.Model(seed=2), toy.canvas(2)
    contexts = [model.prefill([toy.prompt], room=len(canvas)) for _ in range(2)]
    drivers = Autoregressive(), SelfSpeculative((1,))
    for driver, context in zip(drivers, contexts, strict=True):
        driver.decode(model, context, canvas, debug=True)
    for layer in range(3):
        for a, b in zip(*(context.kv.read(layer) for context in contexts), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_windows_have_slots():
    with pytest.raises(ValueError, match="at least one slot"):
        SelfSpeculative((1,), window=0)
