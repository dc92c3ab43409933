import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

from fastloop.accel.flops import count_call
from fastloop.accel.kernels import packed
from fastloop.accel.kernels.packed import Packed, PackedLinear, pack

ODD = [(1, 1), (5, 7), (22, 8), (64, 6), (96, 33)]  # M, N


@pytest.fixture(params=[True, False], ids=["one_dnn", "mkl"])
def wins(request, monkeypatch):
    """Whether oneDNN is chosen for float32, whatever the processor is."""
    monkeypatch.setattr(packed, "_mkl_is_slow", lambda: request.param)
    return request.param


@pytest.fixture
def one_dnn(monkeypatch):
    """It is chosen; gives the number of its products so far, as a list's length."""
    monkeypatch.setattr(packed, "_mkl_is_slow", lambda: True)
    products = []
    multiply = packed._product
    monkeypatch.setattr(packed, "_product", lambda *args: products.append(1) or multiply(*args))
    return products


def layer(M, N, *, bias=True, dtype=torch.float32, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(M, N, bias=bias, dtype=dtype).requires_grad_(False)


def wide(module, x):
    """What the product is in float64."""
    bias = None if module.bias is None else module.bias.double()
    return linear(x.double(), module.weight.double(), bias)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (2, 1, 4), (0,), ()])
@pytest.mark.parametrize("sizes", ODD)
@torch.no_grad()
def test_products_are_those_of_float64_to_rounding(sizes, shape, wins):
    plain = layer(*sizes)
    x = torch.randn(*shape, sizes[0], generator=torch.Generator().manual_seed(1))
    own = layer(*sizes)
    pack(own)
    for product in (Packed.of(plain), own):
        torch.testing.assert_close(product(x).double(), wide(plain, x), rtol=1e-5, atol=1e-5)


@given(rows=st.integers(1, 70), start=st.integers(0, 30), sizes=st.sampled_from(ODD))
def test_a_row_has_the_same_bits_among_any_number_of_rows(rows, start, sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_mkl_is_slow", lambda: True)
        product = Packed.of(layer(*sizes))
    x = torch.randn(100, sizes[0], generator=torch.Generator().manual_seed(2))
    part = slice(start, start + rows)
    assert torch.equal(product(x[part]), product(x)[part])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_dtypes_are_torchs_own_bit_for_bit(dtype, one_dnn):
    network = nn.Sequential(layer(12, 10, dtype=dtype))
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = network(x)
    pack(network)
    assert torch.equal(network(x), expected)
    assert not one_dnn
    torch.testing.assert_close(Packed.of(network[0])(x), expected)


@torch.no_grad()
def test_one_row_and_nothing_are_left_to_torch(one_dnn):
    network = nn.Sequential(layer(12, 10, bias=False))
    pack(network)
    for shape in [(12,), (1, 12), (1, 1, 12), (0, 12)]:
        x = torch.ones(shape)
        assert torch.equal(network(x), linear(x, network[0].weight))
        assert not one_dnn
    network(torch.ones(2, 12))
    assert len(one_dnn) == 1


@torch.no_grad()
def test_torchs_own_switch_leaves_all_to_mkl(one_dnn, monkeypatch):
    module, x = layer(12, 10), torch.ones(3, 12)
    product = Packed.of(module)
    pack(module)
    expected = linear(x, module.weight, module.bias)
    for enabled in (False, True):
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", enabled)
        torch.testing.assert_close(product(x), expected)
        torch.testing.assert_close(module(x), expected)
        assert len(one_dnn) == 2 * enabled


def test_operations_are_counted_whoever_multiplies(one_dnn):
    module, x = layer(12, 10), torch.ones(3, 12)
    product = Packed.of(module)
    pack(module)
    for function in (product, module):
        assert count_call(function, x)[1] == 2 * 3 * 12 * 10
    assert not one_dnn
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("form", ["Packed", "PackedLinear"])
def test_what_is_differentiated_is_left_to_torch(form, one_dnn):
    module = layer(5, 3)
    product = Packed.of(module)
    if form == "PackedLinear":
        product = nn.Sequential(module)
        pack(product)
    x = torch.randn(4, 5, requires_grad=True)
    product(x).sum().backward()
    torch.testing.assert_close(x.grad, module.weight.sum(0).expand(4, 5))
    assert not one_dnn


def test_weights_learn_through_packed_layers(one_dnn):
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    pack(network)
    network(torch.randn(7, 4)).square().sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in network.parameters())
    assert not one_dnn


@pytest.mark.parametrize("change", ["in_place", "data", "load", "train"])
def test_weights_that_change_are_laid_out_again(change, one_dnn):
    network, x = nn.Sequential(layer(9, 8)), torch.ones(3, 9)
    pack(network)
    other = layer(9, 8, seed=1)
    with torch.no_grad():
        before = network(x)
        if change == "in_place":
            network[0].weight.copy_(other.weight)
            network[0].bias.copy_(other.bias)
        elif change == "data":
            network[0].weight.data, network[0].bias.data = other.weight, other.bias
        elif change == "load":
            network[0].load_state_dict(other.state_dict())
    if change == "train":
        network.requires_grad_(True)
        step = torch.optim.SGD(network.parameters(), 0.5)
        network(x).sum().backward()
        step.step()
    with torch.no_grad():
        after = network(x)
        torch.testing.assert_close(after.double(), wide(network[0], x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, after)
    assert len(one_dnn) == 2


@torch.no_grad()
def test_a_packed_network_is_copied_saved_and_loaded_as_before(one_dnn):
    plain = nn.ModuleDict({"a": layer(6, 5), "b": nn.Sequential(layer(5, 4, bias=False))})
    keys = list(plain.state_dict())
    network = copy.deepcopy(plain)
    pack(network)
    x = torch.randn(3, 6)
    network["b"](network["a"](x))
    assert list(network.state_dict()) == keys
    assert isinstance(network["a"], nn.Linear)
    twin = copy.deepcopy(network)
    twin["a"].weight.zero_()
    assert torch.equal(network["a"].weight, plain["a"].weight)
    torch.testing.assert_close(twin["a"](x), plain["a"].bias.expand(3, 5))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))


@torch.no_grad()
def test_large_weights_do_not_lie_in_memory_twice(one_dnn, monkeypatch):
    monkeypatch.setattr(packed, "LARGEST", 4 * 7 * 5)
    small, large = layer(5, 7), layer(5, 8)
    x = torch.randn(4, 5)
    for module, copied in ((small, True), (large, False)):
        product = Packed.of(module)
        assert (product._laid.layout is torch._mkldnn) is copied
        torch.testing.assert_close(product(x), linear(x, module.weight, module.bias))


def test_layers_of_other_classes_stay_what_they_are():
    network = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "linear": nn.Linear(2, 2)})
    kinds = type(network["attention"]), type(network["attention"].out_proj)
    pack(network)
    assert (type(network["attention"]), type(network["attention"].out_proj)) == kinds
    assert type(network["linear"]) is PackedLinear


@pytest.mark.parametrize(
    ("words", "capability", "slow"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_mkl_is_slow_where_it_leaves_avx_512_unused(words, capability, slow, monkeypatch, tmp_path):
    described = tmp_path / "cpuinfo"
    if words:
        described.write_text(words)
    monkeypatch.setattr(packed, "Path", lambda _: described)
    monkeypatch.setattr(packed.platform, "processor", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert packed._mkl_is_slow.__wrapped__() is slow
