"""Folders of vision-language models: every layout, and everything that may be wrong with one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastloop.accel.decoding.model import Regime
from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError
from fastloop.policies.vla.checkpoint import is_vlm, load_vlm, save_vlm
from fastloop.policies.vla.manifest import Manifest

MANIFEST = Manifest(
    "causal_context", 4, mask_id=95, null_id=96, stop_id=97, schema="fast_ddrive_small",
    prompt="short", cameras=("front",), min_pixels=784, max_pixels=1568, training={"steps": 3},
)  # fmt: skip
NESTED = (("visual.", "model.visual."), ("model.", "model.language_model."))


@pytest.fixture(scope="module")
def network(tiny_network):
    return tiny_network(torch.float32)


@pytest.fixture
def folder(network, tmp_path):
    return save_vlm(tmp_path / "ours", network, MANIFEST, tokenizer='{"version": "1.0"}')


def config(folder, **changes):
    path = folder / "config.json"
    described = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in described.items() if v is not None}))
    return described


def rename(folder, rules, drop=()):
    path = folder / "model.safetensors"
    weights = {}
    for key, value in load_file(path).items():
        if key in drop:
            continue
        for old, new in rules:
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        weights[key] = value.clone()
    save_file(weights, path, metadata={"format": "pt"})
    return weights


def flat_config(folder):
    """As transformers 4 wrote it, with a custom class and what block diffusion adds."""
    described = config(folder)
    text, rope = described["text_config"], described["text_config"]["rope_parameters"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "vocab_size",
             "bos_token_id", "eos_token_id")  # fmt: skip
    flat = {name: text[name] for name in names} | {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "model_type": "fast_dllm_qwen2_5_vl",
        "architectures": ["Fast_dDriveForConditionalGeneration"],
        "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dDriveForConditionalGeneration"},
        "bd_size": 8, "use_block_causal_mask": True, "tie_word_embeddings": True,
        "torch_dtype": "float32", "transformers_version": "4.57.1",
        "vision_config": {**described["vision_config"], "model_type": "qwen2_5_vl"},
    }  # fmt: skip
    kept = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    flat |= {name: described[name] for name in kept}
    (folder / "config.json").write_text(json.dumps(flat))


def logits(network):
    """Of a prompt with a picture."""
    ids = torch.tensor([[5, 6, 91] + [93] * 6 + [92, 7, 8, 9]])
    pixels = torch.randn(24, 1176, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(
            input_ids=ids, pixel_values=pixels, image_grid_thw=torch.tensor([[1, 4, 6]]),
            mm_token_type_ids=(ids == 93).int(),
        ).logits  # fmt: skip


def same(loaded, network):
    assert torch.equal(logits(loaded.network), logits(network))
    assert loaded.network.config.text_config._attn_implementation == "sdpa"


def test_what_is_saved_is_loaded(folder, network):
    loaded = load_vlm(folder)
    same(loaded, network)
    assert loaded.manifest == MANIFEST
    spec = loaded.spec
    assert (spec.regime, spec.vocab, spec.mask_id, spec.stop_id, spec.null_id, spec.block_size) == (
        Regime.CAUSAL_CONTEXT, 128, 95, 97, 96, 4,
    )  # fmt: skip
    assert spec.digest == loaded.digest
    assert loaded.schema == "fast_ddrive_small"
    assert is_vlm(folder)
    assert not is_vlm(folder / "tokenizer.json")


def test_transformers_alone_opens_it(folder, network):
    transformers = pytest.importorskip("transformers")
    opened = transformers.AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    assert torch.equal(logits(opened), logits(network))


def test_saving_again_replaces_all(folder, tiny_network):
    (folder / "notes.txt").write_text("mine")
    other = tiny_network(torch.float32, seed=1)
    before = load_vlm(folder).digest
    save_vlm(folder, other, MANIFEST, tokenizer="{}")
    loaded = load_vlm(folder)
    same(loaded, other)
    assert loaded.digest != before
    assert (folder / "notes.txt").read_text() == "mine"
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_flat_layout_with_a_class_of_its_own(folder, network):
    """Fast-dDrive's layout: no network, no code, nothing missing, nothing left over."""
    weights = load_file(folder / "model.safetensors")
    assert all(key.startswith(("model.layers", "model.embed", "model.norm", "visual."))
               for key in weights)  # fmt: skip
    flat_config(folder)
    (folder / "fastloop.json").write_text('{"mask_id": 95}')
    loaded = load_vlm(folder)
    same(loaded, network)
    told = loaded.manifest
    assert (told.regime, told.block_size, told.schema, told.prompt, told.min_pixels) == (
        "causal_context", 8, "fast_ddrive", "fast_ddrive", 200704,
    )  # fmt: skip
    assert loaded.network.config.bd_size == 8


