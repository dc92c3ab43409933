"""Keys and values in places of their own."""

import pytest
import torch

from fastloop.accel.decoding import KVCache
from fastloop.accel.decoding.slots import SlotStore

LAYERS, HEADS, WIDTH = 2, 3, 4


def pair(rows, slots, seed=0):
    random = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, HEADS, slots, WIDTH, generator=random)
    return keys, values


def passed(store, slots, extent, seed=0, times=1):
    """What each layer is given to look at, and what was put in."""
    store.expect(slots, extent)
    new = [pair(times * len(slots), slots.shape[1], seed + i) for i in range(LAYERS)]
    before = store.length
    seen = [store.append(layer, *new[layer]) for layer in range(LAYERS)]
    assert store.length == before + slots.shape[1]
    assert all(part.shape[2] == store.length for pair in seen for part in pair)
    return seen, new


@pytest.mark.parametrize("prompt", [0, 5])
def test_some_slots_are_written_over(prompt):
    first = KVCache(LAYERS, 8)
    if prompt:
        for layer in range(LAYERS):
            first.append(layer, *pair(2, prompt, seed=9))
    store = SlotStore(first, 6)
    everything = torch.arange(6).expand(2, -1)
    (*_, before), _ = passed(store, everything, 6)
    before = [part.clone() for part in before]
    some = torch.tensor([[1, 4], [0, 5]])
    (*_, after), (*_, new) = passed(store, some, 6, seed=5)
    for part in range(2):
        expected = before[part].clone()
        for row in range(2):
            expected[row, :, prompt + some[row]] = new[part][row]
        torch.testing.assert_close(after[part], expected, rtol=0, atol=0)
        if prompt:
            kept = first.read(1)[part]
            torch.testing.assert_close(after[part][:, :, :prompt], kept, rtol=0, atol=0)
    assert first.length == prompt


def test_what_lies_behind_is_not_looked_at():
    store = SlotStore(KVCache(LAYERS, 8), 6)
    (*_, whole), _ = passed(store, torch.arange(6)[None], 6)
    whole = [part.clone() for part in whole]
    (*_, seen), (*_, new) = passed(store, torch.tensor([[2]]), 4, seed=7)
    for part in range(2):
        whole[part][:, :, 2] = new[part][:, :, 0]
        torch.testing.assert_close(seen[part], whole[part][:, :, :4], rtol=0, atol=0)


def test_what_fills_up_a_row_goes_where_nobody_looks():
    store = SlotStore(KVCache(LAYERS, 8), 3)
    (*_, before), _ = passed(store, torch.arange(3).expand(2, -1), 3)
    before = before[0].clone()
    (*_, after), _ = passed(store, torch.tensor([[0, 1, 2], [2, 3, 3]]), 3, seed=3)
    assert torch.equal(after[0][1, :, :2], before[1, :, :2])
    assert not torch.equal(after[0][1, :, 2], before[1, :, 2])


def test_a_model_may_ask_in_two_ways():
    store = SlotStore(KVCache(LAYERS, 8), 3)
    slots = torch.tensor([[2, 0], [1, 2]])
    (*_, (keys, _)), (*_, (new, _)) = passed(store, slots, 3, times=2)
    for row in range(4):
        assert torch.equal(keys[row][:, slots[row % 2]], new[row])


def test_memory_is_of_all_slots():
    store = SlotStore(KVCache(LAYERS, 8), 6)
    assert store.bytes == 0
    passed(store, torch.arange(2)[None], 2)
    assert store.bytes == LAYERS * 2 * HEADS * (6 + 1) * WIDTH * 4


def test_stale_keys_are_found():
    store = SlotStore(KVCache(LAYERS, 8), 4)
    seen = torch.ones(2, 4, dtype=torch.bool)
    tokens = torch.tensor([[7, 7, 7, 7, 0], [7, 7, 7, 7, 0]])
    store.check(torch.arange(4).expand(2, -1), seen, tokens)
    tokens[1, 2] = 5
    with pytest.raises(RuntimeError, match=r"row 1: slots \[2\] are seen"):
        store.check(torch.tensor([[0], [0]]), seen, tokens)
    store.check(torch.tensor([[0], [0]]), seen & (torch.arange(4) != 2), tokens)
    store.check(torch.tensor([[0], [2]]), seen, tokens)
