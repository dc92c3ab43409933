"""LaViDa as published: against stock networks under its mask, and all that may be wrong."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from fastloop.accel.decoding import Canvas, Regime, SectionDiffusion, decode
from fastloop.accel.decoding.commits.shifted import Shifted
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.dlm.anyres import AnyRes
from fastloop.policies.dlm.conformance import conformance, table
from fastloop.policies.dlm.folder import load_language_model
from fastloop.policies.dlm.lavida import PLACE
from fastloop.policies.vla.prompt import Prompt

transformers = pytest.importorskip(
    "transformers", reason="language models are those of transformers (extra vla)"
)
pytest.importorskip("PIL", reason="their pictures are resized with pillow (extra vla)")
VOCAB, MASK, STOP, WIDTH, SIDE = 97, 96, 95, 32, 42
PINPOINTS = [[42, 84], [84, 42], [84, 84]]
CUT = AnyRes(SIDE, 14, tuple(map(tuple, PINPOINTS)))
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 14,
}  # fmt: skip
SEES = {
    "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu", "image_grid_pinpoints": PINPOINTS,
    "mm_vision_tower": "google/siglip-so400m-patch14-384", "vision_config": VISION,
    "mask_token_id": MASK, "eos_token_id": STOP, "auto_map": {"AutoModel": "evil.Model"},
}  # fmt: skip
CONFIGS = {
    "llava_llada": {
        "d_model": WIDTH, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 48,
        "embedding_size": VOCAB, "vocab_size": VOCAB, "max_sequence_length": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "block_type": "llama",
        "activation_type": "silu", "rope": True, "layer_norm_type": "rms", "weight_tying": False,
    },
    "llava_dream": {
        "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": False, "architectures": ["LlavaDreamForMaskedDiffusion"],
    },
}  # fmt: skip
LAYER = {
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}  # fmt: skip


def stock(kind):
    """The network that a folder of this type describes, with random weights of its own names."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if kind == "llava_llada":
        rope = {"rope_type": "default", "rope_theta": 500000.0}
        config = transformers.LlamaConfig(**sizes, rms_norm_eps=1e-5, rope_parameters=rope)
        network = transformers.LlamaForCausalLM(config)
    else:
        rope = {"rope_type": "default", "rope_theta": 1e6}
        config = transformers.Qwen2Config(
            **sizes, num_key_value_heads=2, rms_norm_eps=1e-6, rope_parameters=rope
        )
        network = transformers.Qwen2ForCausalLM(config)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        if parameter.ndim > 1:
            parameter.data *= 2
    return network.eval()


def published(kind, network):
    """Weights under the names that checkpoints have."""
    held = network.state_dict()
    if kind == "llava_llada":
        names = {"model.transformer.wte": "model.embed_tokens", "model.transformer.ln_f":
                 "model.norm", "model.transformer.ff_out": "lm_head"}  # fmt: skip
        for n in range(3):
            names |= {
                f"model.transformer.blocks.{n}.{theirs}": f"model.layers.{n}.{ours}"
                for theirs, ours in LAYER.items()
            }
        weights = {f"{theirs}.weight": held[f"{ours}.weight"] for theirs, ours in names.items()}
        assert len(weights) == len(held)
    else:
        weights = dict(held)
    return {key: value.clone() for key, value in weights.items()} | tower()


def tower():
    torch.manual_seed(1)
    vision = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**VISION, vision_use_head=False)
    )
    front = "model.vision_tower.vision_tower.vision_model."
    weights = {
        front + key.removeprefix("vision_model."): value
        for key, value in vision.state_dict().items()
    }
    for index, (rows, columns) in ((0, (WIDTH, 16)), (2, (WIDTH, WIDTH))):
        weights[f"model.mm_projector.{index}.weight"] = 0.3 * torch.randn(rows, columns)
        weights[f"model.mm_projector.{index}.bias"] = 0.3 * torch.randn(rows)
    weights["model.image_newline"] = torch.randn(WIDTH)
    return weights