def test_nested_layout_of_custom_types(folder, network):
    described = config(folder)
    weights = rename(folder, NESTED)
    assert all(key.startswith(("model.language_model.", "model.visual.")) for key in weights)
    config(
        folder, model_type="fast_dllm_qwen2_5_vl", bd_size=32,
        architectures=["Fast_dVLMForConditionalGeneration"],
        text_config={**described["text_config"], "bd_size": 8, "use_block_causal_mask": False,
                     "model_type": "fast_dllm_qwen2_5_vl_for_causal_lm"},
        vision_config={**described["vision_config"], "model_type": "fast_dllm_qwen2_5_vl"},
    )  # fmt: skip
    (folder / "fastloop.json").write_text('{"mask_id": 95}')
    loaded = load_vlm(folder)
    same(loaded, network)
    assert (loaded.manifest.regime, loaded.manifest.block_size) == ("causal_context", 32)
    assert loaded.manifest.schema is None


def test_flat_keys_beside_nested_ones(folder, network):
    rename(folder, NESTED[:1])
    same(load_vlm(folder), network)


def test_shards(folder, network):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(weights)
    names = {key: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, key in enumerate(keys)}
    for name in set(names.values()):
        save_file({k: weights[k].clone() for k in keys if names[k] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    same(load_vlm(folder), network)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.safetensors is missing"):
        load_vlm(folder)
    index.write_text('{"weight_map": {"a": "../../elsewhere.safetensors"}}')
    with pytest.raises(RefusedError, match="outside of its folder"):
        load_vlm(folder)
    index.write_text('{"weight_map": []}')
    with pytest.raises(CheckpointError, match="names no shards"):
        load_vlm(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes(folder, dtype):
    network = load_vlm(folder, dtype=dtype).network
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype)}


def test_an_unknown_dtype(folder):
    with pytest.raises(ValueError, match="unknown dtype 'int8'; have: float32, bfloat16"):
        load_vlm(folder, dtype="int8")


def test_a_head_of_its_own(tiny_network, tmp_path):
    network = tiny_network(torch.float32)
    network.config.tie_word_embeddings = False
    network.lm_head.weight = torch.nn.Parameter(torch.randn(128, 32))
    folder = save_vlm(tmp_path, network, MANIFEST, tokenizer="{}")
    same(load_vlm(folder), network)
    rename(folder, (), drop=("lm_head.weight",))
    with pytest.raises(CheckpointError, match=r"lm_head.weight: configuration \(128, 32\)"):
        load_vlm(folder)


def test_missing_left_over_and_misshapen_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    weights = {key: value.clone() for key, value in weights.items()}
    del weights["model.norm.weight"]
    weights["model.layers.0.gate.weight"] = torch.zeros(3)
    weights["visual.merger.ln_q.weight"] = torch.zeros(5)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_vlm(folder)
    told = str(error.value)
    assert "3 weights are not those of a Qwen2.5-VL" in told
    assert "model.language_model.norm.weight: configuration (32,), weights have none" in told
    assert "layers.0.gate.weight: configuration has none, weights (3,)" in told
    assert "merger.ln_q.weight: configuration (16,), weights (5,)" in told
    assert "classes of its own" not in told
    config(folder, auto_map={"AutoModel": "modeling.Special"})
    with pytest.raises(CheckpointError, match=r"classes of its own, .*modeling.Special.* not run"):
        load_vlm(folder)


def test_a_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated or damaged"):
        load_vlm(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RefusedError, match=r"pytorch_model.bin, which only pickle reads"):
        load_vlm(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_vlm(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "llava"}, "a model of type 'llava'; expected one of qwen2_5_vl"),
        ({"model_type": None}, "a model of type None"),
        ({"quantization_config": {"quant_method": "w8a8_fp8"}}, "quantized weights .*w8a8_fp8"),
        ({"text_config": {"num_hidden_layers": 10**12}}, "at most 1000"),
        ({"text_config": {"num_hidden_layers": "three"}}, "at most 1000"),
        ({"text_config": {"hidden_size": "wide"}}, "config.json is malformed"),
        ({"text_config": {"hidden_size": 30, "num_attention_heads": 4}}, "no network|not those of"),
        ({"text_config": 5}, "malformed"),
    ],
)
def test_bad_configurations(folder, changes, told):
    config(folder, **changes)
    with pytest.raises(CheckpointError, match=told):
        load_vlm(folder)


