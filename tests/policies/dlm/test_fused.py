"""Joined products: what the network says, from the same memory."""

import shutil

import pytest
import torch

from fastloop.accel.decoding import ModelSpec, Regime
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.kernels import products
from fastloop.policies.dlm.decoder import Decoder
from fastloop.policies.dlm.fused import Fused, joinable

IDS = torch.tensor([[3, 14, 1, 5, 9], [2, 6, 5, 3, 5]])


def logits(model, ids=IDS):
    rows, n = ids.shape
    mask, positions = torch.ones(n, n).bool().tril()[None], torch.arange(n).expand(rows, -1)
    return model.forward(ids, positions=positions, mask=mask, kv=KVCache(model.layers, n))


def model_of(stock, family="Qwen2", **how):
    return Decoder(stock(family, torch.float64, **how), ModelSpec(Regime.CAUSAL, 64, 63))


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_it_says_what_the_network_says(stock, family):
    model = model_of(stock, family)
    expected = logits(model)
    fused = Fused(model)
    torch.testing.assert_close(logits(fused), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
    context, plain = (m.prefill([[1, 2, 3]], room=2) for m in (fused, model))
    assert torch.equal(context.logits, plain.logits)


def test_weights_lie_there_once(stock):
    model = model_of(stock)
    first, second = Fused(model), Fused(model)
    block = model.text.layers[1]
    for name, parts in {
        "qkv": [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj],
        "gate_up": [block.mlp.gate_proj, block.mlp.up_proj],
        "down": [block.mlp.down_proj],
    }.items():
        places = {
            module.weight.untyped_storage().data_ptr()
            for module in (*parts, first.products[1][name], second.products[1][name])
        }
        assert len(places) == 1, name
    block.self_attn.k_proj.weight.data.zero_()
    assert not first.products[1]["qkv"].weight[32:48].any()
    assert first.products[1]["qkv"].weight[:32].any()


@pytest.mark.parametrize(("wrapped", "products_a_layer"), [(lambda model: model, 7), (Fused, 4)])
def test_several_rows_in_float32_are_multiplied_by_the_faster_library(
    stock, monkeypatch, wrapped, products_a_layer
):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    made, multiply = [], products._product
    monkeypatch.setattr(products, "_product", lambda *args: made.append(1) or multiply(*args))
    model = Decoder(stock("Qwen2"), ModelSpec(Regime.CAUSAL, 64, 63))
    logits(wrapped(model))
    assert len(made) == products_a_layer * model.layers + 1  # and the head


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("change", ["load", "step"])
def test_it_follows_the_network(stock, change, dtype):
    model = Decoder(stock("Qwen2", dtype), ModelSpec(Regime.CAUSAL, 64, 63))
    first, second = Fused(model), Fused(model)
    before = logits(first)
    if change == "load":
        model.network.load_state_dict(stock("Qwen2", dtype, seed=1).state_dict())
    else:
        model.network.requires_grad_(True)
        step = torch.optim.AdamW(model.network.parameters(), 0.1, fused=True)
        model.network(IDS).logits.square().sum().backward()
        step.step()
    expected = logits(model)
    assert not torch.allclose(before, expected)
    for fused in (first, second):
        torch.testing.assert_close(logits(fused), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")
def test_compiled_it_says_the_same(stock):
    model = model_of(stock)
    compiled = Fused(model, compiled=True)
    for ids in (IDS, IDS[:1, :3], IDS[:, :1]):
        torch.testing.assert_close(logits(compiled, ids), logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "known"), [("Llama", True), ("Qwen2", True), ("Qwen3", False)])
def test_it_is_known_beforehand_what_can_be_joined(stock, family, known):
    model = model_of(stock, family)
    assert joinable(model) is known
    model.text.layers[1].mlp.config.hidden_act = "gelu"
    assert not joinable(model)
    assert not joinable(object())


def test_what_it_refuses(stock):
    with pytest.raises(ValueError, match="norm their queries"):
        Fused(model_of(stock, "Qwen3"))
    with pytest.raises(ValueError, match="LayeredModel"):
        Fused(object())
