"""Keys and values: what was appended is what is read, and branches share what they can."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import KVCache


def layer_of(rows, slots, seed=0, heads=2, width=3):
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, heads, slots, width, generator=random) for _ in range(2))


def append(cache, parts):
    return [cache.append(layer, *parts) for layer in range(cache.layers)]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-6, 6)), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_appended_and_cropped_as_a_list(moves, rows, room):
    """Against concatenation, whatever the room was."""
    cache, whole = KVCache(2, room), torch.zeros(rows, 2, 0, 3)
    for seed, (move,) in enumerate(moves):
        if move < 0:
            forget = min(-move, cache.length)
            cache.crop(forget)
            whole = whole[:, :, : whole.shape[2] - forget]
        elif move or not whole.shape[2]:
            keys, values = layer_of(rows, move, seed)
            whole = torch.cat([whole, keys], 2)
            for kept, _ in append(cache, (keys, values)):
                assert torch.equal(kept, whole)
        assert cache.length == whole.shape[2]
        assert cache.bytes == 2 * 2 * whole.numel() * 4


def test_nothing_is_copied_within_the_room():
    cache = KVCache(1, 10)
    first = cache.append(0, *layer_of(1, 4))[0]
    second = cache.append(0, *layer_of(1, 6, seed=1))[0]
    cache.crop(5)
    third = cache.append(0, *layer_of(1, 5, seed=2))[0]
    assert first.data_ptr() == second.data_ptr() == third.data_ptr()


def test_length_grows_with_the_last_layer():
    cache = KVCache(2, 8)
    cache.append(0, *layer_of(1, 3))
    assert cache.length == 0
    cache.append(1, *layer_of(1, 3))
    assert cache.length == 3


def test_branches_share_the_prefix():
    base = KVCache(2, 40)
    append(base, layer_of(1, 30))
    alone = base.bytes
    branch = base.fork(4)
    assert branch.bytes == alone == 2 * 2 * 30 * 2 * 3 * 4
    keys, values = layer_of(4, 5, seed=1)
    (prefix, _), (suffix, _) = branch.prefix_parts(0)
    assert suffix.shape == (4, 2, 0, 3)
    whole, _ = append(branch, (keys, values))[0]
    (prefix, _), (suffix, _) = branch.prefix_parts(0)
    assert prefix.data_ptr() == base.read(0)[0].data_ptr()
    assert torch.equal(whole, torch.cat([prefix.expand(4, -1, -1, -1), suffix], 2))
    assert torch.equal(suffix, keys)
    assert branch.bytes == alone + 2 * 2 * 4 * 5 * 2 * 3 * 4
    assert base.length == 30
    assert base.bytes == alone


@pytest.mark.parametrize("forget", [0, 7])
def test_base_and_branches_go_on_without_each_other(forget):
    base = KVCache(2, 12)
    append(base, layer_of(1, 10))
    before = base.read(1)[0].clone()
    branch = base.fork(2)
    append(branch, layer_of(2, 3, seed=1))
    held = branch.read(1)[0].clone()
    base.crop(forget)
    append(base, layer_of(1, 9, seed=2))
    assert torch.equal(branch.read(1)[0], held)
    assert torch.equal(base.read(1)[0][:, :, : 10 - forget], before[:, :, : 10 - forget])
    assert torch.equal(base.read(1)[0][:, :, 10 - forget :], layer_of(1, 9, seed=2)[0])


def test_a_branch_branches_again():
    base = KVCache(1, 20)
    append(base, layer_of(1, 4))
    one = base.fork(1)
    append(one, layer_of(1, 2, seed=1))
    many = one.fork(3)
    assert many.length == many.shared == 6
    (whole, _) = append(many, layer_of(3, 1, seed=2))[0]
    assert torch.equal(whole[1:2, :, :6], one.read(0)[0])


def test_what_cannot_be_is_refused():
    base = KVCache(1, 8)
    with pytest.raises(ValueError, match="read something"):
        base.fork(2)
    append(base, layer_of(1, 4))
    branch = base.fork(2)
    with pytest.raises(ValueError, match="shared"):
        branch.crop(1)
    with pytest.raises(ValueError, match="last 5 of 4"):
        base.crop(5)
    with pytest.raises(ValueError, match="B = 2"):
        branch.append(0, *layer_of(3, 1))
    with pytest.raises(ValueError, match="single row"):
        branch.fork(2)
    with pytest.raises(ValueError, match="layers and slots"):
        KVCache(0, 4)


def test_what_was_written_follows_the_slots():
    cache = KVCache(1, 8)
    append(cache, layer_of(1, 3))
    cache.written = torch.tensor([[-1, 5, 6]])
    assert cache.fork(2).written.tolist() == [[-1, 5, 6]] * 2
    cache.crop(2)
    assert cache.written.tolist() == [[-1]]
