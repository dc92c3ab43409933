import pytest
import torch

from fastloop.accel.kernels.attention import reference, triton_kernels

SIZES = [(1, 1, 48, 2), (3, 7, 40, 4), (1, 10, 48, 4), (1, 16, 64, 2), (3, 33, 40, 1)]
DTYPES = [torch.float32, torch.bfloat16]
MASKS = ["none", "causal", "blind"]


def mask_of(draw, kind, T, M):
    """None; 0 and -inf as a causal network has them; or any numbers and one row of -inf."""
    if kind == "none":
        return None
    if kind == "causal":
        return draw.guarded(torch.full((T, M), -torch.inf).triu(1))
    mask = torch.randn(T, M, generator=draw.random)
    mask[T // 2] = -torch.inf
    return draw.guarded(mask)


def self_arguments(draw, dtype, B, T, E, heads, mask):
    draw = draw(dtype)
    stream = draw(B, T, E, scale=2.0, shift=3.0)
    layers = draw.norm(E), draw.linear(3 * E, E), draw.linear(E, E)
    return stream, *layers, heads, mask_of(draw, mask, T, T)


def cross_arguments(draw, dtype, B, T, M, E, heads, mask):
    draw = draw(dtype)
    stream = draw(B, T, E, scale=2.0, shift=3.0)
    keys = draw(B, heads, M, E // heads)
    # A view, as a packed projection of the memory gives it
    values = draw(B, M, 2, heads, E // heads).permute(2, 0, 3, 1, 4)[1]
    layers = draw.norm(E), draw.linear(E, E), draw.linear(E, E)
    return stream, keys, values, *layers, mask_of(draw, mask, T, M)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("size", SIZES)
def test_self_attention_parity(device, draw, assert_parity, dtype, mask, size):
    args = self_arguments(draw, dtype, *size, mask)
    assert_parity(triton_kernels.self_attention, reference.self_attention, *args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("size", "M"), list(zip(SIZES, [3, 1, 33, 17, 5], strict=True)))
def test_cross_attention_parity(device, draw, assert_parity, dtype, mask, size, M):
    B, T, E, heads = size
    args = cross_arguments(draw, dtype, B, T, M, E, heads, mask)
    assert_parity(triton_kernels.cross_attention, reference.cross_attention, *args)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("E", "heads"), [(256, 4), (384, 12), (768, 8)])
@pytest.mark.parametrize(("B", "T", "M"), [(1, 16, 3), (8, 10, 9), (64, 64, 64)])
def test_parity_at_the_sizes_of_policies(device, draw, assert_parity, dtype, E, heads, B, T, M):
    args = self_arguments(draw, dtype, B, T, E, heads, "causal")
    assert_parity(triton_kernels.self_attention, reference.self_attention, *args)
    args = cross_arguments(draw, dtype, B, T, M, E, heads, "causal")
    assert_parity(triton_kernels.cross_attention, reference.cross_attention, *args)


def test_environments_do_not_see_each_other(device, draw):
    stream, *rest = self_arguments(draw, torch.float32, 3, 7, 40, 4, "causal")
    together = triton_kernels.self_attention(stream, *rest)
    stream[1] = torch.nan
    alone = triton_kernels.self_attention(stream, *rest)
    assert torch.equal(alone[[0, 2]], together[[0, 2]])
    assert alone[1].isnan().all()


def test_what_a_mask_hides_has_no_effect(device, draw):
    stream, *rest = self_arguments(draw, torch.float32, 1, 10, 40, 4, "causal")
    before = triton_kernels.self_attention(stream, *rest)
    stream[0, 6:] = 100 * stream[0, 6:].flip(-1)
    after = triton_kernels.self_attention(stream, *rest)
    assert torch.equal(before[0, :6], after[0, :6])
    assert not torch.equal(before[0, 6:], after[0, 6:])


def test_too_many_tokens_and_mixed_dtypes_are_refused(draw):
    stream, *rest = self_arguments(draw, torch.float32, 1, 65, 8, 2, "none")
    with pytest.raises(ValueError, match="64 tokens"):
        triton_kernels.self_attention(stream, *rest)
    args = cross_arguments(draw, torch.float32, 1, 2, 65, 8, 2, "none")
    with pytest.raises(ValueError, match="65 tokens"):
        triton_kernels.cross_attention(*args)
    with pytest.raises(ValueError, match="bfloat16"):
        triton_kernels.self_attention(stream[:, :2].bfloat16(), *rest)
