"""A random Qwen2.5-VL of debug size, which reads a prompt in milliseconds."""

import pytest
import torch

from fastloop.accel.decoding.model import ModelSpec, Regime

VISION_START, VISION_END, IMAGE, VIDEO = 91, 92, 93, 94
MASK, NULL, STOP = 95, 96, 97


def build(dtype=torch.float64, *, vocab=128, seed=0, **text):
    transformers = pytest.importorskip(
        "transformers", reason="vision-language models are those of transformers (extra vla)"
    )
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO,
           "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}  # fmt: skip
    ids |= {key: text.pop(key) for key in list(text) if key in ids}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": None,
            "eos_token_id": None, "pad_token_id": None,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2],
            },
            **text,
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 56, "out_hidden_size": 32, "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=True, **ids,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    network = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4  # else all logits are nearly equal
    return network.to(dtype)


@pytest.fixture(scope="session")
def tiny_network():
    """A function (dtype, *, vocab, seed, **text_config) -> Qwen2_5_VLForConditionalGeneration."""
    return build


@pytest.fixture(scope="session")
def tiny_spec():
    """Of `tiny_network` in its default size."""
    return ModelSpec(
        Regime.CAUSAL_CONTEXT, vocab=128, mask_id=MASK, stop_id=STOP, null_id=NULL, block_size=4
    )


@pytest.fixture
def assert_alike():
    """That two losses of a network are the same, and so is what each of its weights learns."""

    def gradients(network, loss):
        network.zero_grad()
        loss.backward()
        named = network.named_parameters()
        return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}

    def check(network, loss, expected):
        torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
        ours, theirs = gradients(network, loss), gradients(network, expected)
        assert set(ours) == set(theirs)
        assert any("visual" in name for name in ours)
        for name, gradient in ours.items():
            # Norms compute in float32 whatever they are given.
            scale = float(theirs[name].abs().max())
            torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=2e-6 * scale)

    return check
