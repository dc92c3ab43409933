import subprocess
import sys

import pytest
import torch

from fastloop.accel.kernels.language import check_dtypes, padded, pieces

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from fastloop.accel.kernels.ffn.triton_kernels import feed_forward
from fastloop.accel.kernels.parameters import LayerNorm, Linear
import torch

one = torch.ones(2, 2)
layer = Linear(one, one[0])
try:
    feed_forward(one[None], LayerNorm(one[0], one[0]), layer, layer)
except ImportError as error:
    print(error)
"""


def test_without_triton_kernels_import_and_a_launch_says_how_to_install_it():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert '".[gpu]"' in done.stdout, done.stderr


@pytest.mark.parametrize(("size", "least", "block"), [(1, 1, 1), (7, 16, 16), (33, 16, 64)])
def test_a_padded_size_is_the_next_power_of_two(size, least, block):
    assert padded(size, least) == block
    assert pieces(size, 8) == len(range(0, size, 8))


def test_a_dtype_that_no_kernel_computes_is_refused():
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        check_dtypes(torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\.to\(device, dtype\)"):
        check_dtypes(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16))
