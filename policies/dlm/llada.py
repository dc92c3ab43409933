"""LLaDA (arXiv 2502.09992): everything sees everything, a logit speaks of its own slot.

Its network is a Llama without biases under the names of OLMo.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastloop.accel.decoding.model import Regime
from fastloop.policies.dlm.adapter import TextAdapter

__all__ = ["ADAPTER", "llama_config", "llama_key"]

# What a Llama is among the networks that its configuration can describe.
LLAMA = {
    "block_type": "llama", "block_group_size": 1, "activation_type": "silu", "rope": True,
    "alibi": False, "layer_norm_type": "rms", "layer_norm_with_affine": True,
    "attention_layer_norm": False, "input_emb_norm": False, "bias_for_layer_norm": False,
    "include_bias": False, "include_qkv_bias": False, "clip_qkv": None, "scale_logits": False,
    "multi_query_attention": None,
}  # fmt: skip
PARTS = {
    "attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}  # fmt: skip
EOT = 126348  # <|eot_id|> ends what an instructed model says; configurations name <|endoftext|>
OUTSIDE = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}


def llama_config(described: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``LlamaConfig`` from those of LLaDA's configuration.

    Raises:
        KeyError: for a size that it does not say.
        ValueError: for what a Llama has not.
    """
    other = {
        name: described[name]
        for name, value in LLAMA.items()
        if name in described and (described[name] or None) != (value or None)
    }
    if other:
        raise ValueError(f"{other} is not what a Llama does, expected {LLAMA}")
    heads = described["n_heads"]
    return {
        "vocab_size": described.get("embedding_size") or described["vocab_size"],
        "hidden_size": described["d_model"],
        "intermediate_size": described["mlp_hidden_size"],
        "num_hidden_layers": described["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": described.get("n_kv_heads") or heads,
        "max_position_embeddings": described["max_sequence_length"],
        "rms_norm_eps": described["rms_norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": described["rope_theta"]},
        "tie_word_embeddings": described.get("weight_tying", False),
        "bos_token_id": None,
        "eos_token_id": described.get("eos_token_id"),
        "pad_token_id": described.get("pad_token_id"),
    }


def llama_key(key: str) -> str:
    """What a weight of LLaDA is called in ``LlamaForCausalLM``; one that is unknown stays."""
    if found := re.fullmatch(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight", key):
        layer, part = found.groups()
        return f"model.layers.{layer}.{PARTS[part]}.weight" if part in PARTS else key
    if found := re.fullmatch(r"model\.transformer\.(\w+)\.weight", key):
        return f"{OUTSIDE[found[1]]}.weight" if found[1] in OUTSIDE else key
    return key


ADAPTER = TextAdapter(
    "LLaDA", ("llada",), "Llama", Regime.FULL, logit_shift=0, mask_id=126336, native=True,
    stop_ids=(EOT,), config=llama_config, key=llama_key,
)  # fmt: skip
