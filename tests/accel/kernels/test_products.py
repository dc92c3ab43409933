import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fastloop.accel.flops import count_call
from fastloop.accel.kernels import products
from fastloop.accel.kernels.products import OneDnnLinear, Packed, linear, multiply_by_one_dnn

ODD = [(1, 1), (5, 7), (22, 8), (64, 6), (96, 33)]  # M, N


@pytest.fixture(params=[True, False], ids=["one_dnn", "mkl"])
def wins(request, monkeypatch):
    """Whether oneDNN is chosen for float32, whatever the processor is."""
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: request.param)
    return request.param


@pytest.fixture
def one_dnn(monkeypatch):
    """It is chosen; gives the number of its products so far, as a list's length."""
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    made = []
    multiply = products._product
    monkeypatch.setattr(products, "_product", lambda *args: made.append(1) or multiply(*args))
    return made


def layer(M, N, *, bias=True, dtype=torch.float32, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(M, N, bias=bias, dtype=dtype).requires_grad_(False)


def wide(module, x):
    """What the product is in float64."""
    bias = None if module.bias is None else module.bias.double()
    return functional.linear(x.double(), module.weight.double(), bias)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (2, 1, 4), (0,), ()])
@pytest.mark.parametrize("sizes", ODD)
@torch.no_grad()
def test_products_are_those_of_float64_to_rounding(sizes, shape, wins):
    plain = layer(*sizes)
    x = torch.randn(*shape, sizes[0], generator=torch.Generator().manual_seed(1))
    own = layer(*sizes)
    multiply_by_one_dnn(own)
    for product in (Packed.of(plain), own):
        torch.testing.assert_close(product(x).double(), wide(plain, x), rtol=1e-5, atol=1e-5)


@given(rows=st.integers(2, 70), start=st.integers(0, 30), sizes=st.sampled_from([*ODD, (2048, 40)]))
def test_a_row_has_the_same_bits_among_any_number_of_others(rows, start, sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_mkl_is_slow", lambda: True)
        product = Packed.of(layer(*sizes))
    x = torch.randn(100, sizes[0], generator=torch.Generator().manual_seed(2))
    part = slice(start, start + rows)
    assert torch.equal(product(x[part]), product(x)[part])


@torch.no_grad()
def test_a_copy_has_weights_of_its_own(wins):
    plain, x = layer(9, 8), torch.ones(3, 9)
    product = Packed.of(plain)
    expected, copied = product(x), copy.deepcopy(product)
    plain.weight.zero_()
    plain.bias.zero_()
    assert torch.equal(copied(x), expected)
    assert not product.weight.any()
    assert copied.weight.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_dtypes_are_torchs_own_bit_for_bit(dtype, one_dnn):
    network = nn.Sequential(layer(12, 10, dtype=dtype))
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = network(x)
    multiply_by_one_dnn(network)
    assert torch.equal(network(x), expected)
    assert not one_dnn
    torch.testing.assert_close(Packed.of(network[0])(x), expected)


@torch.no_grad()
def test_one_row_and_nothing_are_left_to_torch(one_dnn):
    network = nn.Sequential(layer(12, 10, bias=False))
    multiply_by_one_dnn(network)
    for shape in [(12,), (1, 12), (1, 1, 12), (0, 12)]:
        x = torch.ones(shape)
        assert torch.equal(network(x), functional.linear(x, network[0].weight))
        assert not one_dnn
    network(torch.ones(2, 12))
    assert len(one_dnn) == 1


@torch.no_grad()
def test_torchs_own_switch_leaves_all_to_mkl(one_dnn, monkeypatch):
    module, x = layer(12, 10), torch.ones(3, 12)
    product = Packed.of(module)
    multiply_by_one_dnn(module)
    expected = functional.linear(x, module.weight, module.bias)
    for enabled in (False, True):
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", enabled)
        torch.testing.assert_close(product(x), expected)
        torch.testing.assert_close(module(x), expected)
        assert len(one_dnn) == 2 * enabled


def test_operations_are_counted_whoever_multiplies(one_dnn):
    module, x = layer(12, 10), torch.ones(3, 12)
    product = Packed.of(module)
    multiply_by_one_dnn(module)
    for function in (product, module):
        assert count_call(function, x)[1] == 2 * 3 * 12 * 10
    assert not one_dnn
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("form", ["Packed", "OneDnnLinear"])
def test_what_is_differentiated_is_left_to_torch(form, one_dnn):
    module = layer(5, 3)
    product = Packed.of(module)
    if form == "OneDnnLinear":
        product = nn.Sequential(module)
        multiply_by_one_dnn(product)
    x = torch.randn(4, 5, requires_grad=True)
    product(x).sum().backward()
    torch.testing.assert_close(x.grad, module.weight.sum(0).expand(4, 5))
    assert not one_dnn


def test_weights_learn_through_packed_layers(one_dnn):
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    multiply_by_one_dnn(network)
    network(torch.randn(7, 4)).square().sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in network.parameters())
    assert not one_dnn


