"""What fills up a row is not computed, and changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding.layered import layers_of
from fastloop.accel.decoding.packing import Packing


@settings(max_examples=40, deadline=None)
@given(widths=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any), axes=st.booleans())
def test_there_and_back(widths, axes):
    rows, width = len(widths), max(widths)
    real = torch.arange(width) < torch.tensor(widths)[:, None]
    positions = torch.arange(rows * width).reshape(rows, width).where(real, -1)
    if axes:
        positions = positions.expand(3, -1, -1)
    packing = Packing.of(positions)
    if real.all():
        assert packing is None
        return
    x = torch.randn(rows, 2, width, 3)
    packed = packing.pack_heads(x)
    assert packed.shape == (1, 2, sum(widths), 3)
    assert torch.equal(packing.spread_heads(packed), x * real[:, None, :, None])
    assert torch.equal(packing.pack(x.transpose(1, 2))[0], x.transpose(1, 2)[real])
    assert torch.equal(packing.pack_last(positions)[..., 0, :], positions[..., real])


@pytest.mark.parametrize("fork", [False, True])
def test_a_pass_over_unequal_rows_is_one_pass_for_each(toy, fork):
    """Ids, positions and masks of every row as if it were alone; some rows hold nothing."""
    model, widths = toy.Model(), (4, 0, 7, 1)
    prompt = [toy.prompt] * (1 if fork else len(widths))
    context = model.prefill(prompt, room=16)
    kv = context.kv.fork(len(widths)) if fork else context.kv
    ids = torch.randint(toy.MASK, (len(widths), 7), generator=torch.Generator().manual_seed(1))
    real = torch.arange(7) < torch.tensor(widths)[:, None]
    start = len(toy.prompt)
    positions = (start + torch.arange(7)).where(real, -1)
    window = torch.ones(7, 7, dtype=torch.bool).tril()
    mask = torch.cat([torch.ones(7, start, dtype=torch.bool), window], 1)[None]
    passed = []

    def project(layer, hidden, rotary):
        passed.append(hidden.shape[:2])
        return type(model).project(model, layer, hidden, rotary)

    model.project = project
    hidden = layers_of(model, range(model.layers), model.embed(ids), positions, mask, kv)
    assert set(passed) == {(1, sum(widths))}
    for row, width in ((row, width) for row, width in enumerate(widths) if width):
        alone = model.prefill([toy.prompt], room=16).kv
        own = positions[row : row + 1, :width], mask[:, :width, : start + width]
        expected = layers_of(
            model, range(model.layers), model.embed(ids[row : row + 1, :width]), *own, alone
        )
        torch.testing.assert_close(hidden[row, :width], expected[0], rtol=0, atol=1e-12)
        for layer in range(model.layers):
            for mine, theirs in zip(kv.read(layer), alone.read(layer), strict=True):
                torch.testing.assert_close(mine[row, :, : start + width], theirs[0])
    assert kv.length == start + 7
