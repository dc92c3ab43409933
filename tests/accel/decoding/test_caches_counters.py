"""How many passes and slots each cache takes, in closed form: P 8, n 16, a slot a pass."""

from itertools import zip_longest

import pytest
import torch

from fastloop.accel.decoding import Canvas, Confidence, Regime, Sequential
from fastloop.accel.decoding.cached import CachedDiffusion
from fastloop.accel.decoding.caches import (
    DKVDecode,
    DKVGreedy,
    DualCache,
    NoCache,
    PrefixCache,
    Progress,
    VicinityCache,
    WindowDiffusion,
)
from fastloop.accel.decoding.passes import Passes, bidirectional
from fastloop.accel.decoding.scheduling import SlidingWindow

PROMPT, SLOTS, ALL = 8, 16, 24


def fed(toy, cache, commit=None, block=SLOTS, shift=0, regime=Regime.FULL, **parts):
    """Slots of each pass."""
    model = toy.Model(regime, seed=2, logit_shift=shift)
    canvas = Canvas.free(SLOTS, toy.VOCAB, block_size=block)
    context = model.prefill([list(range(PROMPT))], room=SLOTS)
    driver = CachedDiffusion(commit=commit or Confidence(1.1), cache=cache, **parts)
    decoded = driver.decode(model, context, canvas, debug=True)
    assert decoded.forwards["denoise"] == len(model.calls)
    return model.calls


@pytest.mark.parametrize(("refresh", "slots"), [(1, 384), (2, 272), (4, 212), (8, 182)])
def test_dkv_decode(toy, refresh, slots):
    counts = fed(toy, DKVDecode(refresh))
    assert len(counts) == SLOTS
    assert sum(counts) == slots


def test_dkv_decode_starts_anew_with_each_block(toy):
    # 24, 24, then what is open and what was just written: 24 - 8 - (passes before - 1).
    expected = [24, 24, 15, 14, 24, 24, 11, 10, 24, 24, 7, 6, 24, 24, 3, 2]
    assert fed(toy, DKVDecode(8), block=4) == expected


def test_none(toy):
    assert fed(toy, NoCache()) == [ALL] * SLOTS
    assert fed(toy, NoCache(), regime=Regime.PREFIX_LM) == [SLOTS] * SLOTS


