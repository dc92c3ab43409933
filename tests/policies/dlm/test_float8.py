"""Weights in eight bits: what is handed to torchao, and where it is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fastloop.accel.decoding import ModelSpec, Regime
from fastloop.extras import MissingExtraError
from fastloop.policies.dlm.decoder import Decoder
from fastloop.policies.dlm.float8 import float8
from fastloop.policies.dlm.fused import Fused


@pytest.fixture
def fused(stock):
    network = stock("Qwen2", torch.bfloat16)
    return Fused(Decoder(network, ModelSpec(Regime.CAUSAL, 64, 63, digest="d")))


@pytest.fixture
def capable(monkeypatch):
    """As if the network were on a GPU that multiplies in float8."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_all_products_are_handed_over_and_nothing_else(fused, capable, monkeypatch):
    def quantize_(module, config):
        assert config == {"granularity": "row", "set_inductor_config": False}
        for part in module.modules():
            if isinstance(part, torch.nn.Linear):
                rounded = part.weight.data.to(torch.float8_e4m3fn).to(torch.bfloat16)
                part.weight = torch.nn.Parameter(rounded, requires_grad=False)

    fake = SimpleNamespace(
        quantize_=quantize_, PerRow=lambda: "row", Float8DynamicActivationFloat8WeightConfig=dict
    )
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(quantization=fake))
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)
    before = {name: weight.clone() for name, weight in fused.model.network.named_parameters()}
    rounded = float8(fused)
    assert rounded.spec.digest == "d, float8"
    for layer, plain in zip(rounded.products, fused.products, strict=True):
        assert set(layer) == {"qkv", "out", "gate_up", "down"}
        for name, product in layer.items():
            assert not torch.equal(product.weight, plain[name].weight)
            torch.testing.assert_close(product.weight, plain[name].weight, rtol=0.07, atol=0.01)
            if name == "qkv":
                assert torch.equal(product.bias, plain[name].bias)
    for name, weight in fused.model.network.named_parameters():
        assert torch.equal(weight, before[name])


def test_where_it_cannot_be(fused, stock, capable, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingExtraError, match="float8"):
        float8(fused)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"8\.9"):
        float8(fused)
    wide = Fused(Decoder(stock("Qwen2"), ModelSpec(Regime.CAUSAL, 64, 63)))
    with pytest.raises(ValueError, match="float32"):
        float8(wide)
