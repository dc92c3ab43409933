"""DiffusionVL as published: against the stock Qwen2.5-VL, block by block, and what may be wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastloop.accel.decoding import Canvas, Regime, SectionDiffusion, decode
from fastloop.accel.decoding.commits.fixed_count import FixedCount
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.dlm.conformance import conformance, table
from fastloop.policies.dlm.folder import load_language_model
from fastloop.policies.dlm.grid import on_grid
from fastloop.policies.driving.whole_plans import waypoint_env
from fastloop.policies.load import load_policy
from fastloop.policies.vla.images import PatchConfig
from fastloop.policies.vla.prompt import Prompt
from fastloop.sims.toy_road import ToyRoad

transformers = pytest.importorskip(
    "transformers", reason="vision-language models are those of transformers (extra vla)"
)
pytest.importorskip("PIL", reason="their pictures are resized with pillow (extra vla)")
VOCAB, MASK, STOP, PLACE, BLOCK = 97, 96, 95, 94, 4
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}  # fmt: skip
# As transformers of its time wrote configurations: text twice, the base of rotation beside it.
ROPE = {"type": "mrope", "mrope_section": [1, 1, 2]}
DESCRIBED = {
    "model_type": "diffusionvl_qwenvl", "text_config": {**TEXT, "rope_theta": 1e6,
    "rope_scaling": ROPE}, **TEXT, "rope_theta": 1e6, "rope_scaling": ROPE,
    "image_token_id": PLACE, "enable_bd3lm": True, "bd3lm_block_size": BLOCK,
    "mask_token_id": MASK, "eos_token_id": STOP, "auto_map": {"AutoModel": "evil.Model"},
}  # fmt: skip
CUT = PatchConfig(min_pixels=56 * 56, max_pixels=84 * 84)


def stock(tied):
    """The whole Qwen2.5-VL that a folder was converted from."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope, "bos_token_id": None, "eos_token_id": None,
                     "pad_token_id": None},
        vision_config=VISION, image_token_id=PLACE, tie_word_embeddings=tied,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    network = transformers.Qwen2_5_VLForConditionalGeneration(config)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        if parameter.ndim > 1:
            parameter.data *= 2
    return network.eval()


def published(network, tied):
    """Weights by file, as the conversion script of its authors writes them."""
    held = {key: value.clone() for key, value in network.state_dict().items()}
    files = {"model": {}, "vision_tower": {}, "projector": {}}
    for key, value in held.items():
        if key.startswith("model.visual.merger."):
            files["projector"][key.removeprefix("model.visual.merger.")] = value
        elif key.startswith("model.visual."):
            files["vision_tower"][key.removeprefix("model.visual.")] = value
        elif key != "lm_head.weight" or not tied:
            files["model"][key.replace("model.language_model.", "model.")] = value
    return files


def trained(files):
    """The same weights as a trained checkpoint has them: all in one file."""
    weights = dict(files["model"])
    for name, front in (
        ("vision_tower", "model.vision_tower.vision_tower."),
        ("projector", "model.mm_projector.merger."),
    ):
        weights |= {front + key: value for key, value in files[name].items()}
    return {"model": weights}


