"""Noise is a function of seed, position and token; what may not stand is never chosen."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding import Canvas, Greedy, Gumbel, ModelSpec, Regime, answer
from fastloop.accel.decoding.answer import Answer


def test_samples_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, 0.5], dtype=torch.float64)
    count, temperature = 40_000, 0.7
    positions = torch.arange(count)[None]
    tokens = Gumbel(temperature, (5,))(logits.expand(1, count, -1), positions)
    share = tokens.flatten().bincount(minlength=5) / count
    expected = (logits / temperature).softmax(-1)
    # Five standard errors of a share.
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()
    assert share[3] == 0
    neighbours = (tokens[0, 1:] == tokens[0, :-1]).double().mean()
    assert abs(float(neighbours - expected.square().sum())) < 0.02


def test_noise_knows_neither_rows_nor_order():
    logits = torch.zeros(3, 6, 50)
    positions = torch.tensor([[4, 9, 2, 4, 0, 7]] * 3)
    chosen = Gumbel(1.0, (1, -2, 1 << 70))(logits, positions)
    assert chosen[:, 0].tolist() == chosen[:, 3].tolist()
    assert len(set(chosen.flatten().tolist())) > 8
    alone = Gumbel(1.0, (-2,))(logits[:1, 2:3], positions[:1, 2:3])
    assert alone[0, 0] == chosen[1, 2]


def test_cold_is_greedy():
    logits = torch.randn(2, 5, 9)
    cold = Gumbel(0.0, (1, 2))(logits, torch.zeros(2, 5, dtype=torch.int64))
    assert torch.equal(cold, logits.argmax(-1))


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        Gumbel(-1.0, (1,))
    with pytest.raises(ValueError, match="temperature"):
        Gumbel(float("nan"), (1,))
    with pytest.raises(ValueError, match="2 rows need as many seeds, got 1"):
        Gumbel(1.0, (1,))(torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64))


def test_bad_canvases_are_refused(toy):
    spec = ModelSpec(Regime.CAUSAL, toy.VOCAB, toy.MASK)
    free = Canvas.free(3, toy.VOCAB, block_size=2)
    with pytest.raises(ValueError, match="made for 5 tokens"):
        Answer(spec, Canvas.free(3, 5, block_size=2), 1, "cpu")
    only = torch.zeros(1, toy.VOCAB, dtype=torch.bool)
    only[0, toy.MASK] = True
    parts = (free.block, free.section, free.kind)
    with pytest.raises(ValueError, match="nothing but the mask id"):
        Answer(spec, Canvas(free.tokens, free.given, *parts, only), 1, "cpu")
    masks = torch.full_like(free.tokens, toy.MASK)
    with pytest.raises(ValueError, match="holds the mask id"):
        Answer(spec, Canvas(masks, ~free.given, *parts, free.allowed), 1, "cpu")


@pytest.mark.parametrize("choice", [Greedy(), Gumbel(0.8, (3, 9))])
def test_few_tokens_are_chosen_from_as_from_all(toy, monkeypatch, choice):
    canvas = toy.canvas(5, slots=30)
    allowed = torch.zeros(3, toy.VOCAB, dtype=torch.bool)
    allowed[0, [1, 4]] = allowed[1, [2, 3, 6]] = True
    allowed[2] = True  # of a kind that no slot has
    canvas = replace(canvas, allowed=allowed, kind=torch.arange(30) % 2)
    spec, rows = toy.Model().spec, 2
    logits = torch.randn(rows, 30, toy.VOCAB, dtype=torch.float64)
    logits[:, ::4] = 1.0  # ties
    slots, positions = torch.arange(30)[None], torch.arange(30).expand(rows, -1)
    few = Answer(spec, canvas, rows, "cpu")
    assert few._choices[0].shape[1] == 3
    monkeypatch.setattr(answer, "_few_tokens", lambda *_: None)
    full = Answer(spec, canvas, rows, "cpu")
    chosen = few.choose(choice, logits, slots, positions)
    assert torch.equal(chosen, full.choose(choice, logits, slots, positions))
    assert allowed[canvas.kind].gather(1, chosen.T).all()
