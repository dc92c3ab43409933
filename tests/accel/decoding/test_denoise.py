"""Denoising with kept keys and values equals denoising with nothing kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import (
    Autoregressive,
    Canvas,
    Regime,
    SectionDiffusion,
    decode,
)
from fastloop.accel.decoding.commits import (
    Confidence,
    Credit,
    EntropyBound,
    Factor,
    FixedCount,
    Hierarchy,
    JointThreshold,
    Sequential,
)
from fastloop.accel.decoding.windows import blocks


def said(model, prompt, ids, edges, begin, end):
    """Logits of a block's slots with all of it read again, under the mask of the regime."""
    spec, start = model.spec, len(prompt)
    first, last = start + begin, start + end
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
    return model.whole(ids[:length], mask)[torch.arange(first, last) - spec.logit_shift]


def with_nothing_kept(model, prompt, canvas, commit, seed=False, mask_id=22):
    """One row, with all of it read again in every pass; gives tokens, passes, step map."""
    start = len(prompt)
    allowed = canvas.allowed.clone()
    allowed[:, mask_id] = False
    ids = torch.cat([torch.tensor(prompt), canvas.tokens.masked_fill(~canvas.given, mask_id)])
    steps = torch.full((len(canvas),), -1)
    edges = blocks(canvas)
    passes = 0
    for begin, end in edges:
        first, last = start + begin, start + end
        own = ids[first:last] == mask_id
        policy, step, edits = commit.begin(int(own.sum())), 0, 0
        begun = not own.any()
        while (ids[first:last] == mask_id).any() or (
            (not begun or edits < commit.edits) and own.any()
        ):
            here = said(model, prompt, ids, edges, begin, end)
            here = here.masked_fill(~allowed[canvas.kind[begin:end]], -torch.inf)
            standing = ids[first:last]
            unwritten = standing == mask_id
            if seed and not begun and unwritten[0]:
                write, tokens = torch.arange(end - begin) == 0, here.argmax(-1)
                own = own & ~write
                policy = commit.begin(int(own.sum()))
                steps[begin] = -1
            else:
                here = policy.heard(here[None], unwritten[None])
                tokens = here[0].argmax(-1)
                write = policy(here, tokens[None], unwritten[None])[0]
                if commit.edits:
                    edit = policy.edit(here, tokens[None], standing[None])[0]
                    edit = edit & own & ~unwritten & (tokens != standing)
                    edits += not unwritten.any()
                    if not unwritten.any() and not edit.any():
                        edits = commit.edits
                    write = write | edit
                passes += 1
                steps[begin:end][write] = step
                step += 1
            begun = True
            ids[first:last] = torch.where(write, tokens, standing)
    return ids[start:].tolist(), passes, steps.tolist()


COMMITS = [
    *(Confidence(tau) for tau in (0.0, 0.2, 0.4, 0.9, 1.1)),
    FixedCount(1), FixedCount(3), EntropyBound(0.5), EntropyBound(6.0), Sequential(),
    Factor(1.5), Hierarchy(0.9, 0.2), Credit(Confidence(0.4)),
    JointThreshold(0.3, 0.4, rounds=2), Credit(JointThreshold(0.5, 0.2)),
]  # fmt: skip


@pytest.mark.parametrize("commit", COMMITS, ids=str)
@pytest.mark.parametrize("regime", [r for r in Regime if r is not Regime.CAUSAL])
def test_kept_equals_nothing_kept(toy, regime, commit):
    for seed, shift in ((0, 1), (1, 0)):
        model = toy.Model(regime, seed=seed, logit_shift=shift)
        canvas = toy.canvas(seed, slots=26)
        expected, passes, steps = with_nothing_kept(model, toy.prompt, canvas, commit)
        decoded = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=commit), debug=True)
        assert decoded.tokens[0].tolist() == expected
        assert decoded.forwards["denoise"] == passes
        planned = commit.passes(5) is not None
        assert decoded.host_syncs == (0 if planned else passes)
        if commit.edits:
            assert decoded.step_map is None
        else:
            assert decoded.step_map[0].tolist() == steps
            assert decoded.written.tolist() == decoded.tokens.tolist()
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
    expected, passes, steps = with_nothing_kept(
        model, toy.prompt, canvas, Confidence(0.5), seed=True
    )
    decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
    assert decoded.tokens[0].tolist() == expected
    assert decoded.forwards["denoise"] == passes
    assert decoded.step_map[0].tolist() == steps
    assert steps[::6] == [-1] * 4


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
        expected, *_ = with_nothing_kept(model, prompt, canvas, commit)
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