def write(folder, files, *, sizes_apart=True, **changes):
    folder.mkdir(exist_ok=True)
    described = {**DESCRIBED, **changes}
    if sizes_apart:
        (folder / "vision_config.json").write_text(json.dumps(VISION))
    else:
        described["vision_config"] = VISION
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "fastloop.json").write_text(
        json.dumps({"min_pixels": CUT.min_pixels, "max_pixels": CUT.max_pixels})
    )
    for name, weights in files.items():
        save_file(weights, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture(scope="module")
def network(tied):
    return stock(tied)


@pytest.fixture(scope="module")
def folder(network, tied, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusionvl") / "model"
    return write(folder, published(network, tied), tie_word_embeddings=tied)


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
        ids += [PLACE] * int(CUT.tokens(CUT.cut(frames[-1:])[1])[0])
    pixels, grid = CUT.cut(frames) if frames else (torch.zeros(0, 1176), torch.zeros(0, 3).long())
    return Prompt(torch.tensor(ids), pixels, grid)


PROMPTS = [prompt(8), prompt(4, (60, 90), 10), prompt(3, (56, 56), 4, (90, 60), 7, seed=1)]


def grid_mask(size):
    at = torch.arange(size) // BLOCK
    return at[:, None] >= at


@torch.no_grad()
def whole(network, asked, answer, dtype=torch.float64):
    """Logits (S, V) of the stock class under the mask of blocks, one count for all axes."""
    network = network.to(dtype)
    ids = torch.cat([asked.ids, answer])[None]
    size = ids.shape[1]
    pictures = (
        {"pixel_values": asked.pixels.to(dtype), "image_grid_thw": asked.grid}
        if len(asked.grid)
        else {}
    )
    return network(
        input_ids=ids, attention_mask=grid_mask(size)[None, None], use_cache=False,
        position_ids=torch.arange(size).expand(3, 1, -1), **pictures,
    ).logits[0]  # fmt: skip


def lined_up(asked, canvas):
    """A prompt of whole blocks, and a canvas that begins with what is left of it."""
    read, started, rest = on_grid(asked.ids, canvas, BLOCK)
    return Prompt(read, asked.pixels, asked.grid), started, rest


def denoised(model, asked, answer):
    """Logits of the first block behind a prompt of whole blocks, which is read once."""
    context = model.prefill([asked], room=len(answer))
    new = len(answer)
    return model.forward(
        answer[None], positions=context.position[:, None] + torch.arange(new),
        mask=torch.ones(1, new, context.kv.length + new, dtype=torch.bool), kv=context.kv,
    )[0]  # fmt: skip


@pytest.mark.parametrize("asked", PROMPTS)
@pytest.mark.parametrize(
    ("dtype", "worst"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["32", "64"]
)
def test_logits_of_the_stock_class(network, folder, asked, dtype, worst):
    model = load_language_model(folder, str(dtype).removeprefix("torch."))
    whole_blocks, _, rest = lined_up(asked, Canvas.free(1, VOCAB, block_size=1))
    block = torch.cat([asked.ids[len(asked.ids) - rest :], torch.full((BLOCK - rest,), MASK)])
    expected = whole(network, asked, block[rest:], dtype)[-BLOCK:]
    ours = denoised(model, whole_blocks, block)
    assert (ours - expected).abs().max() < worst * expected.std()


def test_the_layout_of_a_trained_checkpoint(model, network, tied, tmp_path):
    files = trained(published(network.float(), tied))
    folder = write(tmp_path / "model", files, sizes_apart=False, tie_word_embeddings=tied)
    other = load_language_model(folder, "float64")
    block = torch.full((BLOCK,), MASK)
    asked = lined_up(PROMPTS[1], Canvas.free(1, VOCAB, block_size=1))[0]
    assert torch.equal(denoised(model, asked, block), denoised(other, asked, block))


def test_what_the_folder_says(model):
    spec = model.spec
    assert spec.regime is Regime.BLOCK_CAUSAL
    assert (spec.mask_id, spec.stop_id, spec.block_size) == (MASK, STOP, BLOCK)
    assert spec.logit_shift == 0
    assert model.pictures == CUT
    assert model.place == PLACE


@pytest.mark.parametrize("asked", PROMPTS)
def test_decoding_is_the_published_loop(model, network, asked):
    """Block by block on the grid that begins with the prompt, the surest slots, everything again in
    each pass; a prompt's last tokens see the answer that shares their block."""
    free = Canvas.free(9, VOCAB, block_size=BLOCK, banned=(MASK, STOP))
    read, canvas, rest = lined_up(asked, free)
    decoded = decode(model, [read], canvas, SectionDiffusion(commit=FixedCount(2)))
    ids = torch.where(canvas.given, canvas.tokens, MASK)
    for start in range(0, len(ids), BLOCK):
        end = min(start + BLOCK, len(ids))
        while (ids[start:end] == MASK).any():
            logits = whole(network, read, ids[:end])[-(end - start) :]
            logits[:, [MASK, STOP]] = -torch.inf
            sure, tokens = logits.softmax(-1).max(-1)
            sure[ids[start:end] != MASK] = -1
            for slot in sure.topk(min(2, int((sure >= 0).sum()))).indices.tolist():
                ids[start + slot] = tokens[slot]
    assert torch.equal(decoded.tokens[0], ids)
    assert torch.equal(decoded.tokens[0, :rest], asked.ids[len(asked.ids) - rest :])


def test_released_sizes_of_pictures(network, tied, tmp_path):
    """147456 to 262144 pixels where the folder does not say."""
    folder = write(tmp_path / "model", published(network.float(), tied), tie_word_embeddings=tied)
    (folder / "fastloop.json").unlink()
    pictures = load_language_model(folder).pictures
    assert (pictures.min_pixels, pictures.max_pixels) == (384**2, 512**2)


@pytest.mark.parametrize(
    ("file", "key"),
    [("model", "model.norm.weight"), ("vision_tower", "blocks.1.mlp.up_proj.weight"),
     ("projector", "mlp.2.bias")],
)  # fmt: skip
def test_weights_that_are_missing_or_left_over_are_named(network, tied, tmp_path, file, key):
    files = published(network.float(), tied)
    value = files[file].pop(key)
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        load_language_model(write(tmp_path / "model", files, tie_word_embeddings=tied))
    files[file] |= {key: value, "odd.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"odd\.weight"):
        load_language_model(write(tmp_path / "model", files, tie_word_embeddings=tied))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_config": {"vocab_size": VOCAB}}, "does not say 'hidden_size'"),
        ({"mask_token_id": VOCAB}, f"mask_id {VOCAB} is not of a vocabulary"),
        ({"mask_token_id": None}, "mask_id 151671 is not of a vocabulary"),
        ({"bd3lm_block_size": -1}, "block_size"),
    ],
)
def test_configurations_that_cannot_be(network, tied, tmp_path, change, named):
    files = published(network.float(), tied)
    with pytest.raises(CheckpointError, match=named):
        load_language_model(
            write(tmp_path / "model", files, **{"tie_word_embeddings": tied, **change})
        )


def test_a_folder_without_the_towers_sizes(network, tied, tmp_path):
    folder = write(tmp_path / "model", published(network.float(), tied), tie_word_embeddings=tied)
    (folder / "vision_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vision_config\.json is missing"):
        load_language_model(folder)


@pytest.mark.parametrize("prompts", [None, PROMPTS[1:]], ids=["text", "pictures"])
def test_conformance(model, prompts):
    checks = conformance(model, prompts)
    assert all(check.passed for check in checks), table(checks)


def test_it_is_no_planner_whose_blocks_would_be_off_its_grid(folder):
    env = waypoint_env(ToyRoad().env_spec)
    with pytest.raises(CheckpointError, match="blocks begin with the prompt"):
        load_policy(folder, env=env)
