"""Speculation says what the model says token by token, whatever was drafted."""

from dataclasses import replace

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
    Speculative,
    decode,
)
from fastloop.accel.decoding.windows import blocks


@pytest.mark.parametrize("regime", [Regime.CAUSAL_CONTEXT, Regime.CAUSAL])
@pytest.mark.parametrize("size", [1, 4, 8, 16])
def test_linear_speculation_says_what_token_by_token_says(toy, size, regime):
    model = toy.Model(regime)
    canvas = Canvas.free(29, toy.VOCAB, block_size=8)
    expected = toy.reference(model, toy.prompt, canvas)
    assert len(set(expected.tolist())) > 5
    for driver in (Speculative(window=size), Autoregressive(), Autoregressive(jump_forward=True)):
        decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
        assert decoded.tokens[0].tolist() == expected.tolist()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_any_draft_gives_the_tokens_of_the_template(toy, seed, rate, window):
    model, canvas = toy.Model(seed=seed), toy.canvas(seed, slots=40)
    expected = toy.reference(model, toy.prompt, canvas)
    drafting = toy.Drafting(model, rate, len(toy.prompt), expected, seed)
    context = drafting.prefill([toy.prompt], room=len(canvas))
    decoded = Speculative(window=window).decode(drafting, context, canvas, debug=True)
    assert decoded.tokens[0].tolist() == expected.tolist()
    # What is kept is one causal pass over the sequence, and nothing else.
    whole = torch.cat([torch.tensor(toy.prompt), expected])
    mask = torch.ones(len(whole), len(whole), dtype=torch.bool).tril()
    torch.testing.assert_close(context.logits[0], model.whole(whole, mask)[-1])
    assert context.kv.length == len(whole) == int(context.position)
    assert decoded.host_syncs <= decoded.forwards["verify"]
    assert decoded.accepted == decoded.drafted if rate == 1 else decoded.drafted > 0
    if window is None:
        assert decoded.forwards["draft"] <= len(blocks(canvas)), "no block is drafted twice"


def test_forwards_of_right_drafts_are_two_a_block(toy):
    model = toy.Model()
    canvas = Canvas.free(32, toy.VOCAB, block_size=8)
    expected = toy.reference(model, toy.prompt, canvas)
    drafting = toy.Drafting(model, 1.0, len(toy.prompt), expected)
    decoded = decode(drafting, [toy.prompt], canvas, Speculative())
    assert decoded.forwards == {"prefill": 1, "draft": 4, "verify": 4, "denoise": 0, "keep": 0}
    assert decoded.drafted == decoded.accepted == 4 * 7
    assert decoded.accepted_a_cycle == {8: 4}
    assert decoded.host_syncs == 4
    assert decoded.tokens_per_forward == decoded.values_per_forward == 4.0


@pytest.mark.parametrize("seed", range(4))
def test_what_the_causal_pass_said_is_proposed_next(toy, seed):
    """Where a draft is wrong, a block goes on as Jacobi's iteration over all of the sequence."""
    model = toy.Model(seed=seed)
    canvas = Canvas.free(32, toy.VOCAB, block_size=8)
    truth = toy.reference(model, toy.prompt, canvas)
    passes, read = 0, len(toy.prompt)
    for start, end in blocks(canvas):
        at, guess = start, (truth + 1) % toy.MASK  # which is what is drafted here
        while end - at > 2:  # the last two of a block need no proposal
            ids = torch.cat([torch.tensor(toy.prompt), truth[: at + 1], guess[at + 1 : end]])
            causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            said = model.whole(ids, causal)[read + at : -1, : toy.MASK].argmax(-1)
            right = (said == guess[at + 1 : end]).long().cumprod(0).sum()
            guess = torch.cat([guess[: at + 1], said, guess[end:]])
            at, passes = at + 1 + int(right), passes + 1
    drafting = toy.Drafting(model, 0.0, len(toy.prompt), truth)
    decoded = Speculative().decode(drafting, drafting.prefill([toy.prompt], room=32), canvas)
    assert decoded.tokens[0].tolist() == truth.tolist()
    assert decoded.forwards["draft"] == 4
    assert decoded.forwards["verify"] == passes > 4


