"""Answers that may end in several ways."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding import (
    Autoregressive,
    Canvas,
    FixedCount,
    ModelSpec,
    Regime,
    SectionDiffusion,
    Speculative,
    decode,
)
from fastloop.accel.decoding.answer import Answer


def test_one_or_several():
    def spec(**stops):
        return ModelSpec(Regime.CAUSAL, 9, 8, **stops)

    assert (spec().stop_ids, spec().stop_id) == ((), None)
    assert spec(stop_id=0) == spec(stop_ids=(0,))
    assert (spec(stop_ids=(5, 3)).stop_ids, spec(stop_ids=(5, 3)).stop_id) == ((5, 3), 5)
    assert replace(spec(stop_ids=(5, 3)), digest="x").stop_ids == (5, 3)
    assert replace(spec(stop_id=5), stop_ids=(3, 4)).stop_id == 3


def test_each_of_them_ends_an_answer(toy):
    spec = ModelSpec(Regime.CAUSAL, toy.VOCAB, toy.MASK, stop_ids=(7, 4))
    free = Canvas.free(5, toy.VOCAB, block_size=5)
    canvas = replace(free, given=torch.arange(5) == 1, tokens=free.tokens + 4)
    answer = Answer(spec, canvas, 3, "cpu")
    assert answer.stoppable
    answer.tokens[:] = torch.tensor([[1, 4, 4, 5, 7], [1, 4, 7, 4, 6], [1, 4, 2, 3, 5]])
    assert answer.finished().tolist() == [[1, 4, 4, 7, 7], [1, 4, 7, 7, 7], [1, 4, 2, 3, 5]]
    only = torch.zeros(1, toy.VOCAB, dtype=torch.bool)
    only[0, [4, toy.MASK]] = True  # a slot that can only end the answer is not given
    ending = Answer(spec, replace(canvas, allowed=only), 1, "cpu")
    assert ending.values == [True, False, True, True, True]
    none = replace(canvas, allowed=free.allowed & (torch.arange(toy.VOCAB) > 7))
    assert not Answer(spec, none, 1, "cpu").stoppable


@pytest.mark.parametrize("driver", [Speculative(), Autoregressive(jump_forward=True)], ids=str)
def test_a_row_stops_at_whichever_comes_first(toy, driver):
    canvas = Canvas.free(24, toy.VOCAB, block_size=6)
    prompts = [toy.prompt, toy.prompt[::-1]]
    told = decode(toy.Model(), prompts, canvas, Autoregressive()).tokens
    first, second = int(told[0, 9]), int(told[1, 4])
    model = toy.Model()
    model.spec = replace(model.spec, stop_ids=(first, second))
    expected = told.clone()
    for row in expected:
        at = int(torch.isin(row, torch.tensor([first, second])).long().argmax())
        row[at + 1 :] = first
    for way in (driver, Autoregressive()):
        assert torch.equal(decode(model, prompts, canvas, way, debug=True).tokens, expected)


def test_a_block_with_either_is_the_last(toy):
    canvas = Canvas.free(24, toy.VOCAB, block_size=6)
    driver = SectionDiffusion(commit=FixedCount(1))
    told = decode(toy.Model(Regime.BLOCK_CAUSAL), [toy.prompt], canvas, driver)
    other = next(t for t in range(toy.MASK) if t not in told.tokens)
    model = toy.Model(Regime.BLOCK_CAUSAL)
    model.spec = replace(model.spec, stop_ids=(other, int(told.tokens[0, 3])))
    stopped = decode(model, [toy.prompt], canvas, driver)
    assert stopped.forwards["denoise"] == 6
    end = told.tokens[0].tolist().index(int(told.tokens[0, 3]))
    assert stopped.tokens[0, : end + 1].tolist() == told.tokens[0, : end + 1].tolist()
    assert (stopped.tokens[0, end + 1 :] == other).all()
