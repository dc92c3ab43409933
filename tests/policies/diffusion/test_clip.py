"""CLIP as a condition, against torch's own layers and, where installed, transformers'."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastloop.policies.diffusion.clip import TOKENS, ClipConfig, ClipEncoder, ClipText, ClipVision
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.spec import TensorSpec

END = 49
SMALL = ClipConfig(
    text_width=128, text_layers=2, vocabulary=50, max_tokens=9, text_dim=6,
    vision_width=64, vision_layers=2, patch=4, image_size=8, crop_shape=(8, 8),
)  # fmt: skip
STATE, TOP, SIDE = "observation.state", "observation.images.top", "observation.images.side"
INPUTS = {
    STATE: TensorSpec((3,)),
    TOP: TensorSpec((3, 10, 12), "uint8", 0, 255),
    SIDE: TensorSpec((3, 10, 12), "uint8", 0, 255),
    TOKENS: TensorSpec((9,), "int64", 0, END),
}


def shaken(module):
    """The module with weights far from their initialization."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval().double()


def by_torch(weights, x, layers, causal):
    """A stream through nn.TransformerEncoderLayer with the weights of a CLIP encoder."""
    width = x.shape[-1]
    for index in range(layers):
        w = {
            key.removeprefix(f"encoder.layers.{index}."): value
            for key, value in weights.items()
            if key.startswith(f"encoder.layers.{index}.")
        }
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, lambda h: h * torch.sigmoid(1.702 * h),
            batch_first=True, norm_first=True,
        ).double()  # fmt: skip
        renamed = {
            "self_attn.out_proj": "self_attn.out_proj", "norm1": "layer_norm1",
            "norm2": "layer_norm2", "linear1": "mlp.fc1", "linear2": "mlp.fc2",
        }  # fmt: skip
        held = {
            f"{ours}.{kind}": w[f"{theirs}.{kind}"]
            for ours, theirs in renamed.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            packed = [w[f"self_attn.{name}_proj.{kind}"] for name in "qkv"]
            held[f"self_attn.in_proj_{kind}"] = torch.cat(packed)
        layer.load_state_dict(held)
        mask = torch.full((x.shape[1],) * 2, -torch.inf).triu(1).double() if causal else None
        x = layer(x, mask)
    return x


def instructions():
    """Three instructions of different lengths, padded with the end mark."""
    tokens = torch.full((3, 9), END)
    for row, length in enumerate((1, 4, 8)):
        tokens[row, :length] = torch.randint(END, (length,))
    return tokens


def test_text_is_the_stream_at_its_end():
    torch.manual_seed(0)
    net, tokens = shaken(ClipText(SMALL)), instructions()
    w = net.state_dict()
    x = w["embeddings.token_embedding.weight"][tokens] + w["embeddings.position_embedding.weight"]
    x = by_torch(w, x, 2, causal=True)[[0, 1, 2], [1, 4, 8]]
    expected = nn.functional.layer_norm(
        x, (128,), w["final_layer_norm.weight"], w["final_layer_norm.bias"]
    )
    torch.testing.assert_close(net(tokens), expected)


def test_what_pads_the_text_changes_nothing():
    torch.manual_seed(0)
    net, tokens = shaken(ClipText(SMALL)), instructions()[1:2]
    padded = tokens.clone()
    padded[:, 5:] = 7
    torch.testing.assert_close(net(padded), net(tokens))
    torch.testing.assert_close(net(tokens[:, :5]), net(tokens))


def test_an_image_is_its_class_token():
    torch.manual_seed(0)
    net, images = shaken(ClipVision(SMALL)), torch.randn(2, 3, 8, 8).double()
    w = net.state_dict()
    pieces = images.reshape(2, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 48)
    x = pieces @ w["embeddings.patch_embedding.weight"].flatten(1).mT
    x = torch.cat([w["embeddings.class_embedding"].expand(2, 1, -1), x], 1)
    x = nn.functional.layer_norm(
        x + w["embeddings.position_embedding.weight"], (64,),
        w["pre_layrnorm.weight"], w["pre_layrnorm.bias"],
    )  # fmt: skip
    torch.testing.assert_close(net(images), by_torch(w, x, 2, causal=False)[:, 0])


def test_it_is_the_clip_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "bos_token_id": 1, "pad_token_id": END, "eos_token_id": END}
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=128, intermediate_size=512, num_attention_heads=2, vocab_size=50,
            max_position_embeddings=9, **sizes,
        )
    )  # fmt: skip
    vision = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=64, intermediate_size=256, num_attention_heads=1, num_hidden_layers=2,
            image_size=8, patch_size=4,
        )
    )  # fmt: skip
    tokens, images = instructions(), torch.randn(2, 3, 8, 8).double()
    lengths = torch.tensor([[2], [5], [9]])
    seen = (torch.arange(9) < lengths).long()
    with torch.no_grad():
        expected = [
            shaken(text)(input_ids=tokens, attention_mask=seen).pooler_output,
            shaken(vision)(pixel_values=images).last_hidden_state[:, 0],
        ]
    ours = [ClipText(SMALL), ClipVision(SMALL)]
    for net, theirs in zip(ours, (text, vision), strict=True):
        net.load_state_dict(
            {
                key.replace("text_model.", "").replace("vision_model.", ""): value
                for key, value in theirs.state_dict().items()
                if "post_layernorm" not in key and "position_ids" not in key
            }
        )
    torch.testing.assert_close(ours[0].double()(tokens), expected[0])
    torch.testing.assert_close(ours[1].double()(images), expected[1])