@pytest.mark.parametrize("change", ["in_place", "data", "load", "assign", "fused_step"])
def test_layers_follow_their_weights(change, one_dnn):
    network, x = nn.Sequential(layer(9, 8)), torch.ones(3, 9)
    multiply_by_one_dnn(network)
    other = layer(9, 8, seed=1)
    with torch.no_grad():
        before = network(x)
    if change == "in_place":
        network[0].weight.copy_(other.weight)
    elif change == "data":
        network[0].weight.data.copy_(other.weight)
    elif change == "fused_step":
        network.requires_grad_(True)
        step = torch.optim.AdamW(network.parameters(), 0.5, fused=True)
        network(x).sum().backward()
        step.step()
    else:
        network[0].load_state_dict(other.state_dict(), assign=change == "assign")
    with torch.no_grad():
        after = network(x)
        torch.testing.assert_close(after.double(), wide(network[0], x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, after)
    assert len(one_dnn) == 2


@torch.no_grad()
def test_a_network_is_copied_saved_and_loaded_as_before(one_dnn):
    plain = nn.ModuleDict({"a": layer(6, 5), "b": nn.Sequential(layer(5, 4, bias=False))})
    network = copy.deepcopy(plain)
    multiply_by_one_dnn(network)
    network["b"](network["a"](torch.randn(3, 6)))
    assert list(network.state_dict()) == list(plain.state_dict())
    assert isinstance(network["a"], nn.Linear)
    assert torch.equal(copy.deepcopy(network)["a"].weight, plain["a"].weight)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("form", ["Packed", "OneDnnLinear"])
@torch.no_grad()
def test_other_numbers_than_the_weights_are_torchs_to_refuse_or_take(form, one_dnn):
    module = layer(5, 3)
    product = Packed.of(module)
    if form == "OneDnnLinear":
        multiply_by_one_dnn(module)
        product = module
    x = torch.ones(4, 5, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="same dtype"):
        product(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert product(x).dtype == torch.bfloat16
    assert not one_dnn


def test_what_is_compiled_is_torchs(one_dnn, monkeypatch):
    module, x = layer(5, 3), torch.ones(4, 5)
    product = Packed.of(module)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.no_grad():
        expected = functional.linear(x, module.weight, module.bias)
        assert torch.equal(product(x), expected)
        assert torch.equal(linear(x, module.weight, module.bias), expected)
    assert not one_dnn


def test_another_device_is_torchs(one_dnn):
    module, x = layer(5, 3).to("meta"), torch.ones(4, 5, device="meta")
    with torch.no_grad():
        assert linear(x, module.weight, module.bias).shape == (4, 3)
        assert Packed.of(module)(x).shape == (4, 3)
    assert not one_dnn


def test_weights_that_are_more_than_numbers_are_torchs(one_dnn):
    class Quantized(torch.Tensor):
        pass

    weight = torch.ones(3, 5).as_subclass(Quantized)
    with torch.no_grad():
        assert linear(torch.ones(4, 5), weight).shape == (4, 3)
    assert not one_dnn


@torch.no_grad()
def test_weights_of_any_strides(one_dnn):
    weight, x = torch.randn(7, 10)[:, ::2], torch.randn(4, 5)
    expected = functional.linear(x, weight, weight[:, 0])
    for told in (Packed(weight, weight[:, 0])(x), linear(x, weight, weight[:, 0])):
        torch.testing.assert_close(told, expected)
    assert len(one_dnn) == 2


def test_layers_of_other_classes_stay_what_they_are():
    network = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "linear": nn.Linear(2, 2)})
    kinds = type(network["attention"]), type(network["attention"].out_proj)
    multiply_by_one_dnn(network)
    assert (type(network["attention"]), type(network["attention"].out_proj)) == kinds
    assert type(network["linear"]) is OneDnnLinear


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
    monkeypatch.setattr(products, "Path", lambda _: described)
    monkeypatch.setattr(products.platform, "processor", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products._mkl_is_slow.__wrapped__() is slow