def test_given_slots_cost_nothing(toy):
    """Jump-forward and right drafts over a canvas that is mostly given."""
    model = toy.Model()
    canvas = toy.canvas(3, slots=60, given=0.8)
    expected = toy.reference(model, toy.prompt, canvas)
    jump = decode(model, [toy.prompt], canvas, Autoregressive(jump_forward=True))
    assert jump.tokens[0].tolist() == expected.tolist()
    starts_given = bool(canvas.given[0])
    # The last value is told by the pass before, and nobody reads on.
    assert jump.forwards["keep"] == canvas.values - 1 + starts_given
    drafting = toy.Drafting(model, 1.0, len(toy.prompt), expected)
    right = decode(drafting, [toy.prompt], canvas, Speculative())
    assert right.network_evaluations <= 1 + 2 * len(blocks(canvas))
    assert right.network_evaluations <= jump.network_evaluations
    assert right.tokens[0].tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_jump_forward_takes_one_pass_a_value(toy, seed):
    model, canvas = toy.Model(seed=seed), toy.canvas(seed)
    contexts = [model.prefill([toy.prompt], room=len(canvas)) for _ in range(2)]
    plain = Autoregressive().decode(model, contexts[0], canvas, debug=True)
    jump = Autoregressive(jump_forward=True).decode(model, contexts[1], canvas, debug=True)
    assert plain.tokens.tolist() == jump.tokens.tolist()
    assert plain.forwards["keep"] == len(canvas)
    assert jump.forwards["keep"] == canvas.values + bool(canvas.given[0])
    assert jump.host_syncs == plain.host_syncs == 0
    torch.testing.assert_close(contexts[0].logits, contexts[1].logits)
    plain.report()
    assert jump.report().check_engaged().accepted == len(canvas) - jump.forwards["keep"]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("draft", [None, Greedy()])
def test_sampled_rows_in_lock_step_say_what_plain_sampling_says(toy, temperature, draft):
    model, canvas = toy.Model(), toy.canvas(5, slots=30)
    seeds = (11, 12, 13, 14)
    driver = Speculative(Gumbel(temperature, seeds), draft=draft)
    decoded = decode(model, [toy.prompt] * 4, canvas, driver, debug=True)
    expected = [
        toy.reference(model, toy.prompt, canvas, Gumbel(temperature, (seed,))) for seed in seeds
    ]
    assert decoded.tokens.tolist() == [row.tolist() for row in expected]
    assert len({tuple(row.tolist()) for row in expected}) == 4


def test_ragged_rows_of_injected_drafts(toy):
    """Rows that accept different numbers do not disturb each other."""
    model, canvas = toy.Model(), toy.canvas(8, slots=36, given=0.3)
    prompts = [toy.prompt, toy.prompt[::-1], [7] * len(toy.prompt)]
    truth = [toy.reference(model, prompt, canvas) for prompt in prompts]
    for right in range(3):
        drafting = toy.Drafting(model, 0.8, len(toy.prompt), truth[right], seed=right)
        context = drafting.prefill(prompts, room=len(canvas))
        decoded = Speculative().decode(drafting, context, canvas, debug=True)
        assert decoded.tokens.tolist() == [row.tolist() for row in truth]
        assert context.visible.sum(1).tolist() == [len(toy.prompt) + 36] * 3
        for row in range(3):
            whole = torch.cat([torch.tensor(prompts[row]), truth[row]])
            mask = torch.ones(len(whole), len(whole), dtype=torch.bool).tril()
            torch.testing.assert_close(context.logits[row], model.whole(whole, mask)[-1])


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
def test_a_row_that_stops_is_done(toy, rate):
    canvas = Canvas.free(40, toy.VOCAB, block_size=8)
    free = toy.reference(toy.Model(), toy.prompt, canvas)
    stop = int(free[13])
    first = free.tolist().index(stop)
    model = toy.Model(stop_id=stop)
    expected = [*free.tolist()[: first + 1], *[stop] * (39 - first)]
    drafting = toy.Drafting(model, rate, len(toy.prompt), free)
    other = [4] * len(toy.prompt)
    one = decode(drafting, [toy.prompt], canvas, Speculative(), debug=True)
    plain = decode(model, [toy.prompt, other], canvas, Autoregressive(), debug=True)
    both = decode(drafting, [toy.prompt, other], canvas, Speculative(), debug=True)
    assert one.tokens[0].tolist() == plain.tokens[0].tolist() == expected
    assert both.tokens.tolist() == plain.tokens.tolist()
    alone = decode(model, [toy.prompt], canvas, Autoregressive())
    assert alone.forwards["keep"] == first + 1 == alone.host_syncs