def test_edits_change_what_was_written_but_never_what_was_given(toy):
    """Otherwise the tests above would compare a policy that edits with one that does not."""
    changed = 0
    for seed in range(3):
        model, canvas = toy.Model(Regime.BLOCK_CAUSAL, seed=seed), toy.canvas(seed, slots=26)
        plain = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=Confidence(0.3)))
        edited = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=JointThreshold(0.3)))
        never = decode(
            model, [toy.prompt], canvas, SectionDiffusion(commit=JointThreshold(0.3, 1.5))
        )
        assert never.tokens.tolist() == plain.tokens.tolist()
        assert never.forwards == plain.forwards
        given = canvas.given
        assert edited.tokens[0][given].tolist() == canvas.tokens[given].tolist()
        assert toy.MASK not in edited.tokens
        changed += not torch.equal(plain.tokens, edited.tokens)
    assert changed >= 2


def test_edits_end_after_as_many_rounds_as_are_allowed(toy):
    model, canvas = toy.Model(Regime.BLOCK_CAUSAL, seed=1), Canvas.free(8, 23, block_size=8)
    counts = []
    for rounds in (0, 1, 2, 50):
        commit = JointThreshold(0.0, 0.0, rounds=rounds)
        driver = SectionDiffusion(commit=commit)
        counts.append(decode(model, [toy.prompt], canvas, driver).forwards["denoise"])
    assert counts[:3] == [1, 2, 3]
    assert 3 <= counts[3] <= 51


@pytest.mark.parametrize("commit", [JointThreshold(0.3), Credit(JointThreshold(0.5, 0.2), 2.0)])
def test_a_row_with_edits_does_not_depend_on_others(toy, commit):
    model, canvas = toy.Model(Regime.BLOCK_CAUSAL, seed=3), toy.canvas(5, slots=20, given=0.2)
    prompts = [[seed, 5, 9] for seed in range(5)]
    driver = SectionDiffusion(commit=commit)
    together = decode(model, prompts, canvas, driver).tokens.tolist()
    assert together == [decode(model, [p], canvas, driver).tokens[0].tolist() for p in prompts]


def test_a_trace_ends_where_a_row_does(toy):
    canvas = Canvas.free(30, toy.VOCAB, block_size=5)
    free = decode(toy.Model(), [toy.prompt], canvas, SectionDiffusion())
    stop = int(free.tokens[0, 11])
    end = free.tokens[0].tolist().index(stop) // 5 * 5 + 5
    model = toy.Model(stop_id=stop)
    both = decode(model, [toy.prompt, [4] * len(toy.prompt)], canvas, SectionDiffusion())
    assert (both.step_map[0, :end] >= 0).all()
    assert (both.step_map[0, end:] == -1).all()
    assert both.written[0, :end].tolist() == free.tokens[0, :end].tolist()


def cut_by_hand(model, prompt, slots, block, threshold, stop):
    """One row; what lies behind an end that is written, or foreseen, is not read again."""
    ids, cut = torch.tensor([*prompt, *[22] * slots]), []
    start, at = len(prompt), 0
    while at < slots and start + at < len(ids):
        last = start + min(at + block, len(ids) - start)
        while (ids[start + at : last] == 22).any():
            mask = torch.ones(len(ids), len(ids), dtype=torch.bool)
            if model.spec.regime is Regime.PREFIX_LM:
                mask[:start, start:] = False
            logits = model.whole(ids, mask)[torch.arange(start, len(ids)) - model.spec.logit_shift]
            logits[:, 22] = -torch.inf
            open_ = ids[start:] == 22
            p, said = logits.softmax(-1).max(-1)
            inside = torch.arange(len(open_)) < last - start
            score = torch.where(open_ & inside, p, -1.0)
            write = (score >= threshold) | (torch.arange(len(score)) == score.argmax())
            foreseen = torch.where(open_ & (said == stop), p, -1.0)
            ids[start:] = torch.where(write, said, ids[start:])
            ends = ids[start:] == stop
            if ends.any():
                ids = ids[: start + int(ends.long().argmax()) + 1]
            elif (foreseen >= 0).any():
                ids = ids[: start + int(foreseen.argmax()) + 1]
            last = min(last, len(ids))
            cut.append(len(ids))
        at += block
    return ids[start:].tolist(), cut