def write(folder, kind, weights=None, *, shards=1, **changes):
    folder.mkdir(exist_ok=True)
    described = {"model_type": kind, **CONFIGS[kind], **SEES, **changes}
    (folder / "config.json").write_text(json.dumps(described))
    weights = published(kind, stock(kind)) if weights is None else weights
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names = sorted(weights)
    index = {}
    for number in range(shards):
        part = {name: weights[name] for name in names[number::shards]}
        save_file(part, folder / f"model-{number}.safetensors")
        index |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.fixture(scope="module", params=list(CONFIGS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return write(tmp_path_factory.mktemp(kind) / "model", kind, shards=3)


@pytest.fixture(scope="module")
def model(folder):
    return load_language_model(folder, "float64")


def prompt(*parts, seed=0):
    """Text lengths (numbers) and pictures (height, width)."""
    random = torch.Generator().manual_seed(seed)
    ids, frames = [], []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(0, 90, (part,), generator=random).tolist()
            continue
        frames.append(torch.randint(256, (3, *part), generator=random, dtype=torch.uint8))
        ids += [PLACE] * int(CUT.tokens(CUT.cut(frames[-1:])[1]))
    return Prompt(torch.tensor(ids), *CUT.cut(frames))


PROMPTS = [prompt(9), prompt(4, (50, 90), 6), prompt(2, (42, 42), 1, (90, 30), 5, seed=1)]


def embedded(model, network, asked, answer):
    """Embeddings (1, S, E) of a prompt with its pictures, and of an answer, put together here."""
    rows = network.get_input_embeddings()(torch.cat([asked.ids.clamp(min=0), answer]))
    if len(asked.grid):
        rows[: len(asked.ids)][asked.ids == PLACE] = model.eyes(asked.pixels, asked.grid)
    return rows[None]


def prefix_mask(prompt, answer):
    seen = torch.ones(prompt + answer, prompt + answer, dtype=torch.bool)
    seen[:prompt, prompt:] = False
    return seen


def whole(model, kind, asked, answer, mask, dtype):
    """Logits (S, V) of the stock network, over everything at once."""
    network = stock(kind).to(dtype)
    length = len(asked.ids) + len(answer)
    with torch.no_grad():
        hidden = embedded(model, network, asked, answer)
        return network(
            inputs_embeds=hidden, attention_mask=mask[None, None], use_cache=False,
            position_ids=torch.arange(length)[None],
        ).logits[0]  # fmt: skip


def answered(model, asked, answer):
    """The same of the answer alone, behind a prompt that was read once."""
    context = model.prefill([asked], room=len(answer))
    new = len(answer)
    return context, model.forward(
        answer[None], positions=context.position[:, None] + torch.arange(new),
        mask=torch.ones(1, new, context.kv.length + new, dtype=torch.bool), kv=context.kv,
    )[0]  # fmt: skip


ANSWER = torch.tensor([MASK, 5, MASK, 17, MASK, MASK, 3])


@pytest.mark.parametrize("asked", PROMPTS)
def test_logits_of_the_stock_network(kind, folder, asked):
    """In float32 and from its shards: the stock network under the prefix mask."""
    model = load_language_model(folder, "float32")
    mask = prefix_mask(len(asked.ids), len(ANSWER))
    expected = whole(model, kind, asked, ANSWER, mask, torch.float32)
    context, ours = answered(model, asked, ANSWER)
    assert (context.logits[0] - expected[len(asked.ids) - 1]).abs().max() < 1e-5 * expected.std()
    assert (ours - expected[len(asked.ids) :]).abs().max() < 1e-5 * expected.std()


@pytest.mark.parametrize("asked", PROMPTS)
def test_a_cached_prompt_is_the_prefix_mask(kind, model, asked):
    """To 1e-12 in float64, and no full attention: the two are different models."""
    size = len(asked.ids), len(ANSWER)
    _, ours = answered(model, asked, ANSWER)
    exact = whole(model, kind, asked, ANSWER, prefix_mask(*size), torch.float64)[size[0] :]
    full = torch.ones(sum(size), sum(size), dtype=torch.bool)
    other = whole(model, kind, asked, ANSWER, full, torch.float64)[size[0] :]
    assert (ours - exact).abs().max() < 1e-12
    assert (ours - other).abs().max() > 0.1


def test_what_the_folder_says(kind, folder, model):
    spec = model.spec
    assert spec.regime is Regime.PREFIX_LM
    assert (spec.vocab, spec.mask_id, spec.stop_id) == (VOCAB, MASK, STOP)
    assert spec.logit_shift == (1 if kind == "llava_dream" else 0)
    assert model.pictures == CUT
    assert spec.digest != load_language_model(write_again(folder, kind), "float64").spec.digest


def write_again(folder, kind):
    weights = published(kind, stock(kind))
    weights["model.image_newline"] += 1
    return write(folder.parent / "other", kind, weights)


def test_rows_of_different_prompts(model):
    """Different lengths and pictures in one batch: each row as if it were alone."""
    context = model.prefill(PROMPTS, room=len(ANSWER))
    new, rows = len(ANSWER), len(PROMPTS)
    before = context.visible[:, None].expand(-1, new, -1)
    mask = torch.cat([before, torch.ones(rows, new, new, dtype=torch.bool)], -1)
    ours = model.forward(
        ANSWER.expand(rows, -1), positions=context.position[:, None] + torch.arange(new),
        mask=mask, kv=context.kv,
    )  # fmt: skip
    for row, asked in enumerate(PROMPTS):
        alone, logits = answered(model, asked, ANSWER)
        assert (ours[row] - logits).abs().max() < 1e-12
        assert (context.logits[row] - alone.logits[0]).abs().max() < 1e-12


def test_pictures_are_seen_once(model, monkeypatch):
    calls = []
    real = model.eyes.forward
    monkeypatch.setattr(model.eyes, "forward", lambda *a: calls.append(len(a[1])) or real(*a))
    canvas = Canvas.free(12, VOCAB, block_size=6, banned=(MASK,))
    decode(model, PROMPTS, canvas, SectionDiffusion(commit=Shifted()))
    assert calls == [3]


def by_hand(model, kind, asked, canvas, counts):
    """The published loop, with the whole sequence under the prefix mask in every pass."""
    network = stock(kind).double()
    shift, first = (1 if kind == "llava_dream" else 0), len(asked.ids)
    ids = torch.where(canvas.given, canvas.tokens, MASK)
    mask = prefix_mask(first, len(ids))
    start = 0
    for end, planned in counts:
        for count in planned:
            with torch.no_grad():
                hidden = embedded(model, network, asked, ids)
                logits = network(
                    inputs_embeds=hidden, attention_mask=mask[None, None], use_cache=False,
                    position_ids=torch.arange(first + len(ids))[None],
                ).logits[0, first - shift : first - shift + len(ids)]  # fmt: skip
            logits[:, [MASK, STOP]] = -torch.inf
            sure, tokens = logits.softmax(-1).max(-1)
            sure[ids != MASK] = -1
            sure[end:] = -1
            chosen = sure.topk(count).indices
            ids[chosen] = tokens[chosen]
        assert (ids[start:end] != MASK).all()
        start = end
    return ids


def test_decoding_is_the_published_loop(kind, model):
    """Blocks in their order, counts by schedule, the surest slots; the prompt read once."""
    canvas = Canvas.free(16, VOCAB, block_size=8, banned=(MASK, STOP))
    for asked in PROMPTS:
        decoded = decode(model, [asked], canvas, SectionDiffusion(commit=Shifted(1 / 3, 0.5)))
        expected = by_hand(model, kind, asked, canvas, [(8, [4, 2, 1, 1]), (16, [4, 2, 1, 1])])
        assert torch.equal(decoded.tokens[0], expected)
        assert decoded.forwards["denoise"] == 8
        assert decoded.forwards["prefill"] == 1


def draft(slots, given, seed=0):
    random = torch.Generator().manual_seed(seed)
    canvas = Canvas.free(slots, VOCAB, block_size=slots, banned=(MASK, STOP))
    stands = torch.zeros(slots, dtype=torch.bool)
    stands[given] = True
    tokens = torch.randint(0, 90, (slots,), generator=random)
    return dataclasses.replace(canvas, tokens=tokens, given=stands)


def test_infilling(kind, model):
    """Given tokens stand, on both sides of what is filled in; both are seen."""
    given = [0, 1, 4, 9, 10, 11]
    canvas = draft(12, given)
    asked = PROMPTS[1]
    driver = SectionDiffusion(commit=Shifted(share=0.5))
    decoded = decode(model, [asked], canvas, driver)
    assert torch.equal(decoded.tokens[0][given], canvas.tokens[given])
    assert decoded.forwards["denoise"] == 3
    expected = by_hand(model, kind, asked, canvas, [(12, [4, 1, 1])])
    assert torch.equal(decoded.tokens[0], expected)


def test_nothing_to_fill_in(model):
    """No pass at all, and what was given comes back."""
    canvas = draft(12, list(range(12)))
    decoded = decode(model, [PROMPTS[1]], canvas, SectionDiffusion(commit=Shifted()))
    assert torch.equal(decoded.tokens[0], canvas.tokens)
    assert decoded.network_evaluations == decoded.forwards["prefill"] == 1


def test_prompts_of_token_ids(model):
    """Where there is no picture, alone and beside one that has some."""
    ids = PROMPTS[0].ids
    expected = model.prefill([PROMPTS[0]], room=1).logits[0]
    assert torch.equal(model.prefill([ids.tolist()], room=1).logits[0], expected)
    beside = model.prefill([PROMPTS[1], ids], room=1)
    assert (beside.logits[1] - expected).abs().max() < 1e-12


def test_prompts_that_cannot_be_read(model):
    good = PROMPTS[1]
    with pytest.raises(ValueError, match="there is no prompt"):
        model.prefill([], room=1)
    bad = Prompt(good.ids[:-8], good.pixels, good.grid)
    with pytest.raises(ValueError, match=r"prompt 1 holds 1\d picture tokens, its 1 pictures"):
        model.prefill([good, bad], room=1)
    wrong = Prompt(torch.tensor([5, VOCAB]), good.pixels[:0], good.grid[:0])
    with pytest.raises(ValueError, match=f"prompt 0 .* 0 to {VOCAB - 1}"):
        model.prefill([wrong], room=1)
    with pytest.raises(ValueError, match="512"):
        model.prefill([good], room=512)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("model.image_newline", "image_newline"),
        ("model.mm_projector.2.bias", "mm_projector.2.bias"),
        ("model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
         "vision_tower.encoder.layers.1.mlp.fc1.weight"),
        ("wte|embed", "model.embed_tokens.weight"),
    ],
)  # fmt: skip
def test_missing_weights_are_named(kind, tmp_path, missing, named):
    weights = published(kind, stock(kind))
    key = next(key for key in weights if any(part in key for part in missing.split("|")))
    del weights[key]
    with pytest.raises(CheckpointError, match=named.replace(".", r"\.")):
        load_language_model(write(tmp_path / "model", kind, weights))


