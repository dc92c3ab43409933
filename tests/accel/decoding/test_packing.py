"""What fills up a row is not computed, and changes nothing."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import Canvas, Speculative, decode
from fastloop.accel.decoding.layered import _common, layers_of
from fastloop.accel.decoding.packing import Packing
from fastloop.accel.decoding.skipping import Skipping


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


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("hidden", [False, True])
def test_branches_see_what_rows_of_their_own_see(toy, hidden, masks):
    """Also where a slot of what they share is hidden from some of their queries."""
    model, new, start = toy.Model(), 4, len(toy.prompt)
    ids = torch.randint(toy.MASK, (3, new), generator=torch.Generator().manual_seed(1))
    positions = (start + torch.arange(new)).expand(3, -1)
    mask = torch.ones(masks, new, start + new, dtype=torch.bool).tril(start)
    mask[-1, 1, 2] = not hidden
    branches = model.prefill([toy.prompt], room=16).fork(3)
    if not hidden:
        branches.kv.read = None  # which would copy what they share for each of them
    rows = model.prefill([toy.prompt] * 3, room=16)
    one, other = (
        layers_of(model, range(model.layers), model.embed(ids), positions, mask, context.kv)
        for context in (branches, rows)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_an_answer_that_ends_with_its_block(toy):
    """Nothing is left to be verified behind what was read at the head of the next draft."""
    canvas = Canvas.free(24, toy.VOCAB, block_size=8)
    free = toy.reference(toy.Model(), toy.prompt, canvas)
    assert (free == free[7]).nonzero()[0] == 7
    model = Skipping(toy.Model(stop_id=int(free[7])), ())
    decoded = decode(model, [toy.prompt], canvas, Speculative(), debug=True)
    assert decoded.tokens[0].tolist() == [*free[:8].tolist(), *[int(free[7])] * 16]


@pytest.mark.parametrize("shared", [0, 3])
def test_elsewhere_than_on_a_cpu_nobody_waits_for_a_value(shared):
    """A tensor without values stands for one that is not computed yet."""
    positions = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    assert Packing.of(positions) is None
    mask = torch.ones(1, 3, 8, dtype=torch.bool, device="meta")
    assert not _common(mask, SimpleNamespace(shared=shared))
