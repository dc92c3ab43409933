"""Random stock networks of debug size, and published checkpoints made of them."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip


def build(family, dtype=torch.float32, seed=0, **sizes):
    transformers = pytest.importorskip(
        "transformers", reason="language models are those of transformers (extra vla)"
    )
    heads = {"head_dim": 8} if family == "Qwen3" else {}
    config = getattr(transformers, f"{family}Config")(**SIZES | heads | sizes)
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    network = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.data *= 4  # else all logits are nearly equal
        elif "norm" in name or "bias" in name:
            parameter.data += torch.randn_like(parameter) / 4
    return network.to(dtype)


OLMO = (
    (r"model\.embed_tokens\.", "model.transformer.wte."),
    (r"model\.norm\.", "model.transformer.ln_f."),
    (r"lm_head\.", "model.transformer.ff_out."),
    (r"model\.layers\.(\d+)\.input_layernorm\.", r"model.transformer.blocks.\1.attn_norm."),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.", r"model.transformer.blocks.\1.ff_norm."),
    (r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"model.transformer.blocks.\1.\2_proj."),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj\.", r"model.transformer.blocks.\1.attn_out."),
    (r"model\.layers\.(\d+)\.mlp\.gate_proj\.", r"model.transformer.blocks.\1.ff_proj."),
    (r"model\.layers\.(\d+)\.mlp\.up_proj\.", r"model.transformer.blocks.\1.up_proj."),
    (r"model\.layers\.(\d+)\.mlp\.down_proj\.", r"model.transformer.blocks.\1.ff_out."),
)
FAMILY = {"llada": "Llama", "Dream": "Qwen2", "sdar": "Qwen3", "Fast_dLLM_Qwen": "Qwen2"}


def described(kind):
    """``config.json`` as it is published, of the sizes above."""
    code = {"AutoConfig": "configuration_x.Config", "AutoModelForCausalLM": "modeling_x.Model"}
    both = {"model_type": kind, "auto_map": code, "torch_dtype": "bfloat16"}
    if kind == "llada":
        return both | {
            "activation_type": "silu", "alibi": False, "architectures": ["LLaDAModelLM"],
            "attention_layer_norm": False, "bias_for_layer_norm": False, "block_group_size": 1,
            "block_type": "llama", "d_model": 32, "embedding_size": 64, "eos_token_id": 61,
            "include_bias": False, "include_qkv_bias": False, "input_emb_norm": False,
            "layer_norm_type": "rms", "layer_norm_with_affine": True, "mask_token_id": 63,
            "max_sequence_length": 256, "mlp_hidden_size": 48, "mlp_ratio": 4, "n_heads": 4,
            "multi_query_attention": None, "n_kv_heads": 2, "n_layers": 3, "pad_token_id": 61,
            "rms_norm_eps": 1e-6, "rope": True, "rope_full_precision": True, "rope_theta": 1e4,
            "scale_logits": False, "vocab_size": 60, "weight_tying": False,
        }  # fmt: skip
    sizes = {name: value for name, value in SIZES.items() if name != "rope_parameters"}
    both |= sizes | {
        "rope_theta": 1e4, "rope_scaling": None, "hidden_act": "silu", "eos_token_id": 61,
        "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None,
        "max_window_layers": 3, "use_cache": False,
    }  # fmt: skip
    if kind == "Dream":
        return both | {"architectures": ["DreamModel"], "mask_token_id": 63, "use_mrope": False}
    if kind == "sdar":
        return both | {
            "architectures": ["SDARForCausalLM"], "attn_implementation": "flex_attention",
            "attention_bias": False, "block_size": 4, "debug": False, "fuse_cross_entropy": True,
            "head_dim": 8, "mask_token_id": 63,
        }  # fmt: skip
    return both | {"architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 8}


def publish(folder, kind, network, *, shards=0):
    """Write what its authors would: weights in one file or in shards; the tokenizer left out."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described(kind)))
    if kind == "Fast_dLLM_Qwen":  # the mask of Qwen's vocabulary is not of one of 64 tokens
        (folder / "fastloop.json").write_text('{"mask_id": 63}')
    weights = {}
    for key, value in network.state_dict().items():
        for pattern, name in OLMO if kind == "llada" else ():
            key, changed = re.subn(pattern, name, key)
            if changed:
                break
        weights[key] = value.clone()
    if not shards:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return weights
    names = {
        key: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, key in enumerate(sorted(weights))
    }
    for name in set(names.values()):
        save_file({k: v for k, v in weights.items() if names[k] == name}, folder / name)
    index = json.dumps({"metadata": {}, "weight_map": names})
    (folder / "model.safetensors.index.json").write_text(index)
    return weights


@pytest.fixture(scope="session")
def stock():
    """A function (family, dtype, seed, **sizes) -> a stock network, such as of "Llama"."""
    return build


@pytest.fixture(scope="session", params=FAMILY)
def kind(request):
    """A ``model_type`` of published checkpoints."""
    return request.param


@pytest.fixture(scope="session")
def family():
    """Of stock classes, by ``model_type``."""
    return FAMILY


@pytest.fixture(scope="session")
def published():
    """A function (folder, kind, network, *, shards) -> the published weights."""
    return publish
