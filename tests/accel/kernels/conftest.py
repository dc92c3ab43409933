"""Kernels run compiled where CUDA is there, and under Triton's interpreter on a CPU elsewhere."""

import importlib
import importlib.util

import pytest
import torch

from fastloop.accel.kernels.parameters import LayerNorm, Linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
MARGIN = 64  # elements, a multiple of the alignment that kernels are compiled for

# Triton decides when a kernel is defined, its own library's included, whether it interprets it.
with pytest.MonkeyPatch.context() as environment:
    if DEVICE == "cpu":
        environment.setenv("TRITON_INTERPRET", "1")
    importlib.import_module("fastloop.accel.kernels.language")
    for kernel in ("attention", "ffn", "reused_run", "shared_prefix"):
        importlib.import_module(f"fastloop.accel.kernels.{kernel}.triton_kernels")
    importlib.import_module("fastloop.accel.flow_table.triton_kernels")


@pytest.fixture
def device(monkeypatch):
    """Where kernels run; skips where Triton is missing."""
    if not HAS_TRITON:
        pytest.skip('needs Triton: pip install -c constraints.txt -e ".[gpu]"')
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        widen_products(monkeypatch)
    return DEVICE


def widen_products(monkeypatch):
    """The interpreter multiplies the bits of bfloat16 as integers; float32 is what is meant."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def widened(self, left, right, *rest):
        left, right = (
            self.cast_impl(side, tl.float32) if side.dtype.scalar == tl.bfloat16 else side
            for side in (left, right)
        )
        return multiply(self, left, right, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", widened)


class Draw:
    """Normal tensors in the middle of NaN, so that reading past one shows."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.random = torch.Generator().manual_seed(0)

    def __call__(self, *shape, scale=1.0, shift=0.0):
        return self.guarded(torch.randn(*shape, generator=self.random) * scale + shift)

    def guarded(self, values):
        """`values` as they are, with NaN on both sides in memory."""
        around = torch.full((values.numel() + 2 * MARGIN,), torch.nan)
        around[MARGIN:-MARGIN] = values.flatten()
        return around.to(DEVICE, self.dtype)[MARGIN:-MARGIN].view(values.shape)

    def linear(self, n, m):
        return Linear(self(n, m, scale=m**-0.5), self(n))

    def norm(self, E):
        return LayerNorm(self(E, scale=0.2, shift=1.0), self(E), 0.1)


@pytest.fixture
def draw():
    """A function dtype -> `Draw`."""
    return Draw


def double(value):
    """Tensors, and tuples of them, in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        parts = [double(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


@pytest.fixture
def assert_parity():
    """A function (kernel, reference, arguments): the kernel's error against float64."""

    def check(kernel, reference, *args):
        result = kernel(*args)
        expected = reference(*map(double, args))
        tolerance = 1e-5 if result.dtype == torch.float32 else 2e-2
        error = (result.double() - expected).abs().max().item()
        assert error <= tolerance * max(1.0, expected.abs().max().item())

    return check