def observed():
    torch.manual_seed(1)
    return {
        STATE: torch.randn(2, 2, 3).double(),
        TOP: torch.randint(256, (2, 2, 3, 10, 12), dtype=torch.uint8),
        SIDE: torch.randint(256, (2, 2, 3, 10, 12), dtype=torch.uint8),
        TOKENS: torch.stack([instructions()[:2], instructions()[1:]], dim=1),
    }


@pytest.mark.parametrize("separate", [False, True])
def test_features_stand_in_the_order_of_the_inputs(separate):
    torch.manual_seed(0)
    config = ClipConfig(**{**vars(SMALL), "separate_cameras": separate})
    encoder = shaken(ClipEncoder(INPUTS, config))
    assert len(encoder.cameras) == (2 if separate else 1)
    normalizer = LinearNormalizer({STATE: 3}).double()
    for key in (TOP, SIDE):
        normalizer.set_field(key, 1 / torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]))
    seen = observed()
    features = encoder(seen, normalizer.double())
    assert features.shape == (2, 2, encoder.width) == (2, 2, 3 + 2 * 64 + 6)
    assert torch.equal(features[..., :3], seen[STATE])
    for number, key in enumerate((TOP, SIDE)):
        pixels = seen[key][:, 1].double() / 255
        pixels = pixels / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
        pixels = (pixels + torch.tensor([1.0, 2.0, 3.0])[:, None, None])[..., 1:9, 2:10]
        expected = encoder.cameras[number * separate](pixels)
        place = slice(3 + 64 * number, 3 + 64 * (number + 1))
        torch.testing.assert_close(features[:, 1, place], expected, rtol=1e-5, atol=1e-5)
    text = encoder.projection(encoder.text(seen[TOKENS][:, -1]))
    torch.testing.assert_close(features[..., -6:], text[:, None].expand(-1, 2, -1))


def test_images_that_do_not_fit_are_refused():
    config = ClipConfig(**{**vars(SMALL), "crop_shape": None})
    with pytest.raises(ValueError, match=r"images\.top reaches.* as 10x12 pixels.* for 8x8"):
        ClipEncoder(INPUTS, config)
    ClipEncoder(INPUTS, ClipConfig(**{**vars(config), "resize_shape": (8, 8)}))
    with pytest.raises(ValueError, match="64 wide, which does not divide 96"):
        ClipEncoder(INPUTS, ClipConfig(**{**vars(SMALL), "text_width": 96}))
