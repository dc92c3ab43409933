"""Parts of a block over stale keys of the rest: what that equals, and what it equals only there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import (
    Canvas,
    Confidence,
    FixedCount,
    KVCache,
    Regime,
    SectionDiffusion,
    Sequential,
    decode,
)
from fastloop.accel.decoding.commits import Credit, JointThreshold
from fastloop.accel.decoding.hierarchical import HierarchicalDiffusion
from fastloop.accel.decoding.slots import SlotStore
from fastloop.accel.decoding.windows import blocks

REGIMES = [Regime.BLOCK_CAUSAL, Regime.CAUSAL_CONTEXT]
COMMITS = [*(Confidence(tau) for tau in (0.0, 0.4, 0.9)), FixedCount(2), Sequential()]


def stale(model, prompt, canvas, driver, *, always_anew=False):
    """One row, one list of keys a slot: tokens, and how many slots each pass was over."""
    spec, n = model.spec, len(canvas)
    allowed = canvas.allowed.clone()
    allowed[:, spec.mask_id] = False
    canvas = canvas.settled()
    answer = canvas.tokens.masked_fill(~canvas.given, spec.mask_id)
    context = model.prefill([prompt], room=n)
    told, read = context.logits, []
    finished = [context.kv.read(layer) for layer in range(model.layers)]

    def run(slots, held):
        """Logits, and the keys and values of the slots, over what is finished and `held`."""
        before = finished[0][0].shape[2]
        kv = KVCache(model.layers, before + 2 * n)
        for layer, pair in enumerate(finished):
            kv.append(layer, *pair)
        for layer in range(model.layers):
            for slot in held.keys() - set(slots):
                kv.append(layer, *held[slot][layer])
        seen = kv.length
        mask = torch.ones(1, len(slots), seen + len(slots), dtype=torch.bool)
        logits = model.run(answer[slots][None], len(prompt) + torch.tensor([slots]), mask, kv)
        read.append(len(slots))
        made = {
            slot: [
                tuple(part[:, :, seen + i : seen + i + 1].clone() for part in kv.read(layer))
                for layer in range(model.layers)
            ]
            for i, slot in enumerate(slots)
        }
        return logits[0], held | made

    for start, end in blocks(canvas):
        held = {}
        if driver.seed and answer[start] == spec.mask_id:
            answer[start] = told[0].masked_fill(~allowed[canvas.kind[start]], -torch.inf).argmax()
        for first in range(start, end, driver.part):
            part = list(range(first, min(first + driver.part, end)))
            begun = False
            while (answer[part] == spec.mask_id).any():
                anew = not begun or (spec.logit_shift and answer[first] == spec.mask_id)
                slots = list(range(start, end)) if anew or always_anew else part
                logits, held = run(slots, held)
                begun = True
                logits = torch.cat([told, logits])
                rows = [1 + slot - slots[0] - spec.logit_shift for slot in part]
                here = logits[rows].masked_fill(~allowed[canvas.kind[part]], -torch.inf)
                tokens, unwritten = here.argmax(-1), answer[part] == spec.mask_id
                write = driver.commit(here[None], tokens[None], unwritten[None])[0]
                answer[part] = torch.where(write, tokens, answer[part])
        # What is kept is made of the tokens that stand, by a pass over all there is.
        ids = torch.cat([torch.tensor(prompt), answer[:end]])
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        if spec.regime is Regime.BLOCK_CAUSAL:
            for a, b in blocks(canvas):
                mask[len(prompt) + a : len(prompt) + b, len(prompt) + a : len(prompt) + b] = True
        kv = KVCache(model.layers, len(ids))
        mask = mask[: len(ids), : len(ids)]
        told = model.run(ids[None], model.places(ids[None]), mask[None], kv)[:, -1]
        finished = [kv.read(layer) for layer in range(model.layers)]
    return answer.tolist(), read, finished


@pytest.mark.parametrize("commit", COMMITS, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_keys_are_as_stale_as_they_should_be(toy, regime, commit):
    for seed, shift, part, first in ((0, 1, 3, True), (1, 0, 2, False), (2, 1, 4, False)):
        model = toy.Model(regime, seed=seed, logit_shift=shift)
        canvas = toy.canvas(seed, slots=24, largest=16)
        driver = HierarchicalDiffusion(commit=commit, seed=first, part=part)
        expected, read, finished = stale(model, toy.prompt, canvas, driver)
        context = model.prefill([toy.prompt], room=24)
        model.calls.clear()
        decoded = driver.decode(model, context, canvas, debug=True)
        assert decoded.tokens[0].tolist() == expected
        assert decoded.forwards["denoise"] == len(read) == decoded.host_syncs
        assert sum(model.calls) == sum(read) + 24
        for layer, pair in enumerate(finished):
            for mine, other in zip(context.kv.read(layer), pair, strict=True):
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_it_is_an_approximation_that_reads_less(toy):
    """Otherwise the tests here would compare one thing with itself."""
    canvas = Canvas.free(48, toy.VOCAB, block_size=16)
    driver = HierarchicalDiffusion(commit=Confidence(0.6), part=4)
    differ = 0
    for seed in range(3):
        model = toy.Model(Regime.BLOCK_CAUSAL, seed=seed)
        tokens, read, _ = stale(model, toy.prompt, canvas, driver)
        fresh, all_, _ = stale(model, toy.prompt, canvas, driver, always_anew=True)
        differ += tokens != fresh
        assert set(read) == {4, 16}
        assert set(all_) == {16}
    assert differ


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("seed", [True, False])
def test_a_part_of_a_whole_block_is_section_diffusion(toy, seed, regime):
    for shift in (1, 0) if not seed else (1,):
        model, canvas = toy.Model(regime, seed=5, logit_shift=shift), toy.canvas(5, slots=30)
        for commit in (*COMMITS, Credit(), JointThreshold()):
            plain = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=commit, seed=seed))
            driver = HierarchicalDiffusion(commit=commit, seed=seed, part=30)
            decoded = decode(model, [toy.prompt], canvas, driver)
            assert decoded.tokens.tolist() == plain.tokens.tolist()
            assert decoded.forwards == plain.forwards


@pytest.mark.parametrize("commit", COMMITS, ids=str)
def test_one_layer_is_exact(toy, commit):
    """Keys of a first layer depend on their own token only."""
    canvas = Canvas.free(32, toy.VOCAB, block_size=16)
    driver = HierarchicalDiffusion(commit=commit, part=4)
    for seed in range(3):
        model = toy.Model(Regime.BLOCK_CAUSAL, seed=seed, layers=1)
        expected, read, _ = stale(model, toy.prompt, canvas, driver, always_anew=True)
        decoded = decode(model, [toy.prompt], canvas, driver)
        assert set(read) == {16}
        assert decoded.tokens[0].tolist() == expected


def test_a_part_read_again_says_what_the_block_said(toy):
    """Right after a pass over the whole block, from tokens that are the same."""
    model = toy.Model(Regime.BLOCK_CAUSAL)
    context = model.prefill([toy.prompt], room=12)
    ids, seen = torch.tensor([[4, toy.MASK, 7, toy.MASK, 1, toy.MASK]]), len(toy.prompt) + 6
    store = SlotStore(context.kv, 6)

    def read(start, stop):
        slots = torch.arange(start, stop)[None]
        store.expect(slots, 6)
        mask = torch.ones(1, stop - start, seen, dtype=torch.bool)
        return model.forward(
            ids[:, start:stop], positions=len(toy.prompt) + slots, mask=mask, kv=store
        )

    block = read(0, 6)
    torch.testing.assert_close(read(2, 5), block[:, 2:5], rtol=0, atol=1e-12)
    ids[0, 1] = 9
    # Nobody has read slot 1 again.
    torch.testing.assert_close(read(2, 5), block[:, 2:5], rtol=0, atol=1e-12)
    assert (read(0, 2) - block[:, :2]).abs().max() > 0.01


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 24),
    share=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    commit=st.sampled_from(COMMITS),
    regime=st.sampled_from(REGIMES),
    part=st.sampled_from([1, 2, 5]),
    rows=st.integers(1, 3),
)
def test_any_canvas(toy, seed, slots, share, commit, regime, part, rows):
    """Rows that need passes over the whole block at different times do not disturb each other."""
    shift = seed % 2
    model = toy.Model(regime, seed=seed % 5, logit_shift=shift)
    canvas = toy.canvas(seed, slots=slots, given=share, largest=12)
    prompts = [[seed % 21, row, 5] for row in range(rows)]
    driver = HierarchicalDiffusion(commit=commit, seed=bool(shift), part=part)
    decoded = decode(model, prompts, canvas, driver, debug=True)
    assert (decoded.tokens[:, canvas.given] == canvas.tokens[canvas.given]).all()
    for row, prompt in enumerate(prompts):
        assert decoded.tokens[row].tolist() == stale(model, prompt, canvas, driver)[0]


def test_branches_of_a_prefix_and_rows_that_stop(toy):
    canvas = Canvas.free(30, toy.VOCAB, block_size=10)
    driver = HierarchicalDiffusion(commit=Confidence(0.5), part=3)
    free = decode(toy.Model(Regime.BLOCK_CAUSAL), [toy.prompt], canvas, driver).tokens[0]
    stop = int(free[11])
    first = free.tolist().index(stop)
    model = toy.Model(Regime.BLOCK_CAUSAL, stop_id=stop)
    other = [4] * len(toy.prompt)
    both = decode(model, [toy.prompt, other], canvas, driver, debug=True)
    alone = decode(model, [other], canvas, driver, debug=True)
    assert both.tokens[0].tolist() == [*free[: first + 1].tolist(), *[stop] * (29 - first)]
    assert both.tokens[1].tolist() == alone.tokens[0].tolist()
    context = model.prefill([toy.prompt], room=30).fork(2)
    assert driver.decode(model, context, canvas).tokens.tolist() == [both.tokens[0].tolist()] * 2


def test_what_cannot_be_is_refused(toy):
    with pytest.raises(ValueError, match="at least one slot, got 0"):
        HierarchicalDiffusion(part=0)
    with pytest.raises(ValueError, match="cannot be right on a full model"):
        decode(toy.Model(Regime.FULL), [toy.prompt], toy.canvas(0), HierarchicalDiffusion())


def test_a_policy_that_writes_nothing_is_found_out(toy):
    class Never(Sequential):
        def __call__(self, logits, tokens, unwritten):
            return torch.zeros_like(unwritten)

    with pytest.raises(RuntimeError, match=r"left slots .*open after"):
        decode(
            toy.Model(Regime.BLOCK_CAUSAL),
            [toy.prompt],
            toy.canvas(1),
            HierarchicalDiffusion(commit=Never()),
        )
