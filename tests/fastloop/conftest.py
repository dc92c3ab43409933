"""Threads as they were, a vision-language policy of debug size, and a planner that denoises."""

import numpy as np
import pytest
import torch

from fastloop.accel.samplers import SamplerConfig
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.robomimic import write
from fastloop.policies.checkpoints import Checkpoint
from fastloop.policies.checkpoints.native import save
from fastloop.policies.diffusion.model import ACTION, DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.scene import SceneConfig, SceneEncoder
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.spec import ActionSpec, TensorSpec
from fastloop.policies.vla.canvas import vocabulary
from fastloop.policies.vla.checkpoint import save_vlm
from fastloop.policies.vla.manifest import Manifest
from fastloop.policies.vla.prompt import load_template
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.tokenizer import MASK, NULL, FileTokenizer, build_tokenizer, token_id

SCHEMA = """
name: tiny
block_size: 7
sections:
  flags: {pedestrian: {kind: flag}, cyclist: {kind: flag}}
  trajectory: {kind: waypoints, count: 2, step_s: 2.5, digits: 1, decimals: 1}
"""
CAMERAS = ("front_left", "front")
WAYPOINTS, HZ = 20, 4.0
STATES = {"observation.ego_states": TensorSpec((16, 6))}


@pytest.fixture(autouse=True)
def threads():
    """Verbs choose torch's thread count for their process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory):
    """A random policy that reads two cameras, with recorded drives: two of three moments each."""
    transformers = pytest.importorskip("transformers", reason="it is of transformers (extra vla)")
    pytest.importorskip("tokenizers", reason="its tokenizer is of tokenizers (extra vla)")
    pytest.importorskip("PIL", reason="pictures are resized with pillow (extra vla)")
    folder = tmp_path_factory.mktemp("vlm")
    (folder / "answer.yaml").write_text(SCHEMA)
    template = load_template("short")
    words = [template.text, template.state, *template.commands]
    tokenizer = build_tokenizer([*vocabulary(load_schema(folder / "answer.yaml")), *words])
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    ids = FileTokenizer(folder / "tokenizer.json")
    told = Manifest(
        "causal_context", 7, mask_id=token_id(ids, MASK), null_id=token_id(ids, NULL),
        schema="answer.yaml", prompt="short", cameras=CAMERAS, min_pixels=784, max_pixels=3136,
    )  # fmt: skip
    save_vlm(folder, _network(transformers, ids), told, tokenizer=tokenizer, schema=SCHEMA)
    random = np.random.default_rng(0)
    drives = [_drive(random) for _ in range(2)]
    write(folder / "held_out.hdf5", drives, env_args={"env_name": "made up"})
    return folder


def _network(transformers, ids):
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(ids), "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": None,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 56, "out_hidden_size": 32, "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=True, image_token_id=token_id(ids, "<|image_pad|>"),
        video_token_id=token_id(ids, "<|video_pad|>"),
        vision_start_token_id=token_id(ids, "<|vision_start|>"),
        vision_end_token_id=token_id(ids, "<|vision_end|>"),
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    network = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4  # else all logits are nearly equal
    return network


def _drive(random, frames=3, waypoints=20):
    plans = np.cumsum(random.normal(size=(frames, waypoints, 2)), 1).reshape(frames, -1)
    pictures = {
        f"observation.images.{camera}": random.integers(256, size=(frames, 3, 28, 56), dtype="u1")
        for camera in CAMERAS
    }
    return Demonstration(
        observations={
            "observation.ego_states": random.normal(size=(frames, 16, 6)).astype("f4"),
            "observation.intent": random.integers(4, size=frames),
            **pictures,
        },
        actions=np.concatenate([np.zeros((frames, 1)), plans], 1).astype("f4"),
    )


@pytest.fixture(scope="session")
def planner(tmp_path_factory):
    """The folder of a planner that drives on at 8 m/s, and trembles."""
    torch.manual_seed(0)
    scene = SceneConfig(width=16, layers=1, heads=2, tokens=2)
    arch = {
        "input_dim": 2, "output_dim": 2, "horizon": WAYPOINTS, "n_obs_steps": 2, "cond_dim": 16,
        "n_layer": 2, "n_head": 2, "n_emb": 16, "causal_attn": False,
        "time_as_cond": True, "n_cond_layers": 0,
    }  # fmt: skip
    normalizer = LinearNormalizer({"observation.ego_states": 96})
    scale, ahead = 5.0, torch.tensor([2.0, 0.0])  # m a waypoint
    normalizer.set_field(ACTION, torch.full((2,), scale), -scale * ahead)
    network, encoder = TransformerForDiffusion(**arch), SceneEncoder(STATES, 1, scene)
    model = DiffusionModel(network, normalizer, STATES, encoder, cumulative=True)
    made = Checkpoint(
        kind="fastloop", network="transformer", arch=arch, scene=scene, cumulative=True,
        sampler=SamplerConfig("ddpm", 10, 10), state_dict=model.state_dict(),
        inputs=STATES, action_dim=2, n_obs_steps=1, horizon=WAYPOINTS, n_action_steps=1,
        action=ActionSpec(2, "waypoint", (-1e3,) * 2, (1e3,) * 2, ("x", "y"), "m"), control_hz=HZ,
    )  # fmt: skip
    return save(tmp_path_factory.mktemp("planner") / "planner", made)


@pytest.fixture(scope="session")
def arm(tmp_path_factory):
    """The folder of a policy that holds two joints near 0, and trembles."""
    torch.manual_seed(0)
    inputs = {"observation.state": TensorSpec((2,), low=-9, high=9)}
    arch = {
        "input_dim": 2, "output_dim": 2, "horizon": 8, "n_obs_steps": 2, "cond_dim": 2,
        "n_layer": 2, "n_head": 2, "n_emb": 16, "causal_attn": True,
        "time_as_cond": True, "n_cond_layers": 0,
    }  # fmt: skip
    normalizer = LinearNormalizer({"observation.state": 2})
    normalizer.set_field("observation.state", torch.ones(2), torch.zeros(2))
    normalizer.set_field(ACTION, torch.full((2,), 50.0), torch.zeros(2))  # 0.02 rad at most
    model = DiffusionModel(TransformerForDiffusion(**arch), normalizer, inputs, None)
    made = Checkpoint(
        kind="fastloop", network="transformer", arch=arch,
        sampler=SamplerConfig("ddpm", 10, 10), state_dict=model.state_dict(),
        inputs=inputs, action_dim=2, n_obs_steps=2, horizon=8, n_action_steps=3,
        action=ActionSpec(2, "joint_position", (-2.0,) * 2, (2.0,) * 2), control_hz=10.0,
    )  # fmt: skip
    return save(tmp_path_factory.mktemp("arm") / "arm", made)
