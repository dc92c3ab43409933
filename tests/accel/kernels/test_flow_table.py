import math

import pytest
import torch

from fastloop.accel.flow_table import fast, reference, triton_kernels
from fastloop.accel.flow_table.mixture import Mixture, features_of

# A, K, M, d
SIZES = [(1, 1, 1, 1), (2, 130, 50, 8), (3, 65, 7, 5), (2, 40, 130, 12), (1, 200, 64, 8)]


def arguments(draw, A, K, M, d):
    log_weights = draw(A, M).log_softmax(-1)
    mixture = Mixture(log_weights, draw(A, M, d), 0.3 + draw(A, M, d).square())
    return draw.guarded(features_of(draw(K, d))), draw.guarded(mixture.matrix)


@pytest.mark.parametrize("size", SIZES)
def test_parity(device, draw, assert_parity, size):
    args = arguments(draw(torch.float32), *size)
    assert_parity(triton_kernels.log_mixture, reference.log_mixture, *args)
    assert_parity(fast.log_mixture, reference.log_mixture, *args)


@pytest.mark.gpu
@pytest.mark.parametrize("A", [1, 64])
def test_parity_at_the_size_of_a_cache(device, draw, assert_parity, A):
    args = arguments(draw(torch.float32), A, 10_000, 50, 8)
    assert_parity(triton_kernels.log_mixture, reference.log_mixture, *args)


def test_views_and_components_of_weight_zero(device, draw, assert_parity):
    features, matrix = arguments(draw(torch.float32), 2, 70, 20, 4)
    matrix[:, -1, 3:] = -math.inf
    matrix[0, -1, 0] = -math.inf
    args = (features.T.contiguous().T, matrix.transpose(1, 2).contiguous().transpose(1, 2))
    assert_parity(triton_kernels.log_mixture, reference.log_mixture, *args)


def test_far_points_neither_vanish_nor_overflow(device, draw, assert_parity):
    features, matrix = arguments(draw(torch.float32), 2, 70, 20, 4)
    assert_parity(triton_kernels.log_mixture, reference.log_mixture, features * 1e4, matrix)


def test_what_the_kernel_does_not_compute_is_refused(draw):
    features, matrix = torch.zeros(4, 3), torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match=r"float32 or bfloat16, got torch\.float64"):
        triton_kernels.log_mixture(features.double(), matrix.double())
    with pytest.raises(ValueError, match=r"computed in float32, got torch\.bfloat16"):
        triton_kernels.log_mixture(features.bfloat16(), matrix.bfloat16())
    with pytest.raises(ValueError, match=r"a parameter torch\.float64"):
        triton_kernels.log_mixture(features, matrix.double())
