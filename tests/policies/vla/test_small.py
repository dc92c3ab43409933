"""Networks and tokenizers from nothing."""

import copy

import pytest
import torch
from torch import nn

from fastloop.policies.vla.answer import read_tokens
from fastloop.policies.vla.canvas import build_layout
from fastloop.policies.vla.prompt import load_template
from fastloop.policies.vla.schema import Choice, load_schema
from fastloop.policies.vla.small import new_network, new_tokenizer
from fastloop.policies.vla.tokenizer import FileTokenizer, build_tokenizer

pytest.importorskip("transformers", reason="vision-language models are of transformers (extra vla)")

ARCH = {
    "text": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
    "vision": {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
        "fullatt_block_indexes": [0],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    library = pytest.importorskip("tokenizers")
    made = new_tokenizer(load_schema("fast_ddrive_small"), load_template("small"))
    return FileTokenizer(library.Tokenizer.from_str(made))


@pytest.mark.parametrize("name", ["small"])
def test_questions_are_spelled_in_no_bytes(tokenizer, name):
    template = load_template(name)
    states = torch.tensor([[0.0, 0.0, 8.44, 0.0, -1.5, 0.31]])
    question = template.write(states, 2, 3)
    ids = tokenizer.encode(question)
    assert tokenizer.decode(ids) == question
    words = [tokenizer.decode([i]) for i in ids]
    assert "turn left" in words
    assert len(ids) <= 45  # 9 of them of three pictures


def test_patches_are_projected_as_by_the_convolution(tokenizer):
    torch.manual_seed(0)
    network = copy.deepcopy(new_network(ARCH, tokenizer))
    layer = network.model.visual.patch_embed.proj
    pixels = torch.randn(5, 3, 2, 14, 14)
    wanted = nn.functional.conv3d(pixels, layer.weight, layer.bias, stride=(2, 14, 14))
    torch.testing.assert_close(layer(pixels), wanted.flatten(1))
    seen = network.model.visual.patch_embed(pixels.flatten(1))
    torch.testing.assert_close(seen, wanted.flatten(1))


def test_what_follows_is_filled_in(tokenizer):
    network = new_network(ARCH, tokenizer)
    config = network.config
    assert config.vision_config.out_hidden_size == 32
    assert config.text_config.vocab_size == len(tokenizer)
    assert config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert tokenizer.decode([config.image_token_id]) == "<|image_pad|>"
    assert network.lm_head.weight is network.get_input_embeddings().weight


@pytest.mark.parametrize(
    "arch",
    [{}, {"text": ARCH["text"]}, {**ARCH, "text": {**ARCH["text"], "num_attention_heads": 0}}],
)
def test_what_is_no_network_is_refused(tokenizer, arch):
    with pytest.raises(ValueError, match=r"no Qwen2.5-VL can be built from network.arch="):
        new_network(arch, tokenizer)


def test_whatever_may_stand_in_a_choice_is_one_of_its_words(tokenizer):
    schema = load_schema("fast_ddrive_small")
    layout = build_layout(schema, tokenizer)
    canvas = layout.canvas
    for seed in range(20):
        weights = torch.rand(canvas.allowed.shape, generator=torch.Generator().manual_seed(seed))
        filled = (weights * canvas.allowed).argmax(1)[canvas.kind]
        read = read_tokens(layout, torch.where(canvas.given, canvas.tokens, filled))
        assert not read.reason
        for path, field in schema.fields():
            if isinstance(field, Choice):
                section, key = path.split(".")
                assert read.values[section][key] in field.words


def test_phrases_are_one_token_and_prose_comes_back():
    library = pytest.importorskip("tokenizers")
    made = build_tokenizer(["keep speed"], phrases=["keep speed"])
    prose = FileTokenizer(library.Tokenizer.from_str(made))
    assert len(prose.encode("keep speed")) == 1
    assert prose.decode(prose.encode("we keep speeding")) == "we keep speeding"
