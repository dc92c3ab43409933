"""Attention to the context that is kept: exact where nothing is stale, and never kept for good."""

from itertools import pairwise

import pytest
import torch

from fastloop.accel.decoding import (
    Confidence,
    FixedCount,
    Regime,
    SectionDiffusion,
    Sequential,
    decode,
    rollouts,
)
from fastloop.accel.decoding.flash_block import FlashBlock, _FlashBlock
from fastloop.accel.decoding.layered import attention, attention_and_mass
from fastloop.accel.decoding.pruning import Pruned

REGIMES = [Regime.BLOCK_CAUSAL, Regime.CAUSAL_CONTEXT]
COMMITS = [Confidence(0.25), Confidence(0.9), FixedCount(2), Sequential()]


def test_parts_of_attention_merge(toy):
    random = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    queries, keys, values = normal(2, 6, 5, 4), 3 * normal(2, 3, 9, 4), normal(2, 3, 9, 4)
    mask = torch.rand(2, 5, 9, generator=random) < 0.6
    mask[:, :, 7] = True
    mask[0, :, :4] = False  # one part may be seen by nobody
    whole, mass = attention_and_mass(queries, keys, values, mask, 0.7)
    dense = attention(queries, keys, values, mask, 0.7)
    torch.testing.assert_close(whole, dense, rtol=0, atol=1e-12)
    parts = [
        attention_and_mass(queries, keys[:, :, part], values[:, :, part], mask[:, :, part], 0.7)
        for part in (slice(0, 4), slice(4, 9))
    ]
    masses = torch.stack([part[1] for part in parts])
    torch.testing.assert_close(masses.logsumexp(0), mass, rtol=0, atol=1e-12)
    shares = (masses - mass).exp()[..., None]
    merged = sum(share * part[0] for share, part in zip(shares, parts, strict=True))
    torch.testing.assert_close(merged, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("commit", COMMITS, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_looking_anew_in_every_pass_is_dense(toy, regime, commit):
    for seed, tau in ((0, 1), (1, 0), (2, 1)):
        model, canvas = toy.Model(regime, seed=seed, logit_shift=seed % 2), toy.canvas(seed)
        prompts = [toy.prompt, toy.prompt[::-1]]
        expected = decode(model, prompts, canvas, SectionDiffusion(commit=commit))
        decoded = decode(model, prompts, canvas, FlashBlock(commit=commit, tau=tau), debug=True)
        assert torch.equal(decoded.tokens, expected.tokens)
        assert decoded.forwards == expected.forwards


@pytest.mark.parametrize("tau", [2, 3, 100])
@pytest.mark.parametrize("regime", REGIMES)
def test_one_layer_is_exact_whatever_is_kept(toy, regime, tau):
    # Stale are only slots that were written, and of those no logit is asked for.
    for seed in range(3):
        model = toy.Model(regime, seed=seed, logit_shift=0, layers=1)
        canvas, prompts = toy.canvas(seed, largest=12), [toy.prompt, toy.prompt[::-1]]
        for commit in COMMITS:
            expected = decode(model, prompts, canvas, SectionDiffusion(commit=commit))
            decoded = decode(model, prompts, canvas, FlashBlock(commit=commit, tau=tau))
            assert torch.equal(decoded.tokens, expected.tokens)


def stale_reference(model, prompt, canvas, tau):
    """One row, left to right, in plain loops; gives tokens."""
    context = model.prefill([prompt], room=len(canvas))
    allowed = canvas.allowed.clone()
    allowed[:, 22] = False
    answer = canvas.tokens.masked_fill(~canvas.given, 22)
    edges = [0, *((canvas.block.diff() != 0).nonzero().flatten() + 1).tolist(), len(canvas)]
    length = len(prompt)
    for start, end in pairwise(edges):
        held, looked, saving = {}, None, False
        while True:
            ids = answer[start:end]
            saving = not (ids == 22).any()
            anew = looked is None or saving or int((ids != looked).sum()) >= tau
            looked = ids.clone() if anew else looked
            h = model.embed(ids[None])
            rotary = model.rotary(torch.arange(length, length + end - start)[None])
            new = []
            for layer in range(model.layers):
                q, k, v = model.project(layer, h, rotary)
                new.append((k, v))
                k, v, old_k, old_v = (
                    part.repeat_interleave(2, 1) for part in (k, v, *context.kv.read(layer))
                )
                if anew:
                    weights = (q @ old_k.transpose(-1, -2)).exp()
                    held[layer] = weights @ old_v, weights.sum(-1, keepdim=True)
                weights = (q @ k.transpose(-1, -2)).exp()
                mixed = held[layer][0] + weights @ v
                h = model.finish(layer, h, mixed / (held[layer][1] + weights.sum(-1, keepdim=True)))
            if saving:
                for layer, parts in enumerate(new):
                    context.kv.write(layer, *parts)
                length += end - start
                break
            slot = start + int((ids == 22).nonzero()[0])
            said = model.head(h)[0, slot - start].masked_fill(
                ~allowed[canvas.kind[slot]], -torch.inf
            )
            answer[slot] = said.argmax()
    return answer


@pytest.mark.parametrize("tau", [1, 2, 3, 100])
def test_stale_parts_are_those_of_plain_loops(toy, tau):
    differs = False
    for seed in range(3):
        model = toy.Model(Regime.BLOCK_CAUSAL, seed=seed, logit_shift=0)
        canvas, driver = toy.canvas(seed, largest=12), FlashBlock(commit=Sequential(), tau=tau)
        prompts = [toy.prompt, toy.prompt[::-1]]
        decoded = decode(model, prompts, canvas, driver, debug=True)
        for prompt, tokens in zip(prompts, decoded.tokens, strict=True):
            assert torch.equal(tokens, stale_reference(model, prompt, canvas, tau))
        dense = decode(model, prompts, canvas, SectionDiffusion(commit=Sequential()))
        differs |= not torch.equal(decoded.tokens, dense.tokens)
    assert differs == (tau > 1)


@pytest.mark.parametrize("regime", REGIMES)
def test_what_is_kept_for_good_is_exact(toy, regime):
    model, canvas = toy.Model(regime, seed=4), toy.canvas(4, largest=12)
    context = model.prefill([toy.prompt], room=len(canvas))
    tokens = (
        FlashBlock(commit=Sequential(), tau=9).decode(model, context, canvas, debug=True).tokens
    )
    again = model.prefill([toy.prompt], room=len(canvas))
    given = torch.ones(len(canvas), dtype=torch.bool)
    fixed = type(canvas)(
        tokens[0], given, canvas.block, canvas.section, canvas.kind, canvas.allowed
    )
    SectionDiffusion().decode(model, again, fixed)
    for layer in range(model.layers):
        for a, b in zip(context.kv.read(layer), again.kv.read(layer), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(context.logits, again.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tau", [2, 4])
def test_rows_do_not_depend_on_each_other(toy, tau):
    for seed in range(4):
        model = toy.Model(Regime.BLOCK_CAUSAL, seed=seed, logit_shift=seed % 2)
        canvas = toy.canvas(seed, given=0.1, largest=20)
        prompts = [toy.prompt, toy.prompt[::-1], [4] * len(toy.prompt)]
        driver = FlashBlock(commit=Confidence(0.15), tau=tau)
        together = decode(model, prompts, canvas, driver).tokens
        for prompt, tokens in zip(prompts, together, strict=True):
            assert torch.equal(decode(model, [prompt], canvas, driver).tokens[0], tokens)


def test_a_row_that_looks_anew_leaves_others_as_they_were(toy):
    model = toy.Model(Regime.BLOCK_CAUSAL, seed=3)
    empty = torch.full((2, 6), toy.MASK)
    later = empty.clone()
    later[0, 0] = 4
    later[1, :2] = 5
    prompts = [toy.prompt, toy.prompt[::-1]]

    def said(rows):
        reader = _FlashBlock(model, 2)
        context = model.prefill([prompts[row] for row in rows], room=12)
        for ids in (empty[rows], later[rows]):
            length = context.kv.length
            positions = length + torch.arange(6).expand(len(rows), -1)
            mask = torch.ones(len(rows), 6, length + 6, dtype=torch.bool)
            logits = reader.forward(ids, positions=positions, mask=mask, kv=context.kv)
            context.kv.crop(6)
        return logits, reader.looks

    both, looks = said([0, 1])
    (one, one_looked), (other, other_looked) = said([0]), said([1])
    assert (looks, one_looked, other_looked) == (2, 1, 2)
    torch.testing.assert_close(both, torch.cat([one, other]), rtol=0, atol=1e-12)


def test_branches_share_what_was_read(toy):
    model, canvas = toy.Model(Regime.BLOCK_CAUSAL, seed=1), toy.canvas(1, largest=12)
    options = {"temperature": 0.5}
    driver = FlashBlock(commit=Confidence(0.3), tau=3)
    three = rollouts(model, toy.prompt, canvas, driver, seeds=range(3), **options).tokens
    for seed, tokens in enumerate(three):
        one = rollouts(model, toy.prompt, canvas, driver, seeds=[seed], **options).tokens
        assert torch.equal(one[0], tokens)


def test_looks_and_books(toy):
    model = toy.Model(Regime.BLOCK_CAUSAL)
    canvas = toy.canvas(0, slots=8, given=0.0, largest=0.001)  # one block of 8 values
    canvas = type(canvas)(
        canvas.tokens, canvas.given, canvas.block * 0, canvas.section, canvas.kind, canvas.allowed
    )
    context = model.prefill([toy.prompt], room=8)
    reader = _FlashBlock(model, 3)
    decoded = SectionDiffusion(commit=Sequential()).decode(reader, context, canvas)
    assert decoded.forwards["denoise"] == 8
    assert reader.looks == 4  # with 0, 3 and 6 values written, and with all of them
    assert reader.host_syncs == 8
    held = 3 * 8 * model.heads * (model.width + 1) * 8  # layers, slots, heads, float64
    assert reader.bytes == held
    books = decode(model, [toy.prompt], canvas, FlashBlock(commit=Sequential(), tau=3))
    dense = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=Sequential()))
    assert books.kv_bytes == dense.kv_bytes + held
    assert books.host_syncs == dense.host_syncs + 7  # nothing is kept after the last block


def test_refusals(toy):
    canvas = toy.canvas(0)
    for regime in (Regime.FULL, Regime.PREFIX_LM):
        with pytest.raises(ValueError, match="flash_block cannot be right"):
            decode(toy.Model(regime), [toy.prompt], canvas, FlashBlock())
    pruned = Pruned(toy.Model(Regime.BLOCK_CAUSAL), layer=1, keep=())
    with pytest.raises(ValueError, match="Pruned is not passed through layer by layer"):
        decode(pruned, [toy.prompt], canvas, FlashBlock())
