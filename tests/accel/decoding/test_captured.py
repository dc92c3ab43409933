"""Recorded passes: what the model itself says, in every driver, whatever is replayed."""

import pytest
import torch

from fastloop.accel.decoding import (
    Autoregressive,
    Captured,
    Gumbel,
    HierarchicalDiffusion,
    Regime,
    SectionDiffusion,
    SelfSpeculative,
    Skipping,
    Speculative,
    TiDAR,
    decode,
    rollouts,
)
from fastloop.accel.decoding.captured import BUCKETS
from fastloop.accel.decoding.fixed import FixedKV
from fastloop.accel.graph import recording

DRIVERS = [
    Autoregressive(),
    Autoregressive(jump_forward=True),
    Speculative(),
    Speculative(window=6),
    TiDAR(),
    SectionDiffusion(),
    HierarchicalDiffusion(),
    SelfSpeculative((1,)),
]


def test_a_pass_says_what_the_model_says(toy, fake_recorder):
    """All widths, padded and not, kept and cropped, under masks of every kind."""
    model, random = toy.Model(), torch.Generator().manual_seed(0)
    captured = Captured(model, fake_recorder())
    plain, fixed = (m.prefill([toy.prompt], room=400) for m in (model, captured))
    for new in (1, 3, 8, 9, 1, 33, 5, 128, 2):
        ids = torch.randint(toy.MASK, (1, new), generator=random)
        window = torch.rand(1, new, new, generator=random) < 0.5
        window |= torch.eye(new, dtype=torch.bool)
        seen = torch.rand(1, 1, plain.kv.length, generator=random) < 0.8
        mask = torch.cat([seen.expand(-1, new, -1), window], -1)
        positions = plain.kv.length + torch.randint(9, (1, new), generator=random)
        with recording():
            said, expected = (
                m.forward(ids, positions=positions, mask=mask, kv=context.kv)
                for m, context in ((captured, fixed), (model, plain))
            )
        torch.testing.assert_close(said, expected, rtol=0, atol=1e-12)
        for context in (plain, fixed):
            context.kv.crop(new // 2)
    assert captured.replayed == 9
    assert captured.recorder.captured == len({next(b for b in BUCKETS if b >= n)
                                              for n in (1, 3, 8, 9, 33, 5, 128, 2)})  # fmt: skip


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
def test_every_driver_writes_the_same(toy, fake_recorder, driver):
    for seed in range(2):
        model, canvas = toy.Model(seed=seed), toy.canvas(seed, slots=40)
        captured = Captured(model, fake_recorder())
        expected = decode(model, [toy.prompt], canvas, driver)
        with recording():
            decoded = decode(captured, [toy.prompt], canvas, driver, debug=True)
        assert torch.equal(decoded.tokens, expected.tokens)
        assert decoded.forwards == expected.forwards
        again = decode(captured, [toy.prompt], canvas, driver)  # in the same buffers
        assert torch.equal(again.tokens, expected.tokens)
        assert len(captured._rows) == 1


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("driver", DRIVERS[1:4], ids=lambda driver: driver.name)
def test_branches_write_the_same(toy, fake_recorder, driver, rows):
    model, canvas = toy.Model(), toy.canvas(6, slots=40)
    captured, how = Captured(model, fake_recorder()), {"seeds": range(rows), "temperature": 1.0}
    expected = rollouts(model, toy.prompt, canvas, driver, **how)
    with recording():
        decoded = rollouts(captured, toy.prompt, canvas, driver, **how, debug=True)
    assert torch.equal(decoded.tokens, expected.tokens)
    assert decoded.kv_bytes == expected.kv_bytes
    made = captured.recorder.captured
    again = rollouts(captured, toy.prompt, canvas, driver, **how)
    assert torch.equal(again.tokens, expected.tokens)
    assert captured.recorder.captured == made
    assert not captured.unrecorded


def logits(model, context, ids):
    new = ids.shape[1]
    mask = torch.ones(len(ids), new, new, dtype=torch.bool).tril()
    mask = torch.cat([torch.ones(len(ids), new, context.kv.length, dtype=torch.bool), mask], -1)
    positions = context.kv.length + torch.arange(new).expand(len(ids), -1)
    return model.forward(ids, positions=positions, mask=mask, kv=context.kv)


def test_a_row_goes_on_beside_its_branches(toy):
    """And a branch beside its own branches; both read what they read before."""
    model = toy.Model()
    captured, said = Captured(model), []
    for m in (model, captured):
        row = m.prefill([toy.prompt], room=40)
        told = [logits(m, row, torch.tensor([[1, 2, 3]]))]
        branches = row.fork(2)
        told.append(logits(m, row, torch.tensor([[4, 5]])))
        told.append(logits(m, branches, torch.tensor([[6, 7], [8, 9]])))
        row.kv.crop(4)  # into what the branches share
        told.append(logits(m, row, torch.tensor([[10, 11, 12]])))
        told.append(logits(m, branches, torch.tensor([[13], [14]])))
        alone = row.fork(1)
        told.append(logits(m, alone, torch.tensor([[15]])))
        twigs = alone.fork(2)
        told.append(logits(m, twigs, torch.tensor([[1], [2]])))
        told.append(logits(m, alone, torch.tensor([[3]])))
        said.append(told)
    for one, other in zip(*said, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_buffers_are_lent_again_only_when_nobody_holds_them(toy):
    captured = Captured(toy.Model())
    first = captured.prefill([toy.prompt], room=9)
    branches, second = first.fork(2), captured.prefill([toy.prompt], room=9)
    assert second.kv.buffers is not first.kv.buffers
    held = first.kv.buffers
    del first  # its branches still read it
    assert captured.prefill([toy.prompt], room=9).kv.buffers not in (held, second.kv.buffers)
    del branches
    assert captured.prefill([toy.prompt], room=9).kv.buffers is held


def test_what_cannot_be_recorded_is_passed_as_it_is(toy, fake_recorder):
    model = toy.Model()
    captured = Captured(model, fake_recorder())
    driver, canvas = Speculative(choice=Gumbel(1.0, (1, 2))), toy.canvas(1)
    several = [toy.prompt, toy.prompt[::-1]]
    expected = decode(model, several, canvas, driver)
    assert torch.equal(decode(captured, several, canvas, driver).tokens, expected.tokens)
    assert captured.replayed == 0
    wide = torch.arange(BUCKETS[-1] + 1)[None] % toy.MASK
    plain, fixed = (m.prefill([toy.prompt], room=9) for m in (model, captured))
    torch.testing.assert_close(logits(captured, fixed, wide), logits(model, plain, wide))
    assert fixed.kv.buffers is None  # there was no room for so many
    assert isinstance(fixed.kv, FixedKV)


def test_layers_are_left_out_of_recorded_passes_too(toy):
    model = toy.Model(Regime.BLOCK_CAUSAL)
    skipping, canvas = Skipping(model, (1,)), toy.canvas(3)
    expected = decode(skipping, [toy.prompt], canvas, SectionDiffusion())
    decoded = decode(Captured(skipping), [toy.prompt], canvas, SectionDiffusion())
    assert torch.equal(decoded.tokens, expected.tokens)


def test_what_it_refuses(toy):
    with pytest.raises(ValueError, match="keeps nothing"):
        Captured(toy.Model(Regime.FULL))
    with pytest.raises(ValueError, match="LayeredModel"):
        Captured(object())
    captured = Captured(toy.Model())
    context = captured.prefill([toy.prompt], room=9)
    mask = torch.ones(1, 2, 9, dtype=torch.bool)
    mask[0, 1, 3] = False
    with pytest.raises(ValueError, match="see different things"):
        captured.forward(
            torch.ones(1, 2).long(), positions=torch.tensor([[7, 8]]), mask=mask, kv=context.kv
        )
