"""LeRobot's multi_task_dit folders, whose network is written out here as it is published."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastloop.accel.denoise import PlainLoop
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.checkpoints import CheckpointError, convert, describe, load_checkpoint
from fastloop.policies.checkpoints.model import build_model
from fastloop.policies.diffusion.clip import TOKENS, ClipConfig, ClipText, ClipVision
from fastloop.policies.diffusion.dit_stack import DiTStack

STATE, ENVIRONMENT, CAMERA = (
    "observation.state", "observation.environment_state", "observation.images.top",
)  # fmt: skip
TEXT = 6  # features of the instruction, as wide as the stream in the published policy
CLIP = ClipConfig(
    text_width=64, text_layers=1, vocabulary=50, max_tokens=9, text_dim=TEXT,
    vision_width=64, vision_layers=1, patch=4, image_size=8, crop_shape=(8, 8),
)  # fmt: skip
CONFIG = {
    "type": "multi_task_dit", "n_obs_steps": 2, "horizon": 8, "n_action_steps": 4,
    "objective": "diffusion", "noise_scheduler_type": "DDPM", "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02,
    "prediction_type": "epsilon", "clip_sample": True, "clip_sample_range": 1.0,
    "num_inference_steps": None, "sigma_min": 0.0, "num_integration_steps": 5,
    "integration_method": "euler", "hidden_dim": 16, "num_layers": 2, "num_heads": 2,
    "dropout": 0.1, "use_positional_encoding": False, "timestep_embed_dim": 8, "use_rope": True,
    "rope_base": 10000.0, "vision_encoder_name": "openai/clip-vit-base-patch16",
    "use_separate_rgb_encoder_per_camera": False, "image_resize_shape": None,
    "image_crop_shape": [8, 8], "text_encoder_name": "openai/clip-vit-base-patch16",
    "tokenizer_max_length": 9, "tokenizer_padding_side": "right",
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
    "input_features": {STATE: {"type": "STATE", "shape": [3]}},
    "output_features": {"action": {"type": "ACTION", "shape": [2]}},
}  # fmt: skip
STATS = {
    STATE: {"min": [0.0, 1.0, 5.0], "max": [2.0, 3.0, 9.0]},
    ENVIRONMENT: {"min": [0.0] * 4, "max": [4.0] * 4},
    CAMERA: {"mean": [[[0.5]], [[0.4]], [[0.3]]], "std": [[[0.1]], [[0.2]], [[0.3]]]},
    "action": {"min": [0.0, -1.0], "max": [512.0, 1.0]},
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj, self.out_proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 8)).mT.mT for part in self.qkv_proj(x).split(16, -1))
        rates = torch.tensor([10_000.0 ** (-i / 4) for i in range(4)])
        angle = torch.arange(x.shape[1])[:, None, None] * rates  # (T, 1, 4), the same a head

        def turned(p: torch.Tensor) -> torch.Tensor:
            low, high = p[..., :4], p[..., 4:]
            return torch.cat(
                [low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], -1
            )

        scores = torch.einsum("bqhd,bkhd->bhqk", turned(q), turned(k)) / math.sqrt(8)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return self.out_proj(mixed.flatten(2))


class Block(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU("tanh"), nn.Linear(64, 16))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(features, 96))

    def forward(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        m = self.adaLN_modulation(features).unflatten(-1, (6, 1, 16)).unbind(1)
        norm = nn.LayerNorm(16, 1e-6, elementwise_affine=False)
        x = x + m[2] * self.attn(norm(x) * (1 + m[1]) + m[0])
        return x + m[5] * self.mlp(norm(x) * (1 + m[4]) + m[3])


class Published(nn.Module):
    """The network of LeRobot's policy, from its description; `cond` numbers condition it."""

    def __init__(self, cond: int) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(
            nn.Identity(), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.GELU()
        )
        self.input_proj = nn.Linear(2, 16)
        self.transformer_blocks = nn.ModuleList(Block(8 + cond) for _ in range(2))
        self.output_proj = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        angles = t[:, None] * torch.exp(torch.arange(4) * -(math.log(10_000) / 3))
        time = self.time_mlp(torch.cat([angles.sin(), angles.cos()], -1))
        x = self.input_proj(x)
        for block in self.transformer_blocks:
            x = block(x, torch.cat([time, cond], -1))
        return self.output_proj(x)