@pytest.mark.parametrize(
    "extra",
    ["model.vision_tower.vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
     "model.mm_projector.4.weight", "model.layers.3.mlp.up_proj.weight", "model.faster_token"],
)  # fmt: skip
def test_left_over_weights_are_named(kind, tmp_path, extra):
    weights = published(kind, stock(kind)) | {extra: torch.zeros(4, 4)}
    named = extra.removeprefix("model.").removeprefix("vision_tower.vision_tower.vision_model.")
    with pytest.raises(CheckpointError, match=named.replace(".", r"\.")):
        load_language_model(write(tmp_path / "model", kind, weights))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_aspect_ratio": "pad"}, "'image_aspect_ratio': 'pad'.* is not how LaViDa sees"),
        ({"mm_projector_type": "linear"}, "'mm_projector_type': 'linear'"),
        ({"mm_spatial_pool_mode": "average"}, "'mm_spatial_pool_mode': 'average'"),
        ({"image_grid_pinpoints": [[42, 50]]}, "pinpoints"),
        ({"image_grid_pinpoints": "(1x1),(6x6)"}, "config.json"),
        ({"vision_config": {**VISION, "num_attention_heads": 3}}, "no vision tower"),
        ({"mask_token_id": VOCAB}, f"mask_id {VOCAB} is not of a vocabulary"),
        ({"vision_config": {**VISION, "hidden_size": 8}}, "size mismatch"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ],
)
def test_configurations_that_cannot_be(kind, tmp_path, change, named):
    with pytest.raises(CheckpointError, match=named):
        load_language_model(write(tmp_path / "model", kind, **change))


def test_another_regime_is_refused(kind, tmp_path):
    folder = write(tmp_path / "model", kind)
    (folder / "fastloop.json").write_text('{"regime": "full"}')
    with pytest.raises(CheckpointError, match="keeps no prompt"):
        load_language_model(folder)


@pytest.mark.parametrize("prompts", [None, PROMPTS[1:]], ids=["text", "pictures"])
def test_conformance(model, prompts):
    checks = conformance(model, prompts)
    assert all(check.passed for check in checks), table(checks)