def test_prefix(toy):
    for regime, whole in ((Regime.FULL, ALL), (Regime.PREFIX_LM, SLOTS)):
        expected = [SLOTS - t // 4 * 4 if t % 4 else whole for t in range(SLOTS)]
        assert fed(toy, PrefixCache(), block=4, regime=regime) == expected


def test_dual(toy):
    assert fed(toy, DualCache(), block=4) == [ALL, 4, 4, 4] * 4
    # With a delay of 3 slots on either side, where there are some.
    assert fed(toy, DualCache(3), block=4) == [ALL, 10, 10, 10] * 3 + [ALL, 7, 7, 7]


def test_logits_of_the_next_slot(toy):
    """The first slot of a block is told by the one before: one more, as long as it is open."""
    counts = fed(toy, DualCache(), Sequential(), block=4, shift=1)
    assert counts == [ALL, 4, 4, 4] * 4
    model = toy.Model(Regime.FULL, seed=2, logit_shift=1)
    canvas = Canvas.free(4, toy.VOCAB, block_size=4)
    context = model.prefill([list(range(PROMPT))], room=4)

    class Backward(Sequential):
        def __call__(self, logits, tokens, unwritten):
            return super().__call__(logits, tokens, unwritten.flip(1)).flip(1)

    CachedDiffusion(commit=Backward(), cache=DualCache()).decode(model, context, canvas)
    assert model.calls == [PROMPT + 4, 5, 5, 5]


def test_window_diffusion(toy):
    # The first 4 of 16 - t open slots, and one for each pass since everything was read.
    expected = [min(4, SLOTS - t) + t % 4 if t % 4 else ALL for t in range(SLOTS)]
    assert fed(toy, WindowDiffusion(4, 8, 4), Sequential()) == expected


@pytest.mark.parametrize("scaffold", [False, True])
def test_window_diffusion_sees_less(toy, scaffold):
    """Masks behind the buffer are hidden, and not even handed to attention; what is given is not.

    Here the last slot may be given.
    """
    model, seen = toy.Model(Regime.FULL, seed=2, logit_shift=0), []
    forward = model.forward
    model.forward = lambda *args, **kwargs: (
        seen.append((kwargs["mask"].shape[2], int(kwargs["mask"][0, 0].sum()))),
        forward(*args, **kwargs),
    )[1]
    context = model.prefill([list(range(PROMPT))], room=SLOTS)
    canvas = Canvas.free(SLOTS, toy.VOCAB, block_size=SLOTS)
    canvas.given[-1] = scaffold
    driver = CachedDiffusion(commit=Sequential(), cache=WindowDiffusion(2, 5, 4))
    driver.decode(model, context, canvas)
    values = SLOTS - scaffold
    looked = [PROMPT + min(values, t + 5) + scaffold if t % 4 else ALL for t in range(values)]
    assert [some for _, some in seen] == looked
    if not scaffold:
        assert [width for width, _ in seen] == looked


def test_dkv_greedy(toy):
    # The next slot, up to 4 open neighbors, and the one just written.
    expected = [1 + min(4, SLOTS - t - 1) + 1 if t % 2 else ALL for t in range(SLOTS)]
    assert fed(toy, DKVGreedy(2, 4), Confidence(0.0)) == expected


def test_dkv_greedy_takes_neighbors_from_left_and_right_by_turns():
    random = torch.Generator().manual_seed(0)
    for neighbors in range(6):
        cache = DKVGreedy(10, neighbors)
        open_ = torch.rand(8, 20, generator=random) < 0.4
        open_[:, 7] = True
        progress = Progress(8, 0, 20, "cpu")
        none = torch.zeros(8, dtype=torch.bool)
        progress.look(open_, torch.ones_like(open_), none)
        progress.passed(torch.zeros_like(open_))
        progress.look(open_, torch.ones_like(open_), none)
        plan = cache(progress)
        for row in range(8):
            (following,) = plan.writable[row].nonzero().flatten().tolist()
            masks = open_[row].nonzero().flatten().tolist()
            left = [slot for slot in masks if slot < following][::-1]
            right = [slot for slot in masks if slot > following]
            turns = [slot for both in zip_longest(left, right) for slot in both if slot is not None]
            expected = sorted([following, *turns[:neighbors]])
            assert plan.queried[row].nonzero().flatten().tolist() == expected
            assert cache.order(20)[following] == cache.order(20)[masks].max()


def test_vicinity(toy):
    cache = VicinityCache(before=2, after=3, warmup=2)
    inner, last = [ALL, 9, 9, 9], [ALL, 6, 6, 6]
    assert fed(toy, cache, block=4) == [ALL, ALL, 9, 9, *inner, *inner, *last]
    often = VicinityCache(before=2, after=3, warmup=0, refresh=2)
    assert fed(toy, often, block=4) == [ALL, 9] * 6 + [ALL, 6] * 2


def test_a_sliding_window_renews_after_so_many_slots(toy):
    # Left to right, 4 open slots: the last one written, and those.
    window = SlidingWindow(masks=4, slots=8, renew=5)
    counts = fed(toy, DualCache(), Sequential(), window=window)
    assert counts == [ALL if t % 5 == 0 else min(5, SLOTS - t + 1) for t in range(SLOTS)]


@pytest.mark.parametrize(
    "cache", [NoCache(), PrefixCache(), DualCache(), DKVDecode(), VicinityCache()], ids=str
)
def test_at_once(toy, cache):
    """Where all of a block is written after a pass, no cache is ever used."""
    assert fed(toy, cache, Confidence(0.0), block=4) == [ALL] * 4


def test_memory(toy):
    for regime, slots in ((Regime.FULL, ALL), (Regime.PREFIX_LM, SLOTS + 2 * PROMPT)):
        model = toy.Model(regime)
        context = model.prefill([list(range(PROMPT))], room=SLOTS)
        canvas = Canvas.free(SLOTS, toy.VOCAB, block_size=4)
        decoded = CachedDiffusion(cache=DualCache()).decode(model, context, canvas)
        # Keys and values of float64, and one slot for what fills up rows.
        assert decoded.kv_bytes == 3 * 2 * 2 * 6 * 8 * (slots + 1)


def test_slots_of_plain_passes_are_counted(toy):
    model = toy.Model(Regime.CAUSAL_CONTEXT)
    passes = Passes(model, model.prefill([toy.prompt, toy.prompt], room=9))
    for new in (4, 5):
        ids = torch.zeros(2, new, dtype=torch.int64)
        passes.run("draft", ids, bidirectional(new, "cpu"))
        passes.drop(new)
    assert passes.tokens_fed == 9