class Folder:
    """Writes such folders, and keeps the modules whose weights are in them."""

    def __init__(self, folder, step=3 + TEXT) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.network = Published(2 * step).eval()
        self.text, self.vision = ClipText(CLIP), ClipVision(CLIP)
        self.projection = nn.Linear(64, TEXT)
        start = "observation_encoder.text_encoder."
        self.parts = {
            "noise_predictor.": self.network,
            f"{start}text_encoder.text_model.": self.text,
            f"{start}projection.": self.projection,
        }

    def write(self, **changes):
        config = {**CONFIG, **changes}
        (self.folder / "config.json").write_text(json.dumps(config))
        weights = {
            start + key: value.contiguous()
            for start, module in self.parts.items()
            for key, value in module.state_dict().items()
        }
        save_file(weights, self.folder / "model.safetensors")
        stats = {
            f"{key}.{name}": torch.tensor(values)
            for key, held in STATS.items()
            for name, values in held.items()
        }
        for side, step in (("pre", "normalizer_processor"), ("post", "unnormalizer_processor")):
            name, mapping = f"policy_{side}processor", config["normalization_mapping"]
            file = f"{name}_{step}.safetensors"
            steps = [
                {"registry_name": "tokenizer_processor", "config": {"max_length": 9}},
                {"registry_name": step, "config": {"norm_map": mapping}, "state_file": file},
            ]
            (self.folder / f"{name}.json").write_text(json.dumps({"steps": steps}))
            save_file(stats, self.folder / file)
        return self.folder

    def condition(self, *parts):
        """The published condition of two frames: `parts` (B, 2, ...) of each, then the text."""
        text = self.projection(self.text(tokens()[:, -1]))[:, None].expand(-1, 2, -1)
        return torch.cat([*parts, text], -1).flatten(1)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def tokens():
    torch.manual_seed(1)
    tokens = torch.randint(49, (3, 2, 9))
    tokens[..., 5:] = 49
    return tokens


def low(*extra):
    torch.manual_seed(2)
    widths = {STATE: 3, ENVIRONMENT: 4}
    return {key: torch.rand(3, 2, widths[key]) for key in (STATE, *extra)} | {TOKENS: tokens()}


def normalized(seen, key):
    low, high = (torch.tensor(STATS[key][name]) for name in ("min", "max"))
    return 2 * (seen[key] - low) / (high - low) - 1


