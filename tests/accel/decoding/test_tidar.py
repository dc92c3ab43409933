"""One pass that drafts and verifies says what plain decoding says, whatever was drafted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import (
    Autoregressive,
    Canvas,
    Greedy,
    Gumbel,
    Regime,
    decode,
    rollouts,
)
from fastloop.accel.decoding.tidar import Groups, TiDAR


def with_nothing_kept(model, prompt, canvas, driver):
    """Drafts and verification by passes of their own over all there is; tokens and cycles."""
    choice, mask_id, n = driver.choice, model.spec.mask_id, len(canvas)
    draft = driver.draft or choice
    canvas = canvas.settled()
    allowed = canvas.allowed.clone()
    allowed[:, mask_id] = False
    start, given_ = len(prompt), canvas.given.tolist()
    ids = torch.cat([torch.tensor(prompt), canvas.tokens.masked_fill(~canvas.given, mask_id)])

    def run(ids, block):
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        mask[block:, block:] = True
        return model.whole(ids, mask)

    def chosen(choice, logits, slot):
        logits = logits.masked_fill(~allowed[canvas.kind[slot]], -torch.inf)
        return int(choice(logits[None, None], torch.tensor([[start + slot]]))[0, 0])

    def window(c):
        end = min(c + driver.size, n)
        while end < n and given_[end]:
            end += 1
        return end

    c, guess, accepted = 0, None, []
    while c < n:
        if not given_[c]:
            plain = run(ids[: start + c], start + c)
            ids[start + c] = chosen(choice, plain[-1], c)
        if guess is None:
            end = next((slot for slot in range(1, n) if not given_[slot]), n)
        else:
            end = window(c)
        trial = ids.clone()
        for slot in range(c + 1, end):
            if not given_[slot]:
                trial[start + slot] = guess[slot]
        logits = run(trial[: start + end], start + end)
        count = 1
        while c + count < end:
            slot = c + count
            said = chosen(choice, logits[start + slot - 1], slot)
            if not given_[slot] and said != int(trial[start + slot]):
                break
            count += 1
        ids[start + c : start + c + count] = trial[start + c : start + c + count]
        accepted.append(count)
        c += count
        if c < n:
            end = min(c + driver.size, n)
            logits = run(ids[: start + end], start + c)
            guess = {
                slot: chosen(draft, logits[start + slot - model.spec.logit_shift], slot)
                for slot in range(c + 1, end)
            }
    return ids[start:].tolist(), accepted


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("template", [False, True])
def test_any_draft_gives_the_tokens_of_plain_decoding(toy, template, size, rate):
    model = toy.Model(seed=size)
    canvas = toy.canvas(size, slots=33) if template else Canvas.free(33, 23, block_size=8)
    expected = toy.reference(model, toy.prompt, canvas)
    drafting = toy.Drafting(model, rate, len(toy.prompt), expected, seed=size)
    context = drafting.prefill([toy.prompt], room=33)
    decoded = TiDAR(size=size).decode(drafting, context, canvas, debug=True)
    assert decoded.tokens[0].tolist() == expected.tolist()
    # What is kept is one causal pass over the sequence, and nothing else.
    whole = model.prefill([toy.prompt + expected.tolist()], room=1)
    for layer in range(model.layers):
        for mine, other in zip(context.kv.read(layer), whole.kv.read(layer), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(context.logits, whole.logits, rtol=0, atol=1e-12)
    assert int(context.position) == context.kv.length == len(toy.prompt) + 33
    assert decoded.host_syncs == decoded.network_evaluations
    if rate == 1:
        assert decoded.accepted == decoded.drafted
    if rate == 0:
        assert decoded.accepted == 0
    if size > 1:
        assert decoded.drafted > 0
        assert rate != 0.5 or 0 < decoded.accepted < decoded.drafted


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_drafts_are_those_of_a_pass_of_their_own(toy, size, shift):
    """So a group saw what would be accepted and itself, and the one that was right was taken."""
    taken = 0
    for seed in range(4):
        model, canvas = toy.Model(seed=seed, logit_shift=shift), toy.canvas(seed, given=0.6)
        driver = TiDAR(Gumbel(2.0, (seed,)), draft=Greedy() if seed % 2 else None, size=size)
        expected, accepted = with_nothing_kept(model, toy.prompt, canvas, driver)
        context = model.prefill([toy.prompt], room=24)
        decoded = driver.decode(model, context, canvas, debug=True)
        assert decoded.tokens[0].tolist() == expected
        assert sorted(decoded.accepted_a_cycle.elements()) == sorted(accepted)
        taken += decoded.accepted
    assert taken > 0


@pytest.mark.parametrize(("slots", "size"), [(16, 4), (17, 4), (18, 4), (16, 1), (9, 16), (1, 4)])
def test_forwards_in_closed_form(toy, slots, size):
    model, canvas = toy.Model(), Canvas.free(slots, toy.VOCAB, block_size=8)
    expected = toy.reference(model, toy.prompt, canvas)
    for rate, step in ((1.0, size), (0.0, 1)):
        drafting = toy.Drafting(model, rate, len(toy.prompt), expected)
        context = drafting.prefill([toy.prompt], room=slots)
        decoded = TiDAR(size=size).decode(drafting, context, canvas)
        # The first pass reads one token and drafts; of the others each accepts `step`.
        assert decoded.forwards["draft"] == 1
        assert decoded.forwards["verify"] == -(-(slots - 1) // step)
        closed = decode(drafting, [toy.prompt], canvas, TiDAR(size=size))
        # The last token is told by the pass before, which is one pass less if it stands alone.
        alone = slots == 1 or step == 1 or (slots - 1) % step == 1
        assert closed.network_evaluations - 1 == decoded.network_evaluations - alone
        assert closed.tokens.tolist() == decoded.tokens.tolist()


def test_slots_of_a_pass_in_closed_form(toy):
    """Size + size squared without a scaffold; groups that cannot begin or draft are left out."""
    groups = Groups.of([True] * 30, 4)
    offsets, group = groups.laid_out(3, groups.stop[3])
    assert len(offsets) == 4 + 16
    assert offsets == [0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6, 4, 5, 6, 7]
    assert group == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert groups.laid_out(28, 30) == ([0, 1], [0, 0])  # slot 29 would draft nothing
    assert groups.laid_out(30, 30) == ([], [])
    scaffold = Groups.of([bool(int(bit)) for bit in "1001100001011"], 4)
    assert scaffold.stop[0] == 4
    # The given slots 5 to 8 belong to the window that begins at 3.
    assert scaffold.stop[3] == 9
    assert scaffold.laid_out(0, 3) == ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 3, 3, 3, 3])
    # If 4 is wrong the next window begins there, with nothing to draft up to 8; else at 9.
    assert scaffold.laid_out(3, 9) == ([*range(6), 6, 7, 8, 9], [0] * 6 + [6] * 4)
    model, canvas = toy.Model(), Canvas.free(40, toy.VOCAB, block_size=8)
    decode(model, [toy.prompt], canvas, TiDAR(size=5))
    assert model.calls[0] == 1 + 5
    assert max(model.calls) == 5 + 25


def test_scaffolds_cost_nothing(toy):
    model, canvas = toy.Model(), toy.canvas(3, slots=60, given=0.8)
    expected = toy.reference(model, toy.prompt, canvas)
    jump = decode(model, [toy.prompt], canvas, Autoregressive(jump_forward=True))
    for rate in (0.0, 1.0):
        drafting = toy.Drafting(model, rate, len(toy.prompt), expected)
        decoded = decode(drafting, [toy.prompt], canvas, TiDAR(size=8), debug=True)
        assert decoded.tokens[0].tolist() == expected.tolist()
        assert decoded.network_evaluations <= jump.network_evaluations
    assert decoded.network_evaluations < jump.network_evaluations


@pytest.mark.parametrize("draft", [None, Greedy()])
def test_sampled_rows_in_lock_step_say_what_plain_sampling_says(toy, draft):
    model, canvas = toy.Model(), toy.canvas(5, slots=30)
    seeds = (11, 12, 13, 14)
    decoded = decode(
        model, [toy.prompt] * 4, canvas, TiDAR(Gumbel(1.0, seeds), draft, size=4), debug=True
    )
    expected = [toy.reference(model, toy.prompt, canvas, Gumbel(1.0, (seed,))) for seed in seeds]
    assert decoded.tokens.tolist() == [row.tolist() for row in expected]
    branches = rollouts(model, toy.prompt, canvas, TiDAR(size=4), seeds=seeds, temperature=1.0)
    plain = rollouts(model, toy.prompt, canvas, Autoregressive(), seeds=seeds, temperature=1.0)
    assert branches.tokens.tolist() == plain.tokens.tolist()


def test_ragged_rows_of_injected_drafts(toy):
    """Rows that accept different numbers do not disturb each other."""
    model, canvas = toy.Model(), toy.canvas(8, slots=36, given=0.3)
    prompts = [toy.prompt, toy.prompt[::-1], [7] * len(toy.prompt)]
    truth = [toy.reference(model, prompt, canvas) for prompt in prompts]
    for right in range(3):
        drafting = toy.Drafting(model, 0.8, len(toy.prompt), truth[right], seed=right)
        context = drafting.prefill(prompts, room=36)
        decoded = TiDAR(size=5).decode(drafting, context, canvas, debug=True)
        assert decoded.tokens.tolist() == [row.tolist() for row in truth]
        assert context.visible.sum(1).tolist() == [len(toy.prompt) + 36] * 3
        assert context.kv.length > len(toy.prompt) + 36  # something was hidden
        for row in range(3):
            whole = model.prefill([prompts[row] + truth[row].tolist()], room=1)
            torch.testing.assert_close(context.logits[row], whole.logits[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
def test_a_row_that_stops_is_done(toy, rate):
    canvas = Canvas.free(40, toy.VOCAB, block_size=8)
    free = toy.reference(toy.Model(), toy.prompt, canvas)
    stop = int(free[13])
    first = free.tolist().index(stop)
    model = toy.Model(stop_id=stop)
    drafting = toy.Drafting(model, rate, len(toy.prompt), free)
    prompts = [toy.prompt, [4] * len(toy.prompt)]
    context = drafting.prefill([toy.prompt], room=40)
    one = TiDAR(size=6).decode(drafting, context, canvas, debug=True)
    assert one.tokens[0].tolist() == [*free.tolist()[: first + 1], *[stop] * (39 - first)]
    assert int(context.position) == len(toy.prompt) + first + 1
    both = decode(drafting, prompts, canvas, TiDAR(size=6), debug=True)
    plain = decode(model, prompts, canvas, Autoregressive())
    assert both.tokens.tolist() == plain.tokens.tolist()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 26),
    share=st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    rate=st.sampled_from([0.0, 0.7, 1.0]),
    size=st.sampled_from([1, 2, 3, 7, 40]),
    rows=st.integers(1, 3),
    continued=st.booleans(),
)
def test_any_canvas(toy, seed, slots, share, rate, size, rows, continued):
    model, canvas = toy.Model(seed=seed % 7), toy.canvas(seed, slots=slots, given=share)
    prompts = [[seed % 21, row, 5] for row in range(rows)]
    expected = [toy.reference(model, prompt, canvas) for prompt in prompts]
    drafting = toy.Drafting(model, rate, 3, expected[0], seed)
    context = drafting.prefill(prompts, room=slots)
    decoded = TiDAR(size=size).decode(drafting, context, canvas, continued=continued, debug=True)
    assert decoded.tokens.tolist() == [row.tolist() for row in expected]
    assert decoded.network_evaluations <= slots
    if continued:
        assert context.visible.sum(1).tolist() == [3 + slots] * rows


def test_what_cannot_be_is_refused(toy):
    with pytest.raises(ValueError, match="at least one slot, got 0"):
        TiDAR(size=0)
    with pytest.raises(ValueError, match="cannot be right on a block_causal model"):
        decode(toy.Model(Regime.BLOCK_CAUSAL), [toy.prompt], toy.canvas(0), TiDAR())
