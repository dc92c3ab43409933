"""Filters: what they decide, what they are fitted to, and where they are refused."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding import Canvas, Regime, SectionDiffusion, decode
from fastloop.accel.decoding.commits import (
    BlockFilter,
    Calibration,
    Confidence,
    FixedCount,
    Learned,
)
from fastloop.accel.decoding.learning import Examples, collect, fit

DIGEST = "toy"


@pytest.fixture
def model(toy):
    model = toy.Model(Regime.BLOCK_CAUSAL, seed=2)
    model.spec = replace(model.spec, digest=DIGEST)
    return model


def line(threshold, slots=6, slope=1e6, digest=DIGEST):
    """A filter that says yes where a confidence reaches the threshold."""
    eye = torch.eye(slots)
    return BlockFilter(
        Calibration(digest, slots), eye, torch.zeros(slots),
        slope * eye, torch.full((slots,), -slope * threshold),
    )  # fmt: skip


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_filter_that_is_a_threshold(toy, model, threshold, ragged):
    block = torch.arange(24) // 6
    if ragged:  # 4, 2, 6, 6, 6
        block = block + (torch.arange(24) >= 4)
    canvas = replace(toy.canvas(1), block=block)
    commit = Learned(line(threshold), 0.5)
    learned = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=commit))
    plain = decode(model, [toy.prompt], canvas, SectionDiffusion(commit=Confidence(threshold)))
    assert learned.tokens.tolist() == plain.tokens.tolist()
    assert learned.forwards == plain.forwards
    assert learned.step_map.tolist() == plain.step_map.tolist()


def test_a_filter_that_says_no_writes_one_a_pass_and_one_that_says_yes_all(toy, model):
    canvas = Canvas.free(18, toy.VOCAB, block_size=6)
    for threshold, plain in ((2.0, FixedCount(1)), (-1.0, Confidence(0.0))):
        a, b = (
            decode(model, [toy.prompt], canvas, SectionDiffusion(commit=commit))
            for commit in (Learned(line(threshold)), plain)
        )
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.step_map.tolist() == b.step_map.tolist()


def test_what_is_written_counts_as_certain():
    seen = []

    class Watching(BlockFilter):
        def __call__(self, certain):
            seen.append(certain)
            return super().__call__(certain)

    plain = line(0.7, slots=3)
    watching = Watching(
        plain.calibration, plain.hidden_weight, plain.hidden_bias, plain.weight, plain.bias
    )
    logits = torch.tensor([[[0.75, 0.25], [0.4, 0.6], [0.0, 0.0]]]).log()
    unwritten = torch.tensor([[True, True, False]])  # nothing may stand in the last
    write = Learned(watching)(logits, logits.argmax(-1), unwritten)
    assert write.tolist() == [[True, False, False]]
    torch.testing.assert_close(seen[0], torch.tensor([[0.75, 0.6, 1.0]]))
    # A block of two slots has no third one.
    Learned(watching)(logits[:, :2], logits[:, :2].argmax(-1), unwritten[:, :2])
    torch.testing.assert_close(seen[1], torch.tensor([[0.75, 0.6, 1.0]]))


def test_another_model_or_block_is_refused_before_the_first_pass(toy, model):
    canvas = Canvas.free(18, toy.VOCAB, block_size=6)
    for filtered, where, match in (
        (line(0.5, digest="another"), canvas, "of the model 'another'"),
        (line(0.5, slots=4), canvas, "blocks of 4 slots"),
        (line(0.5), Canvas.free(20, toy.VOCAB, block_size=7), "the largest of the canvas has 7"),
    ):
        with pytest.raises(ValueError, match=match):
            decode(model, [toy.prompt], where, SectionDiffusion(commit=Learned(filtered)))
    assert not model.calls
    Learned(line(0.5)).check(model.spec, canvas)


def test_notes_of_the_hasty_decoding(toy, model):
    canvas = replace(toy.canvas(3, given=0.2), block=torch.arange(24) // 6)
    prompts = [toy.prompt, [8, 1, 3, 3, 19, 2, 0]]
    examples = collect(model, prompts, canvas, 6)
    count = len(examples.certain)
    assert examples.certain.shape == examples.right.shape == examples.open.shape == (count, 6)
    assert examples.digest == DIGEST
    assert not (examples.right & ~examples.open).any()
    assert (examples.certain[~examples.open] == 1).all()
    assert ((examples.certain > 0) & (examples.certain <= 1)).all()
    assert examples.right.any()
    assert (examples.open & ~examples.right).any()
    # A row of notes for each row and pass; a block's first has all its values open.
    values = (~canvas.given).view(-1, 6).sum(1)
    assert int(examples.open.sum()) >= 2 * int(values.sum())
    careful = decode(model, prompts, canvas, SectionDiffusion(commit=FixedCount(1)))
    assert count < 2 * careful.forwards["denoise"]


def test_hasty_decoding_ends_in_the_careful_answer(toy, model, monkeypatch):
    from fastloop.accel.decoding import learning

    answers = []

    def kept(*args):
        answers.append(decode(*args))
        return answers[-1]

    monkeypatch.setattr(learning, "decode", kept)
    for seed in range(3):
        canvas = replace(toy.canvas(seed, given=0.2), block=torch.arange(24) // 6)
        collect(model, [toy.prompt], canvas, 6)
        careful, hasty = answers[-2:]
        assert careful.tokens.tolist() == hasty.tokens.tolist()
        assert 4 < hasty.forwards["denoise"] < careful.forwards["denoise"]


def test_no_notes_are_taken_of_a_row_that_has_stopped(toy):
    canvas = Canvas.free(18, toy.VOCAB, block_size=6)
    plain = toy.Model(Regime.BLOCK_CAUSAL, seed=2)
    told = decode(plain, [toy.prompt], canvas, SectionDiffusion(commit=FixedCount(1)))
    model = toy.Model(Regime.BLOCK_CAUSAL, seed=2, stop_id=int(told.tokens[0, 2]))
    model.spec = replace(model.spec, digest=DIGEST)
    other = [4] * len(toy.prompt)
    alone = [len(collect(model, [prompt], canvas, 6).certain) for prompt in (toy.prompt, other)]
    both = collect(model, [toy.prompt, other], canvas, 6)
    assert len(both.certain) == sum(alone)


def test_a_model_without_a_name_and_ragged_blocks_are_refused(toy, model):
    canvas = Canvas.free(18, toy.VOCAB, block_size=6)
    with pytest.raises(ValueError, match="without a digest"):
        collect(toy.Model(), [toy.prompt], canvas, 6)
    with pytest.raises(ValueError, match="for blocks of 9 slots, the largest of the canvas has 6"):
        collect(model, [toy.prompt], canvas, 9)
    with pytest.raises(ValueError, match="ten examples"):
        fit(Examples(DIGEST, torch.zeros(9, 6), torch.zeros(9, 6).bool(), torch.ones(9, 6).bool()))


def test_a_filter_learns_what_can_be_known():
    random = torch.Generator().manual_seed(0)
    certain = torch.rand(400, 4, generator=random)
    # Right where a slot and the one before are sure: no threshold on each alone can tell.
    right = (certain + certain.roll(1, 1)) > 1.2
    open_ = torch.rand(400, 4, generator=random) < 0.8
    examples = Examples(DIGEST, certain, right & open_, open_)
    fitted = fit(examples, epochs=200, learning_rate=0.03, hidden=12)
    said = fitted(certain).sigmoid() >= 0.5
    assert (said == right)[open_].float().mean() > 0.93
    assert fitted.calibration.precision > 0.95
    assert fitted.calibration.examples == 360
    again = fit(examples, epochs=200, learning_rate=0.03, hidden=12)
    assert torch.equal(again.weight, fitted.weight)


def test_a_fitted_filter_decodes(toy, model):
    canvas = Canvas.free(24, toy.VOCAB, block_size=6)
    prompts = [[a, b, 3] for a in range(4) for b in range(2)]
    fitted = fit(collect(model, prompts, canvas, 6), epochs=200)
    decoded = decode(model, prompts, canvas, SectionDiffusion(commit=Learned(fitted, 0.5)))
    assert toy.MASK not in decoded.tokens
    assert not fitted.weight.requires_grad


def test_shapes_have_to_fit():
    eye, four = torch.eye(4), torch.zeros(4)
    with pytest.raises(ValueError, match=r"weight of a filter for blocks of 5"):
        BlockFilter(Calibration(DIGEST, 5), eye, four, eye, four)
    with pytest.raises(ValueError, match="float32"):
        BlockFilter(Calibration(DIGEST, 4), eye.double(), four, eye, four)
