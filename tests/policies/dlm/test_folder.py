"""Published checkpoints: their weights in a stock class, and everything that may be wrong."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastloop.accel.decoding import KVCache, Regime
from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError
from fastloop.policies.dlm import is_language_model, load_language_model
from fastloop.policies.dlm.folder import adapters

FACTS = {
    "llada": (Regime.FULL, 0, 32), "Dream": (Regime.FULL, 1, 32),
    "sdar": (Regime.BLOCK_CAUSAL, 0, 4), "Fast_dLLM_Qwen": (Regime.BLOCK_CAUSAL, 1, 8),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, kind, family, stock, published):
    published(tmp_path, kind, stock(family[kind]))
    return tmp_path


@pytest.fixture
def llada(tmp_path, stock, published):
    published(tmp_path, "llada", stock("Llama"))
    return tmp_path


def config(folder, **changes):
    path = folder / "config.json"
    told = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in told.items() if value != "gone"}))


def weights(folder, change):
    path = folder / "model.safetensors"
    held = {key: value.clone() for key, value in load_file(path).items()}
    change(held)
    save_file(held, path, metadata={"format": "pt"})


def agrees(model, network):
    """Under the mask of its regime, at 1e-5."""
    tokens = torch.randint(63, (2, 12), generator=torch.Generator().manual_seed(0))
    at = torch.arange(12)
    if model.spec.regime is Regime.FULL:
        mask = torch.ones(1, 12, 12, dtype=torch.bool)
    else:
        size = model.spec.block_size
        mask = (at[:, None] // size >= at // size)[None]
    with torch.no_grad():
        wanted = network(input_ids=tokens, attention_mask=mask[:, None].expand(2, -1, -1, -1))
    found = model.forward(tokens, positions=at.expand(2, -1), mask=mask, kv=KVCache(3, 12))
    torch.testing.assert_close(found, wanted.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shards", [0, 3])
def test_logits_are_those_of_a_stock_network_with_these_weights(
    tmp_path, kind, family, stock, published, shards
):
    network = stock(family[kind])
    published(tmp_path, kind, network, shards=shards)
    model = load_language_model(tmp_path)
    agrees(model, network)
    spec = model.spec
    assert (spec.regime, spec.logit_shift, spec.block_size) == FACTS[kind]
    assert (spec.vocab, spec.mask_id, spec.stop_ids) == (64, 63, (61,))
    assert spec.native == (kind == "llada")
    assert len(spec.digest) == 64
    assert is_language_model(tmp_path)


def test_tied_embeddings(tmp_path, stock, published):
    """Fast-dLLM v2 of 1.5 billion weights has no head of its own."""
    network = stock("Qwen2", tie_word_embeddings=True)
    network.lm_head.weight = network.model.embed_tokens.weight
    published(tmp_path, "Fast_dLLM_Qwen", network)
    weights(tmp_path, lambda held: held.pop("lm_head.weight"))
    config(tmp_path, tie_word_embeddings=True)
    agrees(load_language_model(tmp_path), network)
    config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head.weight: configuration \(64, 32\)"):
        load_language_model(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes(llada, dtype):
    network = load_language_model(llada, dtype).network
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype)}


def test_unknown_dtypes_and_devices(llada):
    with pytest.raises(ValueError, match="unknown dtype 'int8'; have: float32"):
        load_language_model(llada, "int8")
    with pytest.raises(ValueError, match="cannot be put on device 'abacus'"):
        load_language_model(llada, device="abacus")


def test_missing_left_over_and_misshapen_weights_are_named(folder, kind):
    layer = "model.transformer.blocks.1" if kind == "llada" else "model.layers.1"
    norm = "attn_norm" if kind == "llada" else "input_layernorm"
    up = "up_proj" if kind == "llada" else "mlp.up_proj"

    def change(held):
        del held[f"{layer}.{norm}.weight"]
        held[f"{layer}.gate.weight"] = torch.zeros(3)
        held[f"{layer}.{up}.weight"] = torch.zeros(5, 5)

    weights(folder, change)
    with pytest.raises(CheckpointError) as error:
        load_language_model(folder)
    said = str(error.value)
    assert "3 weights are not those of a " in said
    assert "classes of its own" in said
    assert "layers.1.input_layernorm.weight: configuration (32,), weights have none" in said
    assert f"{layer}.gate.weight: configuration has none, weights (3,)" in said
    assert "layers.1.mlp.up_proj.weight: configuration (48, 32), weights (5, 5)" in said


def test_a_weight_under_both_of_its_names(llada):
    """The second would silently win."""
    weights(llada, lambda held: held.update({"model.norm.weight": torch.ones(32)}))
    with pytest.raises(CheckpointError, match=r"which is there already: model.norm.weight"):
        load_language_model(llada)


def test_code_that_comes_along_is_not_run(folder, kind, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("configuration_x.py", "modeling_x.py"):
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w')")
    config(folder, _name_or_path="somebody/model", _attn_implementation="somebody/kernel")
    assert load_language_model(folder).network.config._attn_implementation == "sdpa"
    assert not (folder / "ran").exists()


def test_pickled_weights_are_refused(llada):
    (llada / "model.safetensors").rename(llada / "pytorch_model.bin")
    with pytest.raises(RefusedError, match="which only pickle reads"):
        load_language_model(llada)


@pytest.mark.parametrize(
    ("kind", "mask"), [("llada", 126336), ("Dream", 151666), ("sdar", 151669)], indirect=["kind"]
)
def test_a_mask_that_is_not_of_the_vocabulary(folder, mask):
    """Neither what the configuration says, nor what is published where it says nothing."""
    config(folder, mask_token_id=64)
    with pytest.raises(CheckpointError, match="mask_id 64 is not of a vocabulary of 64"):
        load_language_model(folder)
    config(folder, mask_token_id="gone")
    with pytest.raises(CheckpointError, match=f"mask_id {mask} is not of .* fastloop.json"):
        load_language_model(folder)
    (folder / "fastloop.json").write_text('{"mask_id": 5}')
    assert load_language_model(folder).spec.mask_id == 5


def test_the_mask_of_fast_dllm_v2(tmp_path, stock, published):
    published(tmp_path, "Fast_dLLM_Qwen", stock("Qwen2"))
    (tmp_path / "fastloop.json").unlink()
    with pytest.raises(CheckpointError, match="mask_id 151665 is not of a vocabulary of 64"):
        load_language_model(tmp_path)


def test_fastloop_json_goes_first(folder):
    said = {"mask_id": 7, "stop_id": 8, "null_id": 9, "block_size": 16, "regime": "prefix_lm"}
    (folder / "fastloop.json").write_text(json.dumps(said))
    spec = load_language_model(folder).spec
    found = (spec.mask_id, spec.stop_id, spec.null_id, spec.block_size, spec.regime)
    assert found == (7, 8, 9, 16, Regime.PREFIX_LM)


@pytest.mark.parametrize(
    ("eos", "stops"), [(60, (60,)), ([59, 58], (59, 58)), (None, ()), ([], ())]
)
def test_what_ends_an_answer_is_said_where_transformers_looks(llada, eos, stops, monkeypatch):
    (llada / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert load_language_model(llada).spec.stop_ids == stops
    (llada / "fastloop.json").write_text(json.dumps({"stop_id": [7, 8]}))
    assert load_language_model(llada).spec.stop_ids == (7, 8)
    (llada / "fastloop.json").unlink()
    # Of the published vocabulary the end of a turn is one, too.
    adapter = replace(adapters()["llada"], stop_ids=(57, 64))
    monkeypatch.setitem(adapters(), "llada", adapter)
    assert load_language_model(llada).spec.stop_ids == (*stops, 57)


def test_blocks_of_sdar_where_nothing_says_their_size(tmp_path, stock, published):
    published(tmp_path, "sdar", stock("Qwen3"))
    config(tmp_path, block_size="gone")
    assert load_language_model(tmp_path).spec.block_size == 4


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("llada", {"model_type": "llama"}, "of type 'llama'; expected one of .*Dream.*llada.*sdar"),
        ("llada", {"model_type": None}, "of type None"),
        ("llada", {"model_type": ["llada"]}, "of type"),
        ("llada", {"block_type": "sequential"}, "{'block_type': 'sequential'} is not what a Llama"),
        ("llada", {"alibi": True}, "alibi"),
        ("llada", {"rope": False}, "rope"),
        ("llada", {"include_qkv_bias": True}, "include_qkv_bias"),
        ("llada", {"d_model": "gone"}, "does not say 'd_model'"),
        ("llada", {"d_model": "wide"}, "malformed"),
        ("llada", {"n_layers": 10**12}, "at most 1000"),
        ("llada", {"d_model": 33}, "malformed|no network"),
        ("llada", {"quantization_config": {"bits": 4}}, "quantized"),
        ("llada", {"mask_token_id": "x"}, "mask_id must be a whole number"),
        ("llada", {"eos_token_id": 64}, "stop_id 64 is not of a vocabulary"),
        ("Dream", {"use_mrope": True}, "use_mrope"),
        ("Dream", {"architectures": ["DreamForCausalLM"]}, "expected DreamModel"),
        ("Dream", {"block_size": 32}, "block_size of 32"),
        ("sdar", {"block_size": 0}, "block_size must be a whole number from 1"),
        ("sdar", {"model_type": "sdar_moe"}, "of type 'sdar_moe'"),
        (
            "sdar",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "sliding_attention",
        ),
    ],
    indirect=["kind"],
)
def test_bad_configurations(folder, changes, told):
    config(folder, **changes)
    with pytest.raises(CheckpointError, match=told):
        load_language_model(folder)
    assert is_language_model(folder) == ("model_type" not in changes)


def test_no_folder(tmp_path):
    assert not is_language_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        load_language_model(tmp_path / "nowhere")