def test_a_configuration_cannot_make_anything_load(folder, network, monkeypatch):
    """Attention kernels and adapters from elsewhere, code, files by name: not even looked at."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    described = config(folder)
    config(
        folder, _attn_implementation="somebody/kernel", attn_implementation="somebody/kernel",
        _name_or_path="somebody/model", transformers_weights="../other.safetensors",
        auto_map={"AutoConfig": "somebody/code--configuration.Config"},
        text_config={**described["text_config"], "_attn_implementation": "somebody/kernel"},
    )  # fmt: skip
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    same(load_vlm(folder), network)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"mask": 3}, "unknown \\['mask'\\]; have: regime, block_size, mask_id"),
        ({"mask_id": 128}, "mask_id 128 is not of a vocabulary of 128"),
        ({"mask_id": -1}, "mask_id must be a whole number from 0 up, got -1"),
        ({"mask_id": True}, "mask_id must be a whole number"),
        ({"mask_id": 95, "regime": "chaos"}, "unknown regime 'chaos'; have: full, prefix_lm"),
        ({"mask_id": 95, "cameras": "front"}, "cameras must be a list of names"),
        ({"mask_id": 95, "schema": "../a.yaml"}, "a name or a file of the folder"),
        ({"mask_id": 95, "schema": 5}, "fastloop.json"),
        ({"mask_id": 95, "block_size": 0}, "block_size must be a whole number from 1 up"),
        ({"mask_id": 95, "image_size": [112]}, "image_size must be width and height"),
        ({"mask_id": 95, "image_size": [112, 0]}, "image_size must be width and height"),
        ({"mask_id": 95, "image_size": 112}, "image_size must be width and height"),
        ({}, "does not say mask_id"),
    ],
)
def test_bad_manifests(folder, said, told):
    (folder / "fastloop.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=told):
        load_vlm(folder)


def test_a_regime_that_nothing_says_is_not_guessed(folder):
    (folder / "fastloop.json").write_text('{"mask_id": 95}')
    config(folder, model_type="fast_dllm_qwen2_5_vl", use_block_causal_mask=False)
    with pytest.raises(CheckpointError, match="does not say regime"):
        load_vlm(folder)
    config(folder, model_type="qwen2_5_vl")
    assert load_vlm(folder).manifest.regime == "causal"


def test_qwens_own_mask(tiny_network, tmp_path):
    network = tiny_network(torch.float32, vocab=151_936, hidden_size=8, num_attention_heads=2,
                           num_key_value_heads=1, num_hidden_layers=1, intermediate_size=8,
                           rope_parameters={"rope_type": "default", "rope_theta": 1e6,
                                            "mrope_section": [1, 1, 0]})  # fmt: skip
    folder = save_vlm(tmp_path, network, MANIFEST, tokenizer="{}")
    (folder / "fastloop.json").unlink()
    spec = load_vlm(folder).spec
    assert (spec.mask_id, spec.null_id, spec.stop_id) == (151665, 151666, 151645)


def test_a_schema_of_its_own(network, tmp_path):
    told = Manifest("causal", 4, mask_id=95, schema="answer.yaml")
    folder = save_vlm(tmp_path, network, told, tokenizer="{}", schema="name: x\n")
    assert load_vlm(folder).schema == folder / "answer.yaml"
    assert (folder / "answer.yaml").read_text() == "name: x\n"


def test_no_folder(tmp_path):
    assert not is_vlm(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        load_vlm(tmp_path / "nowhere")