def test_the_whole_policy_computes_what_is_published(folder):
    checkpoint = load_checkpoint(folder.write())
    assert (checkpoint.kind, checkpoint.network) == ("lerobot", "dit")
    assert list(checkpoint.inputs) == [STATE, TOKENS]
    assert (checkpoint.n_obs_steps, checkpoint.horizon, checkpoint.n_action_steps) == (2, 8, 4)
    assert checkpoint.sampler == SamplerConfig("ddpm", 100, 100)
    model, seen = build_model(checkpoint), low()
    sample, steps = torch.randn(3, 8, 2), torch.tensor([0, 50, 99])
    expected = folder.network(sample, steps, folder.condition(normalized(seen, STATE)))
    cond = model.condition(seen)
    torch.testing.assert_close(model.denoise(sample, steps, cond), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1
    ends = model.unnormalize_actions(torch.tensor([[[-1.0, -1.0], [1.0, 1.0]]]), seen)
    torch.testing.assert_close(ends, torch.tensor([[[0.0, -1.0], [512.0, 1.0]]]))


def test_key_names_are_those_of_the_release(folder):
    """What the file must hold, by name; another release of transformers leaves one part out."""
    linear = [
        *(
            f"noise_predictor.{n}"
            for n in ("time_mlp.1", "time_mlp.3", "input_proj", "output_proj")
        ),
        *(
            f"noise_predictor.transformer_blocks.{layer}.{name}"
            for layer in range(2)
            for name in ("attn.qkv_proj", "attn.out_proj", "mlp.0", "mlp.2", "adaLN_modulation.1")
        ),
        "observation_encoder.text_encoder.projection",
    ]
    path = folder.write() / "model.safetensors"
    text = "observation_encoder.text_encoder.text_encoder.text_model."
    held = load_file(path)
    others = {key for key in held if not key.startswith(text)}
    assert others == {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")}
    before = load_checkpoint(folder.folder).state_dict
    held = {key.replace(".text_model.", "."): value for key, value in held.items()}
    held["observation_encoder.text_encoder.text_encoder.embeddings.position_ids"] = torch.arange(9)
    save_file(held, path)
    after = load_checkpoint(folder.folder).state_dict
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("read", [True, False])
def test_the_weights_say_whether_the_environment_s_state_is_read(tmp_path, read):
    folder = Folder(tmp_path, 3 + (4 if read else 0) + TEXT)
    features = {
        ENVIRONMENT: {"type": "ENV", "shape": [4]},
        STATE: {"type": "STATE", "shape": [3]},
    }
    mapping = {**CONFIG["normalization_mapping"], "ENV": "MIN_MAX"}
    checkpoint = load_checkpoint(
        folder.write(input_features=features, normalization_mapping=mapping)
    )
    assert list(checkpoint.inputs) == [STATE, *[ENVIRONMENT] * read, TOKENS]
    seen = low(ENVIRONMENT)
    keys = [STATE, ENVIRONMENT][: 1 + read]
    cond = folder.condition(*(normalized(seen, key) for key in keys))
    found = build_model(checkpoint).condition(seen).flatten(1)
    torch.testing.assert_close(found, cond, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_cameras(tmp_path, separate):
    folder = Folder(tmp_path, 3 + 64 + TEXT)
    place = "vision_encoders.0" if separate else "vision_encoder"
    folder.parts[f"observation_encoder.{place}.model.vision_model."] = folder.vision
    features = {**CONFIG["input_features"], CAMERA: {"type": "VISUAL", "shape": [3, 10, 12]}}
    written = folder.write(input_features=features, use_separate_rgb_encoder_per_camera=separate)
    path = written / "model.safetensors"
    norm = {f"observation_encoder.{place}.model.vision_model.post_layernorm.weight": torch.ones(64)}
    save_file(load_file(path) | norm, path)
    checkpoint = load_checkpoint(written)
    assert list(checkpoint.inputs) == [STATE, CAMERA, TOKENS]
    torch.manual_seed(3)
    seen = low() | {CAMERA: torch.randint(256, (3, 2, 3, 10, 12), dtype=torch.uint8)}
    pixels = seen[CAMERA].flatten(0, 1) / 255
    mean, std = (torch.tensor(STATS[CAMERA][name]) for name in ("mean", "std"))
    image = folder.vision(((pixels - mean) / std)[..., 1:9, 2:10]).unflatten(0, (3, 2))
    cond = folder.condition(normalized(seen, STATE), image)
    found = build_model(checkpoint).condition(seen).flatten(1)
    torch.testing.assert_close(found, cond, rtol=1e-4, atol=1e-4)

    with pytest.raises(CheckpointError, match="only OpenAI's are supported"):
        load_checkpoint(folder.write(input_features=features, vision_encoder_name="laion/CLIP"))


def test_a_crop_larger_than_the_image_is_left_out(tmp_path):
    folder = Folder(tmp_path, 3 + 64 + TEXT)
    folder.parts["observation_encoder.vision_encoder.model."] = folder.vision
    features = {**CONFIG["input_features"], CAMERA: {"type": "VISUAL", "shape": [3, 8, 8]}}
    checkpoint = load_checkpoint(folder.write(input_features=features, image_crop_shape=[224, 224]))
    assert checkpoint.clip.crop_shape is None
    resized = folder.write(
        input_features={**features, CAMERA: {"type": "VISUAL", "shape": [3, 30, 40]}},
        image_resize_shape=[8, 8],
        image_crop_shape=None,
    )
    assert load_checkpoint(resized).clip.resize_shape == (8, 8)
    whole = folder.write(input_features=features, image_resize_shape=[6, 6], image_crop_shape=None)
    with pytest.raises(CheckpointError, match=r"as 6x6 pixels.* for 8x8"):
        load_checkpoint(whole)


@torch.inference_mode()
def test_a_flow_is_integrated_from_noise_to_actions(folder):
    """LeRobot's time runs from 0 at noise to 1 at the actions, and its velocity points there."""
    checkpoint = load_checkpoint(folder.write(objective="flow_matching"))
    assert checkpoint.arch["reversed_flow"]
    model, seen = build_model(checkpoint), low()
    sampler, noise = (
        build_sampler(checkpoint.sampler).to("cpu", torch.float32),
        torch.randn(3, 8, 2),
    )
    found, _ = PlainLoop(model.denoise, sampler)(noise[None], model.condition(seen))
    cond, x = folder.condition(normalized(seen, STATE)), noise
    for k in range(5):
        x = x + 0.2 * folder.network(x, torch.full((3,), k / 5), cond)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)
    stack = DiTStack(model.model, sampler.timesteps)
    ctx = stack.context(model.condition(seen))
    h = stack.begin(noise, 2, ctx)
    for i in range(len(stack.branches)):
        h = stack.add(i, h, stack.branch(i, h, 2, ctx), 2, ctx)
    expected = -folder.network(noise, torch.full((3,), 0.4), cond)
    torch.testing.assert_close(stack.finish(h, 2, ctx), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_flow_can_be_integrated_by_runge_kutta(folder):
    checkpoint = load_checkpoint(folder.write(objective="flow_matching", integration_method="rk4"))
    model, seen = build_model(checkpoint), low()
    sampler = build_sampler(checkpoint.sampler).to("cpu", torch.float32)
    noise = torch.randn(3, 8, 2)
    found, _ = PlainLoop(model.denoise, sampler)(noise[None], model.condition(seen))
    cond, x, h = folder.condition(normalized(seen, STATE)), noise, 0.2

    def velocity(x, t):
        return folder.network(x, torch.full((3,), t), cond)

    for i in range(5):
        k1 = velocity(x, i * h)
        k2 = velocity(x + h / 2 * k1, i * h + h / 2)
        k3 = velocity(x + h / 2 * k2, i * h + h / 2)
        k4 = velocity(x + h * k3, i * h + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_it_can_be_kept_as_our_own_folder(folder, tmp_path):
    checkpoint = load_checkpoint(folder.write())
    kept = load_checkpoint(convert(folder.folder, tmp_path / "ours"))
    assert (kept.clip, kept.arch, kept.inputs) == (
        checkpoint.clip, dict(checkpoint.arch), checkpoint.inputs,
    )  # fmt: skip
    assert all(torch.equal(checkpoint.state_dict[k], v) for k, v in kept.state_dict.items())
    assert describe(tmp_path / "ours")["clip"]["text_width"] == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_dim": 32}, "hidden_dim: configuration 32, weights 16"),
        ({"num_layers": 3}, "num_layers: configuration 3, weights 2"),
        ({"n_obs_steps": 1}, "global_cond_dim: configuration 9, weights 18"),
        ({"num_heads": 3}, "no dit can be built.*3 heads do not fit a width of 16"),
        ({"use_rope": False}, "use_rope: configuration False, weights True"),
        ({"use_positional_encoding": True}, "use_positional_encoding: configuration True"),
        ({"objective": "score"}, "unknown objective 'score'; choose one of diffusion, flow"),
        (
            {"objective": "flow_matching", "integration_method": "heun"},
            "'heun'; choose one of euler",
        ),
        ({"noise_scheduler_type": "EDM"}, "unknown sampler 'edm'"),
        ({"text_encoder_name": "laion/CLIP-ViT"}, "'laion/CLIP-ViT'; only OpenAI's"),
        ({"tokenizer_padding_side": "left"}, "'left'; only 'right' is supported"),
        ({"input_features": {}}, "expected the input observation.state"),
        ({"n_action_steps": 9}, "within the horizon"),
        ({"hidden_dim": "wide"}, "hidden_dim: configuration 'wide', weights 16"),
    ],
)
def test_what_does_not_fit_names_both_sides(folder, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder.write(**change))


def test_missing_and_unexpected_weights_are_named(folder):
    path = folder.write() / "model.safetensors"
    held = load_file(path)
    save_file({k: v for k, v in held.items() if k.startswith("noise_predictor.")}, path)
    with pytest.raises(CheckpointError, match=r"no obs_encoder\.text.*weights of the CLIP"):
        load_checkpoint(folder.folder)
    save_file({k: v for k, v in held.items() if "transformer_blocks" not in k}, path)
    with pytest.raises(CheckpointError, match="expected the weights of a dit"):
        load_checkpoint(folder.folder)
    save_file(held | {"value_head.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected key 'value_head\.weight'"):
        load_checkpoint(folder.folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_files_say_so(folder, file, share):
    path = folder.write() / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(folder.folder)
