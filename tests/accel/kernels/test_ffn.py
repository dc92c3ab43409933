import pytest
import torch

from fastloop.accel.kernels.ffn import reference, triton_kernels

SIZES = [(1, 1, 48, 192), (3, 7, 40, 160), (1, 10, 64, 100), (1, 16, 48, 192), (3, 33, 40, 96)]
DTYPES = [torch.float32, torch.bfloat16]


def arguments(draw, dtype, B, T, E, F):
    draw = draw(dtype)
    stream = draw(B, T, E, scale=2.0, shift=3.0)
    return stream, draw.norm(E), draw.linear(F, E), draw.linear(E, F)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_parity(device, draw, assert_parity, dtype, size):
    args = arguments(draw, dtype, *size)
    assert_parity(triton_kernels.feed_forward, reference.feed_forward, *args)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("E", [256, 384, 768])
@pytest.mark.parametrize("B", [1, 8, 64])
def test_parity_at_the_sizes_of_policies(device, draw, assert_parity, dtype, E, B):
    args = arguments(draw, dtype, B, 16, E, 4 * E)
    assert_parity(triton_kernels.feed_forward, reference.feed_forward, *args)


def test_any_view_of_the_stream_will_do(device, draw, assert_parity):
    stream, *layers = arguments(draw, torch.float32, 2, 8, 40, 80)
    args = (stream.transpose(0, 1)[1:], *layers)
    assert_parity(triton_kernels.feed_forward, reference.feed_forward, *args)


def test_the_same_arguments_give_the_same_bits(device, draw):
    args = arguments(draw, torch.float32, 3, 33, 48, 192)
    first, again = (triton_kernels.feed_forward(*args) for _ in range(2))
    assert torch.equal(first, again)


def test_a_nan_stays_in_its_token(device, draw):
    stream, *layers = arguments(draw, torch.float32, 1, 7, 40, 160)
    stream[0, 3, 5] = torch.nan
    nan = triton_kernels.feed_forward(stream, *layers).isnan()
    assert nan[0, 3].all()
    assert not nan[0, [0, 1, 2, 4, 5, 6]].any()


def test_mixed_dtypes_are_refused(draw):
    stream, *layers = arguments(draw, torch.float32, 1, 2, 8, 16)
    with pytest.raises(ValueError, match="bfloat16"):
        triton_kernels.feed_forward(stream.bfloat16(), *layers)
