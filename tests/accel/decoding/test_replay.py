"""Passes made again say what they said."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding import (
    Autoregressive,
    Canvas,
    Exactness,
    Gumbel,
    Regime,
    SectionDiffusion,
    decode,
)
from fastloop.accel.decoding.commits import (
    Confidence,
    Credit,
    Factor,
    FixedCount,
    JointThreshold,
    Sequential,
)
from fastloop.accel.decoding.replay import replay
from fastloop.accel.decoding.windows import blocks


class Recorded:
    """A model that remembers what its denoising passes said of the slots of a block."""

    def __init__(self, model, canvas, mask_id):
        self.model, self.spec, self.mask_id = model, model.spec, mask_id
        self.blocks, self.rounds = blocks(canvas), []
        self.read = 0

    def prefill(self, prompts, *, room):
        self.context = self.model.prefill(prompts, room=room)
        self.prompt = self.context.kv.length
        return self.context

    def forward(self, ids, *, positions, mask, kv):
        start = kv.length - self.prompt
        logits = self.model.forward(ids, positions=positions, mask=mask, kv=kv)
        if mask[0, 0, -1] and (ids == self.mask_id).any():  # sees what is behind it
            said = logits
            if self.spec.logit_shift:
                said = torch.cat([self.context.logits[:, None], logits[:, :-1]], 1)
            self.rounds.append((start, said))
        return logits


def spoken(recorded, canvas, step_map):
    """Logits (B, n, V) of each slot in the pass after which it was written, as recorded."""
    told = torch.zeros(*step_map.shape, 23, dtype=torch.float64)
    for start, end in blocks(canvas):
        of_block = [said for first, said in recorded.rounds if first == start]
        for step, said in enumerate(of_block):
            here = step_map[:, start:end] == step
            told[:, start:end] = torch.where(here[..., None], said, told[:, start:end])
    return told


COMMITS = [Confidence(0.4), FixedCount(2), Sequential(), Factor(1.5), Credit(Confidence(0.4), 2.0)]


@pytest.mark.parametrize("commit", COMMITS, ids=str)
@pytest.mark.parametrize("regime", [Regime.BLOCK_CAUSAL, Regime.CAUSAL_CONTEXT])
@pytest.mark.parametrize(("shift", "seed"), [(0, False), (1, False), (1, True)])
def test_every_round_is_that_of_the_rollout(toy, commit, regime, shift, seed):
    prompts = [toy.prompt, [8, 1, 3, 3, 19, 2, 0], [4] * 7]
    for number in range(2):
        model = toy.Model(regime, seed=number, logit_shift=shift)
        canvas = toy.canvas(number, slots=26, given=0.2)
        driver = SectionDiffusion(Gumbel(0.6, (1, 2, 3)), commit, seed=seed)
        recorded = Recorded(model, canvas, toy.MASK)
        decoded = decode(recorded, prompts, canvas, driver)
        expected = spoken(recorded, canvas, decoded.step_map)
        model.calls.clear()
        again = replay(model, prompts, canvas, decoded)
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-12)
        wrote = decoded.step_map >= 0
        assert torch.equal(expected.any(-1), wrote)
        # As many passes as the longest block took, not as many as all blocks.
        assert len(model.calls) == int(decoded.step_map.max()) + 1
        assert len(recorded.rounds) > len(model.calls)


def test_rows_that_stopped(toy):
    """What a row wrote behind its stop id, in that block, was seen by its other slots."""
    canvas = Canvas.free(30, toy.VOCAB, block_size=5)
    free = decode(toy.Model(Regime.BLOCK_CAUSAL), [toy.prompt], canvas, SectionDiffusion())
    stop = int(free.tokens[0, 10])
    model = toy.Model(Regime.BLOCK_CAUSAL, stop_id=stop)
    prompts = [toy.prompt, [4] * len(toy.prompt)]
    recorded = Recorded(model, canvas, toy.MASK)
    decoded = decode(recorded, prompts, canvas, SectionDiffusion())
    assert (decoded.step_map[0] == -1).any()
    assert not torch.equal(decoded.tokens, decoded.written)
    expected = spoken(recorded, canvas, decoded.step_map)
    again = replay(model, prompts, canvas, decoded)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-12)


def test_another_answer_says_something_else(toy):
    """The comparison above can fail."""
    model, canvas = toy.Model(Regime.BLOCK_CAUSAL), toy.canvas(1)
    decoded = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=FixedCount(1)))
    told = replay(model, [toy.prompt], canvas, decoded)
    slot = int((decoded.step_map[0] == 0).long().argmax())
    other = decoded.written.clone()
    other[0, slot] = (other[0, slot] + 1) % toy.MASK
    later = replay(model, [toy.prompt], canvas, replace(decoded, written=other))
    assert (later - told).abs().max() > 1e-3


def test_what_cannot_be_made_again_is_refused(toy):
    canvas = toy.canvas(0)

    def refused(model, driver, match, **changes):
        decoded = decode(model, [toy.prompt], canvas, driver)
        with pytest.raises(ValueError, match=match):
            replay(model, [toy.prompt], canvas, replace(decoded, **changes))

    blockwise = toy.Model(Regime.BLOCK_CAUSAL)
    edits = SectionDiffusion(commit=JointThreshold(0.5))
    refused(toy.Model(), Autoregressive(), "no step map")
    refused(blockwise, edits, "no step map")
    stale = {"exactness": Exactness.APPROXIMATE_KV}
    refused(blockwise, SectionDiffusion(), "not exact", **stale)
    refused(toy.Model(Regime.FULL), SectionDiffusion(), "sees the whole answer")
    refused(toy.Model(Regime.PREFIX_LM), SectionDiffusion(), "sees the whole answer")
