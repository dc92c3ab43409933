"""Streaming equals the same with nothing kept; from left to right it is plain decoding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import (
    Autoregressive,
    Canvas,
    Confidence,
    FixedCount,
    Greedy,
    Gumbel,
    Regime,
    Sequential,
    decode,
)
from fastloop.accel.decoding.commits import Credit, JointThreshold
from fastloop.accel.decoding.streaming import PenalizedEntropy, Streaming


def with_nothing_kept(model, prompt, canvas, driver, choice=None):
    """All of it read again, reordered, in every pass; tokens, passes, and what was emitted when."""
    mask_id, shift, n = model.spec.mask_id, model.spec.logit_shift, len(canvas)
    allowed = canvas.allowed.clone()
    allowed[:, mask_id] = False
    canvas = canvas.settled()
    answer = canvas.tokens.masked_fill(~canvas.given, mask_id)
    at, emitted = 0, []
    while True:
        open_ = (answer == mask_id).nonzero().flatten().tolist()
        if not open_:
            return answer.tolist(), emitted
        end = min(open_[0] + driver.window, n)
        known = [slot for slot in range(end) if answer[slot] != mask_id]
        order = torch.tensor([*known, *(slot for slot in range(end) if answer[slot] == mask_id)])
        ids = torch.cat([torch.tensor(prompt), answer[order]])
        places = torch.cat([torch.arange(len(prompt)), len(prompt) + order])
        causal = torch.ones(1, len(ids), len(ids), dtype=torch.bool).tril()
        logits = model.run(ids[None], places[None], causal, None)[0]
        window = torch.arange(open_[0], end)
        row_of = {int(place): row for row, place in enumerate(places)}
        rows = torch.tensor([row_of[len(prompt) + slot - shift] for slot in range(open_[0], end)])
        here = logits[rows].masked_fill(~allowed[canvas.kind[window]], -torch.inf)[None]
        tokens = (choice or driver.choice)(here, len(prompt) + window[None])
        write = driver.commit(here, tokens, (answer[window] == mask_id)[None])[0]
        emitted.append(open_[0] - at)
        at = open_[0]
        answer[window] = torch.where(write, tokens[0], answer[window])


def causal_pass(model, ids):
    """Keys, values and logits of one causal pass over a sequence."""
    context = model.prefill([ids], room=1)
    return [context.kv.read(layer) for layer in range(model.layers)], context.logits


LEFT_TO_RIGHT = [Sequential(), PenalizedEntropy(threshold=0.0, penalty=1e6)]
COMMITS = [
    PenalizedEntropy(), PenalizedEntropy(0.8, 0.05), PenalizedEntropy(1.2, 0.3),
    PenalizedEntropy(0.0, 0.0), Confidence(0.3), Confidence(0.0), FixedCount(3), Sequential(),
]  # fmt: skip


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("commit", COMMITS, ids=str)
def test_kept_equals_nothing_kept(toy, commit, window, shift):
    for seed in range(2):
        model = toy.Model(Regime.CAUSAL, seed=seed, logit_shift=shift)
        canvas = toy.canvas(seed, slots=26)
        driver = Streaming(commit=commit, window=window)
        expected, emitted = with_nothing_kept(model, toy.prompt, canvas, driver)
        context = model.prefill([toy.prompt], room=26)
        decoded = driver.decode(model, context, canvas, debug=True)
        assert decoded.tokens[0].tolist() == expected
        assert decoded.forwards["denoise"] == len(emitted)
        rest = 26 - sum(emitted)
        assert decoded.forwards["keep"] == (rest > 0)
        assert sorted(decoded.accepted_a_cycle.elements()) == sorted(emitted + [rest] * (rest > 0))
        assert decoded.host_syncs == len(emitted) + (rest > 0)
        # What is kept is one causal pass over the final sequence, in its order.
        kept, logits = causal_pass(model, toy.prompt + expected)
        for layer, parts in enumerate(kept):
            for mine, other in zip(context.kv.read(layer), parts, strict=True):
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
        torch.testing.assert_close(context.logits, logits, rtol=0, atol=1e-12)
        assert int(context.position) == context.kv.length == len(toy.prompt) + 26


def test_policies_write_at_different_times(toy):
    """Otherwise the test above would compare one thing with itself."""
    model, canvas = toy.Model(Regime.CAUSAL), Canvas.free(24, toy.VOCAB, block_size=8)

    def passes(commit, window=8):
        context = model.prefill([toy.prompt], room=24)
        decoded = Streaming(commit=commit, window=window).decode(model, context, canvas)
        assert decoded.accepted == 24 - decoded.forwards["denoise"]
        return decoded.forwards["denoise"]

    assert passes(PenalizedEntropy(0.0)) == passes(Sequential()) == 24
    assert passes(Confidence(0.0)) == 3
    assert passes(Confidence(0.0), window=5) == 5
    assert 3 < passes(PenalizedEntropy(0.9, 0.0)) < passes(PenalizedEntropy(0.9, 0.2)) < 24


@pytest.mark.parametrize("commit", LEFT_TO_RIGHT, ids=str)
@pytest.mark.parametrize("window", [1, 2, 4, 8, 30])
def test_left_to_right_is_plain_decoding(toy, window, commit):
    """Where logits speak of the next slot, whatever is given and however far the window goes."""
    for choice in (Greedy(), Gumbel(0.9, (5,))):
        model, canvas = toy.Model(Regime.CAUSAL, seed=3), toy.canvas(4, slots=30)
        context = model.prefill([toy.prompt], room=30)
        decoded = Streaming(choice, commit, window).decode(model, context, canvas, debug=True)
        expected = toy.reference(model, toy.prompt, canvas, choice)
        assert decoded.tokens[0].tolist() == expected.tolist()
        assert decoded.forwards["denoise"] == canvas.settled().values


@pytest.mark.parametrize("commit", LEFT_TO_RIGHT, ids=str)
def test_left_to_right_does_not_depend_on_the_window(toy, commit):
    """Where a mask speaks of its own slot, as long as nothing is given behind it."""
    model, canvas = toy.Model(Regime.CAUSAL, logit_shift=0), Canvas.free(20, 23, block_size=8)
    said = []
    for window in (1, 2, 4, 8, 20):
        context = model.prefill([toy.prompt], room=20)
        said.append(Streaming(commit=commit, window=window).decode(model, context, canvas).tokens)
    assert all(tokens.tolist() == said[0].tolist() for tokens in said)
    ids = list(toy.prompt)
    for _ in range(20):
        mask = torch.ones(len(ids) + 1, len(ids) + 1, dtype=torch.bool).tril()
        logits = model.whole(torch.tensor([*ids, toy.MASK]), mask)[-1]
        ids.append(int(logits[: toy.MASK].argmax()))
    assert said[0][0].tolist() == ids[len(toy.prompt) :]


def test_the_score_is_entropy_and_distance():
    """Uniform over 2, 4 and 2 tokens; the first slot stands."""
    logits = torch.full((1, 4, 4), -torch.inf)
    for slot, tokens in enumerate((1, 2, 4, 2)):
        logits[0, slot, :tokens] = 0.0
    tokens, unwritten = torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[False, *[True] * 3]])

    def written(threshold, penalty):
        write = PenalizedEntropy(threshold, penalty)(logits, tokens, unwritten)
        return write.nonzero()[:, 1].tolist()

    assert written(0.0, 0.1) == written(0.7, 0.1) == written(0.0, 0.0) == [1]
    assert written(0.7, 0.0) == written(0.9, 0.1) == [1, 3]
    assert written(0.88, 0.1) == [1]  # ln 2 + 2 * 0.1 = 0.893
    assert written(1.6, 0.1) == [1, 2, 3]
    assert not PenalizedEntropy()(logits, tokens, torch.zeros_like(unwritten)).any()
    assert PenalizedEntropy(0.0).passes(5) == 5
    assert PenalizedEntropy().passes(5) is None


@pytest.mark.parametrize("shift", [0, 1])
def test_a_row_that_stops_is_done(toy, shift):
    """Even one that stops ahead of slots that are open still; nothing behind it is looked at."""
    canvas = Canvas.free(30, toy.VOCAB, block_size=5)
    driver = Streaming(commit=PenalizedEntropy(0.8, 0.02), window=6)
    free = toy.Model(Regime.CAUSAL, logit_shift=shift)
    said = driver.decode(free, free.prefill([toy.prompt], room=30), canvas).tokens[0]
    stop = int(said[11])
    model = toy.Model(Regime.CAUSAL, logit_shift=shift, stop_id=stop)
    other = [4] * len(toy.prompt)

    def run(*prompts):
        context = model.prefill(prompts, room=30)
        decoded = driver.decode(model, context, canvas, debug=True)
        return decoded, context

    one, context = run(toy.prompt)
    tokens = one.tokens[0].tolist()
    first = tokens.index(stop)
    assert first < 29
    assert tokens[first:] == [stop] * (30 - first)
    kept, logits = causal_pass(model, toy.prompt + tokens[: first + 1])
    torch.testing.assert_close(context.kv.read(2)[0], kept[2][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(context.logits, logits, rtol=0, atol=1e-12)
    both, _ = run(toy.prompt, other)
    assert both.tokens.tolist() == [tokens, run(other)[0].tokens[0].tolist()]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 24),
    share=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
    commit=st.sampled_from(COMMITS),
    window=st.sampled_from([1, 2, 7, 30]),
    rows=st.integers(1, 3),
    continued=st.booleans(),
)
def test_any_canvas(toy, seed, slots, share, commit, window, rows, continued):
    """Rows that go on at paces of their own do not disturb each other."""
    model = toy.Model(Regime.CAUSAL, seed=seed % 5, logit_shift=seed % 2)
    canvas = toy.canvas(seed, slots=slots, given=share)
    prompts = [[seed % 21, row, 5] for row in range(rows)]
    seeds = tuple(range(rows))
    driver = Streaming(Gumbel(0.7, seeds), commit, window)
    context = model.prefill(prompts, room=slots)
    decoded = driver.decode(model, context, canvas, continued=continued, debug=True)
    assert (decoded.tokens[:, canvas.given] == canvas.tokens[canvas.given]).all()
    passes = 0
    for row, prompt in enumerate(prompts):
        choice = Gumbel(0.7, (row,))
        expected, emitted = with_nothing_kept(model, prompt, canvas, driver, choice)
        assert decoded.tokens[row].tolist() == expected
        passes = max(passes, len(emitted))
        if continued:
            whole = torch.tensor(prompt + expected)
            mask = torch.ones(len(whole), len(whole), dtype=torch.bool).tril()
            torch.testing.assert_close(context.logits[row], model.whole(whole, mask)[-1])
    assert decoded.forwards["denoise"] == passes
    if not continued:
        assert decoded.forwards["keep"] == 0


def test_it_goes_on_from_what_was_read(toy):
    """An answer in two parts, the second by another driver, is the answer."""
    model, canvas = toy.Model(Regime.CAUSAL, seed=1), toy.canvas(2, slots=24)
    driver = Streaming(commit=Sequential(), window=5)
    context = model.prefill([toy.prompt], room=24)
    first = driver.decode(model, context, canvas.part(0, 11), debug=True)
    second = Autoregressive().decode(model, context, canvas.part(11, 24), debug=True)
    expected = toy.reference(model, toy.prompt, canvas)
    assert second.after(first).tokens[0].tolist() == expected.tolist()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one slot, got 0"):
        Streaming(window=0)
    with pytest.raises(ValueError, match="finite number"):
        PenalizedEntropy(penalty=float("inf"))
    for commit in (Credit(), JointThreshold()):
        with pytest.raises(ValueError, match="this window moves; use SectionDiffusion"):
            Streaming(commit=commit)


def test_a_policy_may_bend_what_is_heard_and_refuse_a_canvas(toy):
    model, canvas = toy.Model(Regime.CAUSAL), Canvas.free(6, toy.VOCAB, block_size=8)

    class OnlyTwo(Sequential):
        def heard(self, logits, unwritten):
            logits = logits.clone()
            logits[..., 2] += 1e3 * unwritten
            return logits

        def check(self, spec, canvas):
            if len(canvas) > 6:
                raise ValueError("not so long")

    driver = Streaming(commit=OnlyTwo(), window=3)
    assert decode(model, [toy.prompt], canvas, driver).tokens[0].tolist() == [2] * 6
    with pytest.raises(ValueError, match="not so long"):
        decode(model, [toy.prompt], toy.canvas(0), driver)


def test_a_policy_that_writes_nothing_is_found_out(toy):
    class Never(Sequential):
        def __call__(self, logits, tokens, unwritten):
            return torch.zeros_like(unwritten)

    with pytest.raises(RuntimeError, match=r"left slots .*open after"):
        decode(toy.Model(Regime.CAUSAL), [toy.prompt], toy.canvas(1), Streaming(commit=Never()))