@pytest.mark.parametrize("regime", [Regime.FULL, Regime.PREFIX_LM])
@pytest.mark.parametrize("shift", [0, 1])
def test_answers_are_cut_where_an_end_is_in_sight(toy, regime, shift):
    prompts = [[row, 5, 9, 1] for row in range(3)]
    earlier = shorter = 0
    for stop in range(4):
        model = toy.Model(regime, seed=stop, stop_id=stop, logit_shift=shift)
        model.out[:, stop] *= 2  # said more often than others
        canvas = Canvas.free(24, toy.VOCAB, block_size=6)
        driver = SectionDiffusion(commit=Confidence(0.8), truncate=True)
        rows = []
        for prompt in prompts:
            tokens, cut = cut_by_hand(model, prompt, 24, 6, 0.8, stop)
            rows.append(tokens + [stop] * (24 - len(tokens)))
            model.calls.clear()
            one = decode(model, [prompt], canvas, driver)
            assert one.tokens[0].tolist() == rows[-1]
            assert one.forwards["denoise"] == len(cut)
            earlier += min(model.calls) < max(model.calls)
            shorter += len(tokens) < 24
        together = decode(model, prompts, canvas, driver)
        assert together.tokens.tolist() == rows
        assert toy.MASK not in together.tokens
    assert earlier >= 2
    assert shorter >= 5


def test_an_end_that_nobody_says_cuts_nothing(toy):
    model = toy.Model(Regime.FULL, stop_id=21)
    canvas = Canvas.free(18, toy.VOCAB, block_size=6)
    model.out[:, 21] = 0  # below the best of 22 others
    plain = decode(model, [toy.prompt], canvas, SectionDiffusion())
    cut = decode(model, [toy.prompt], canvas, SectionDiffusion(truncate=True))
    assert 21 not in plain.tokens
    assert cut.tokens.tolist() == plain.tokens.tolist()
    assert cut.forwards == plain.forwards


def test_what_cannot_be_cut_is_refused(toy):
    driver, free = SectionDiffusion(truncate=True), Canvas.free(12, toy.VOCAB, block_size=6)
    full = toy.Model(Regime.FULL, stop_id=3)
    for model, canvas, match in (
        (toy.Model(Regime.FULL), free, "no slot may end it"),
        (full, Canvas.free(12, toy.VOCAB, block_size=6, banned=(3,)), "no slot may end it"),
        (full, toy.canvas(0), "given"),
        (toy.Model(Regime.BLOCK_CAUSAL, stop_id=3), free, "never reads behind"),
    ):
        with pytest.raises(ValueError, match=match):
            decode(model, [toy.prompt], canvas, driver)
        assert not model.calls  # before the first pass
    with pytest.raises(ValueError, match="written over"):
        decode(full, [toy.prompt], free, SectionDiffusion(commit=JointThreshold(), truncate=True))


def test_a_policy_that_writes_nothing_is_found_out(toy):
    class Idle(Confidence):
        def __call__(self, logits, tokens, unwritten):
            return torch.zeros_like(unwritten)

    with pytest.raises(RuntimeError, match="at least one slot"):
        decode(toy.Model(), [toy.prompt], toy.canvas(0), SectionDiffusion(commit=Idle()))


@pytest.mark.parametrize("regime", [Regime.FULL, Regime.PREFIX_LM])
def test_a_seed_needs_a_pass_before_each_block(toy, regime):
    with pytest.raises(ValueError, match="decode without seed"):
        decode(toy.Model(regime), [toy.prompt], toy.canvas(1), SectionDiffusion(seed=True))