def test_what_was_given_behind_a_stop_is_not_read(toy):
    """A row that stopped knows what it said and no more, whichever way it was decoded."""
    canvas = toy.canvas(3, slots=24, given=0.6)
    free = toy.reference(toy.Model(), toy.prompt, canvas)
    values = (~canvas.given).nonzero().flatten()
    at = next(int(slot) for slot in values[2:-2] if canvas.given[slot + 1])
    model = toy.Model(stop_id=int(free[at]))
    said = free[: int(values[free[values] == free[at]][0]) + 1]
    whole = torch.cat([torch.tensor(toy.prompt), said])
    mask = torch.ones(len(whole), len(whole), dtype=torch.bool).tril()
    for driver in (Autoregressive(), Autoregressive(jump_forward=True), Speculative()):
        context = model.prefill([toy.prompt], room=24)
        decoded = driver.decode(model, context, canvas, debug=True)
        assert decoded.tokens[0, : len(said)].tolist() == said.tolist()
        assert int(context.visible.sum()) == int(context.position) == len(whole)
        torch.testing.assert_close(context.logits[0], model.whole(whole, mask)[-1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 30),
    share=st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    rate=st.sampled_from([0.0, 0.7, 1.0]),
    window=st.sampled_from([None, 1, 2, 6]),
    rows=st.integers(1, 3),
    continued=st.booleans(),
)
def test_any_canvas(toy, seed, slots, share, rate, window, rows, continued):
    model = toy.Model(seed=seed % 7)
    canvas = toy.canvas(seed, slots=slots, given=share)
    prompts = [[seed % 21, row, 5] for row in range(rows)]
    expected = [toy.reference(model, prompt, canvas) for prompt in prompts]
    drafting = toy.Drafting(model, rate, 3, expected[0], seed)
    context = drafting.prefill(prompts, room=slots)
    decoded = Speculative(window=window).decode(
        drafting, context, canvas, continued=continued, debug=True
    )
    assert decoded.tokens.tolist() == [row.tolist() for row in expected]
    assert (decoded.tokens[:, canvas.given] == canvas.tokens[canvas.given]).all()
    if rows == 1:
        plain = Autoregressive().decode(
            model, model.prefill(prompts, room=slots), canvas, continued=continued
        )
        assert decoded.network_evaluations <= max(2 * plain.network_evaluations - 1, 1)
    assert decoded.forwards["draft"] <= decoded.forwards["verify"]
    if continued:
        assert context.visible.sum(1).tolist() == [3 + slots] * rows


def test_where_one_token_may_stand_it_costs_nothing(toy):
    model, canvas = toy.Model(), toy.canvas(3, slots=40)
    allowed, kind = canvas.allowed.clone(), canvas.kind.clone()
    only = torch.zeros(1, toy.VOCAB, dtype=torch.bool)
    only[0, 7] = True
    free = (~canvas.given).nonzero().flatten()
    kind[free[::3]] = len(allowed)
    canvas = replace(canvas, kind=kind, allowed=torch.cat([allowed, only]))
    expected = toy.reference(model, toy.prompt, canvas)
    assert (expected[free[::3]] == 7).all()
    settled = canvas.settled()
    assert settled.given[free[::3]].all()
    assert settled.given.sum() == canvas.given.sum() + len(free[::3])
    assert torch.equal(canvas.settled(keep=(7,)).given, canvas.given)
    for driver in (Autoregressive(jump_forward=True), Speculative()):
        decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
        assert decoded.tokens[0].tolist() == expected.tolist()
        again = decode(model, [toy.prompt], settled, driver)
        assert decoded.forwards == again.forwards
