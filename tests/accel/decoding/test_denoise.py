"""Denoising with kept keys and values equals denoising with nothing kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import (
    Autoregressive,
    Canvas,
    Confidence,
    EntropyBound,
    FixedCount,
    Regime,
    SectionDiffusion,
    Sequential,
    decode,
)
from fastloop.accel.decoding.windows import blocks


def with_nothing_kept(model, prompt, canvas, commit, seed=False, mask_id=22):
    """All of it read again in every pass, under the mask of the regime; gives tokens and passes."""
    spec, start = model.spec, len(prompt)
    allowed = canvas.allowed.clone()
    allowed[:, mask_id] = False
    ids = torch.cat([torch.tensor(prompt), canvas.tokens.masked_fill(~canvas.given, mask_id)])
    edges = blocks(canvas)
    passes = 0
    for begin, end in edges:
        first, last = start + begin, start + end
        begun = False
        while (ids[first:last] == mask_id).any():
            if spec.regime in (Regime.FULL, Regime.PREFIX_LM):
                length = len(ids)
                mask = torch.ones(length, length, dtype=torch.bool)
                if spec.regime is Regime.PREFIX_LM:
                    mask[:start, start:] = False
            else:
                length = last
                mask = torch.ones(length, length, dtype=torch.bool).tril()
                done = [(begin, end)]
                if spec.regime is Regime.BLOCK_CAUSAL:
                    done = [edge for edge in edges if edge[1] <= end]
                for a, b in done:
                    mask[start + a : start + b, start + a : start + b] = True
            # What a slot at the edge is told by was read before the block was begun.
            logits = model.whole(ids[:length], mask)
            where = torch.arange(first, last) - spec.logit_shift
            here = logits[where].masked_fill(~allowed[canvas.kind[begin:end]], -torch.inf)
            tokens, unwritten = here.argmax(-1), ids[first:last] == mask_id
            if seed and not begun and unwritten[0]:
                write = torch.arange(end - begin) == 0
            else:
                write = commit(here[None], tokens[None], unwritten[None])[0]
                passes += 1
            begun = True
            ids[first:last] = torch.where(write, tokens, ids[first:last])
    return ids[start:].tolist(), passes


COMMITS = [
    *(Confidence(tau) for tau in (0.0, 0.2, 0.4, 0.9, 1.1)),
    FixedCount(1), FixedCount(3), EntropyBound(0.5), EntropyBound(6.0), Sequential(),
]  # fmt: skip


@pytest.mark.parametrize("commit", COMMITS, ids=str)
@pytest.mark.parametrize("regime", [r for r in Regime if r is not Regime.CAUSAL])
def test_kept_equals_nothing_kept(toy, regime, commit):
    for seed, shift in ((0, 1), (1, 0), (2, 1)):
        model = toy.Model(regime, seed=seed, logit_shift=shift)
        canvas = toy.canvas(seed, slots=26)
        expected, passes = with_nothing_kept(model, toy.prompt, canvas, commit)
        decoded = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=commit), debug=True)
        assert decoded.tokens[0].tolist() == expected
        assert decoded.forwards["denoise"] == passes
        planned = commit.passes(5) is not None
        assert decoded.host_syncs == (0 if planned else passes)
        assert toy.MASK not in expected


def test_policies_write_at_different_times(toy):
    """Otherwise the test above would compare one thing with itself."""
    model, canvas = toy.Model(), Canvas.free(24, toy.VOCAB, block_size=8)
    counts = {
        str(commit): decode(
            model, [toy.prompt], canvas, SectionDiffusion(commit=commit)
        ).forwards["denoise"]
        for commit in COMMITS
    }  # fmt: skip
    assert counts["Confidence(threshold=0.0)"] == 3
    assert counts["Confidence(threshold=1.1)"] == counts["Sequential()"] == 24
    assert counts["FixedCount(count=3)"] == 9
    assert 3 < counts["Confidence(threshold=0.4)"] < 24
    assert counts["EntropyBound(bound=6.0)"] == 3 < counts["EntropyBound(bound=0.5)"] < 24


def test_forwards_of_sections(toy):
    """One pass kept a block; the last only where somebody reads on."""
    model, canvas = toy.Model(), Canvas.free(24, toy.VOCAB, block_size=8)
    driver = SectionDiffusion(commit=Confidence(0))
    done = decode(model, [toy.prompt], canvas, driver)
    assert done.forwards == {"prefill": 1, "draft": 0, "verify": 0, "denoise": 3, "keep": 2}
    assert done.report().check_engaged().accepted == 24 - 3
    context = model.prefill([toy.prompt], room=24)
    open_end = driver.decode(model, context, canvas, debug=True)
    assert open_end.forwards["keep"] == 3
    assert open_end.tokens.tolist() == done.tokens.tolist()
    whole = torch.cat([torch.tensor(toy.prompt), done.tokens[0]])
    mask = torch.ones(len(whole), len(whole), dtype=torch.bool).tril()
    torch.testing.assert_close(context.logits[0], model.whole(whole, mask)[-1])


@pytest.mark.parametrize("regime", [Regime.FULL, Regime.PREFIX_LM])
def test_a_context_that_keeps_nothing_stays_as_it_was(toy, regime):
    model, canvas = toy.Model(regime), toy.canvas(1)
    context = model.prefill([toy.prompt], room=len(canvas))
    length = context.kv.length
    first = SectionDiffusion().decode(model, context, canvas)
    again = SectionDiffusion().decode(model, context, canvas)
    assert context.kv.length == length
    assert first.tokens.tolist() == again.tokens.tolist()


@pytest.mark.parametrize("regime", [Regime.CAUSAL_CONTEXT, Regime.BLOCK_CAUSAL])
def test_the_first_slot_of_a_block_may_be_told_by_the_pass_before(toy, regime):
    model = toy.Model(regime, seed=4)
    canvas = Canvas.free(24, toy.VOCAB, block_size=6)
    driver = SectionDiffusion(commit=Confidence(0.5), seed=True)
    expected, passes = with_nothing_kept(model, toy.prompt, canvas, Confidence(0.5), seed=True)
    decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
    assert decoded.tokens[0].tolist() == expected
    assert decoded.forwards["denoise"] == passes


def test_blocks_of_one_slot_are_token_by_token(toy):
    model, canvas = toy.Model(), Canvas.free(12, toy.VOCAB, block_size=1)
    seeded = decode(model, [toy.prompt], canvas, SectionDiffusion(seed=True), debug=True)
    plain = decode(model, [toy.prompt], canvas, Autoregressive())
    assert seeded.tokens.tolist() == plain.tokens.tolist()
    assert seeded.forwards == plain.forwards


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 24),
    share=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    commit=st.sampled_from(COMMITS),
    regime=st.sampled_from([r for r in Regime if r is not Regime.CAUSAL]),
    rows=st.integers(1, 3),
)
def test_any_canvas(toy, seed, slots, share, commit, regime, rows):
    model = toy.Model(regime, seed=seed % 5, logit_shift=seed % 2)
    canvas = toy.canvas(seed, slots=slots, given=share)
    prompts = [[seed % 21, row, 5] for row in range(rows)]
    decoded = decode(model, prompts, canvas, SectionDiffusion(commit=commit), debug=True)
    for row, prompt in enumerate(prompts):
        expected, _ = with_nothing_kept(model, prompt, canvas, commit)
        assert decoded.tokens[row].tolist() == expected


@pytest.mark.parametrize("regime", [Regime.CAUSAL_CONTEXT, Regime.PREFIX_LM])
def test_a_row_that_stops_is_done(toy, regime):
    canvas = Canvas.free(30, toy.VOCAB, block_size=5)
    free = decode(toy.Model(regime), [toy.prompt], canvas, SectionDiffusion())
    stop = int(free.tokens[0, 11])
    first = free.tokens[0].tolist().index(stop)
    model = toy.Model(regime, stop_id=stop)
    one = decode(model, [toy.prompt], canvas, SectionDiffusion(), debug=True)
    assert one.tokens[0].tolist() == [*free.tokens[0, : first + 1].tolist(), *[stop] * (29 - first)]
    other = [4] * len(toy.prompt)
    alone = decode(model, [other], canvas, SectionDiffusion(), debug=True)
    both = decode(model, [toy.prompt, other], canvas, SectionDiffusion(), debug=True)
    assert both.tokens.tolist() == [one.tokens[0].tolist(), alone.tokens[0].tolist()]
    if regime is Regime.CAUSAL_CONTEXT:
        assert one.forwards["keep"] == first // 5 + 1
