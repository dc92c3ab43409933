"""LaViDa's timestep-shift schedule: published counts, and what follows for any block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import Canvas, SectionDiffusion, decode
from fastloop.accel.decoding.commits.fixed_count import FixedCount
from fastloop.accel.decoding.commits.shifted import Shifted, shifted_counts
from fastloop.accel.decoding.model import Regime

# values, passes, shift, counts: of LaViDa's own function.
PUBLISHED = [
    (32, 16, 1 / 3, [6, 4, 4, 2, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    (32, 16, 0.33, [6, 4, 4, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    (32, 16, 3, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4, 4, 5]),
    (32, 8, 1 / 3, [10, 6, 5, 3, 3, 2, 2, 1]),
    (64, 16, 1 / 3, [11, 9, 7, 5, 5, 5, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1]),
]


@pytest.mark.parametrize(("values", "passes", "shift", "counts"), PUBLISHED)
def test_published_counts(values, passes, shift, counts):
    assert shifted_counts(values, passes, shift) == counts
    policy = Shifted(shift, passes / values)
    assert policy.passes(values) == policy.begin(values).passes(values) == passes


@given(st.integers(0, 200), st.integers(0, 220), st.floats(0.02, 20))
@settings(max_examples=200, deadline=None)
def test_counts_add_up(values, passes, shift):
    counts = shifted_counts(values, passes, shift)
    assert len(counts) == min(values, passes)
    assert all(count >= 1 for count in counts)
    assert sum(counts) == (values if passes else 0)


def test_the_recommended_direction_writes_early():
    early, even, late = (
        torch.tensor(shifted_counts(64, 16, shift)).cumsum(0) for shift in (1 / 3, 1, 3)
    )
    assert (early >= even).all()
    assert (even >= late).all()
    assert shifted_counts(64, 16, 1.0) == [4] * 16
    assert Shifted().shift < 1


def test_each_pass_writes_the_surest():
    logits = torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(0)).double()
    tokens = logits.argmax(-1)
    unwritten = torch.ones(2, 12, dtype=torch.bool)
    unwritten[:, 3] = False
    sure = logits.softmax(-1).amax(-1)
    block = Shifted(1 / 3, 4 / 11).begin(11)
    for count in shifted_counts(11, 4, 1 / 3):
        write = block(logits, tokens, unwritten)
        assert write.sum(1).tolist() == [count, count]
        assert not (write & ~unwritten).any()
        left = unwritten & ~write
        for row in range(2):
            assert (sure[row][left[row]] <= sure[row][write[row]].min()).all()
        unwritten = left
    assert not unwritten.any()


@pytest.mark.parametrize("regime", [Regime.PREFIX_LM, Regime.FULL, Regime.BLOCK_CAUSAL])
def test_passes_of_a_decode(toy, regime):
    """All blocks of a canvas are filled in the passes that were planned, and no host read."""
    model = toy.Model(regime, logit_shift=0)
    canvas = toy.canvas(3, slots=30, given=0.3)
    policy = Shifted(1 / 3, 0.4)
    decoded = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=policy))
    settled = canvas.settled()
    planned = [
        policy.passes(int((~settled.given & (settled.block == block)).sum()))
        for block in settled.block.unique().tolist()
    ]
    assert decoded.forwards["denoise"] == sum(planned)
    assert toy.MASK not in decoded.tokens
    assert decoded.host_syncs == 0


def test_a_slot_a_pass(toy):
    """All slots in passes of their own: the same as any schedule that does so."""
    model = toy.Model(Regime.PREFIX_LM, logit_shift=0)
    canvas = Canvas.free(16, toy.VOCAB, block_size=8, banned=(toy.MASK,))
    one, other = (
        decode(model, [toy.prompt], canvas, SectionDiffusion(commit=commit)).tokens
        for commit in (Shifted(share=1.0), FixedCount(1))
    )
    assert torch.equal(one, other)


def test_blocks_do_not_share_counts(toy):
    """The policy is a value: decoding twice with it gives the same."""
    model = toy.Model(Regime.PREFIX_LM, logit_shift=0)
    canvas = Canvas.free(16, toy.VOCAB, block_size=8, banned=(toy.MASK,))
    driver = SectionDiffusion(commit=Shifted())
    first, again = (decode(model, [toy.prompt], canvas, driver) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    assert first.forwards["denoise"] == again.forwards["denoise"] == 8
    with pytest.raises(RuntimeError, match="begin"):
        driver.commit(torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), torch.ones(1, 2).bool())


@pytest.mark.parametrize("wrong", [(0.0, 0.5), (-1.0, 0.5), (float("nan"), 0.5), (1.0, 0.0),
                                   (1.0, 1.5), (float("inf"), 0.5)])  # fmt: skip
def test_refused(wrong):
    with pytest.raises(ValueError, match="above 0"):
        Shifted(*wrong)
