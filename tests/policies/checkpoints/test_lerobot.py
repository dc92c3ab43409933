"""LeRobot's diffusion policy folders, the old layout and the new one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastloop.policies.checkpoints import CheckpointError, load_checkpoint
from fastloop.policies.checkpoints.model import build_model
from fastloop.policies.diffusion.resnet import ResNet18
from fastloop.policies.diffusion.vision import VisionConfig


@pytest.mark.parametrize("layout", ["old", "new"])
def test_the_network_computes_what_lerobot_s_does(lerobot_folder, layout) -> None:
    checkpoint = load_checkpoint(getattr(lerobot_folder, layout)())
    assert checkpoint.kind == "lerobot"
    assert checkpoint.sampler.kind == "ddim"
    assert checkpoint.sampler.num_inference_steps == 10
    assert (checkpoint.n_obs_steps, checkpoint.horizon, checkpoint.n_action_steps) == (2, 8, 4)
    assert list(checkpoint.inputs) == ["observation.state", "observation.environment_state"]
    model = build_model(checkpoint)
    sample, cond = torch.randn(3, 8, 2), torch.randn(3, 2, 7)
    steps = torch.tensor([0, 5, 99])
    expected = lerobot_folder.network.eval()(sample, steps, cond.flatten(1))
    assert torch.allclose(model.denoise(sample, steps, cond), expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["old", "new"])
def test_limits_become_minus_one_and_one(lerobot_folder, layout) -> None:
    normalizer = build_model(load_checkpoint(getattr(lerobot_folder, layout)())).normalizer
    low, high = torch.tensor([0.0, -1.0]), torch.tensor([512.0, 1.0])
    assert torch.allclose(normalizer.normalize("action", low), -torch.ones(2))
    assert torch.allclose(normalizer.unnormalize("action", torch.ones(2)), high)
    # The second element of the state never changed in training: it is -1 there, as in LeRobot.
    state = normalizer.normalize("observation.state", torch.tensor([2.0, 1.0, 7.0]))
    assert torch.allclose(state, torch.tensor([1.0, -1.0, 0.0]))


def test_a_constant_action_comes_back_as_it_was(lerobot_folder) -> None:
    lerobot_folder.STATS = {
        **lerobot_folder.STATS,
        "action": {"min": [3.0, -1.0], "max": [3.0, 1.0]},
    }
    normalizer = build_model(load_checkpoint(lerobot_folder.old())).normalizer
    for y in (-1.0, 0.3, 1.0):
        assert normalizer.unnormalize("action", torch.full((2,), y))[0] == pytest.approx(3.0)


def test_mean_and_deviation(lerobot_folder) -> None:
    lerobot_folder.STATS = {
        **lerobot_folder.STATS,
        "action": {"mean": [1.0, 2.0], "std": [2.0, 4.0]},
    }
    folder = lerobot_folder.old(output_normalization_modes={"action": "mean_std"})
    normalizer = build_model(load_checkpoint(folder)).normalizer
    raw = torch.tensor([5.0, 6.0])
    assert torch.allclose(normalizer.normalize("action", raw), torch.tensor([2.0, 1.0]))


def test_features_without_a_mode_stay_as_they_are(lerobot_folder) -> None:
    folder = lerobot_folder.new()
    path = folder / "policy_preprocessor.json"
    config = json.loads(path.read_text())
    del config["steps"][1]["config"]["norm_map"]["ENV"]
    path.write_text(json.dumps(config))
    normalizer = build_model(load_checkpoint(folder)).normalizer
    raw = torch.randn(4)
    assert torch.equal(normalizer.normalize("observation.environment_state", raw), raw)


@pytest.mark.parametrize("separate", [False, True])
def test_cameras(lerobot_folder, separate) -> None:
    """One backbone a camera, or one for all; statistics a channel."""
    cameras = ["observation.images.top", "observation.images.side"]
    torch.manual_seed(0)
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    weights = {}
    for index in range(2 if separate else 1):
        start = "diffusion.rgb_encoder." + (f"{index}." if separate else "")
        for key, value in ResNet18().state_dict().items():
            layer, _, rest = key.partition(".")
            weights[f"{start}backbone.{numbers[layer]}.{rest}"] = value
        weights[f"{start}pool.nets.weight"] = torch.randn(32, 512, 1, 1)
        weights[f"{start}pool.nets.bias"] = torch.randn(32)
        weights[f"{start}pool.pos_grid"] = torch.zeros(9, 2)
        weights[f"{start}out.weight"] = torch.randn(64, 64)
        weights[f"{start}out.bias"] = torch.randn(64)
    unet = type(lerobot_folder.network)(2, 2 * (3 + 4 + 2 * 64))
    lerobot_folder.weights = {f"diffusion.unet.{k}": v for k, v in unet.state_dict().items()}
    lerobot_folder.weights |= weights
    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    lerobot_folder.STATS = {**lerobot_folder.STATS, **dict.fromkeys(cameras, statistics)}
    folder = lerobot_folder.new(
        input_features={
            **{camera: {"type": "VISUAL", "shape": [3, 96, 96]} for camera in cameras},
            "observation.environment_state": {"type": "ENV", "shape": [4]},
            "observation.state": {"type": "STATE", "shape": [3]},
        },
        crop_shape=[84, 84],
        use_separate_rgb_encoder_per_camera=separate,
    )
    checkpoint = load_checkpoint(folder)
    assert list(checkpoint.inputs) == [
        "observation.state", *cameras, "observation.environment_state",
    ]  # fmt: skip
    assert checkpoint.vision == VisionConfig((84, 84), 32, 64, final_relu=True)
    model = build_model(checkpoint)
    encoders = [model.obs_encoder.obs_nets[camera.replace(".", ":")] for camera in cameras]
    shared = torch.equal(encoders[0].linear.weight, encoders[1].linear.weight)
    assert shared != separate
    pixels = torch.full((1, 1, 3), 0.5)
    mapped = model.normalizer.normalize(cameras[0], pixels)
    assert torch.allclose(mapped.flatten(), torch.tensor([0.0, 0.5, 2 / 3]), atol=1e-5)

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_group_norm": False}))
    with pytest.raises(CheckpointError, match="use_group_norm is False"):
        load_checkpoint(folder)


def drop(folder, *starts: str) -> None:
    path = folder / "model.safetensors"
    weights = {k: v for k, v in load_file(path).items() if not k.startswith(starts)}
    save_file(weights, path)


def test_missing_statistics_are_refused(lerobot_folder) -> None:
    folder = lerobot_folder.old()
    drop(folder, "unnormalize_outputs.")
    with pytest.raises(CheckpointError, match="no normalizer for 'action'"):
        load_checkpoint(folder)
    folder = lerobot_folder.new()
    path = folder / "policy_postprocessor.json"
    path.write_text(json.dumps({"name": "x", "steps": [{"registry_name": "device_processor"}]}))
    with pytest.raises(CheckpointError, match=r"no unnormalizer_processor.*device_processor"):
        load_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"policy_postprocessor\.json is missing"):
        load_checkpoint(folder)


def test_statistics_outside_the_folder_are_refused(lerobot_folder) -> None:
    folder = lerobot_folder.new()
    path = folder / "policy_preprocessor.json"
    config = json.loads(path.read_text())
    config["steps"][1]["state_file"] = "../other/stats.safetensors"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="expected a file name"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "act"}, "type 'act', expected 'diffusion'"),
        ({"down_dims": [8, 32]}, r"down_dims: configuration \[8, 32\], weights \[8, 16\]"),
        ({"kernel_size": 3}, "kernel_size: configuration 3, weights 5"),
        ({"n_obs_steps": 3}, "global_cond_dim: configuration 21, weights 14"),
        ({"n_groups": 3}, "no unet can be built"),
        ({"noise_scheduler_type": "EDM"}, "unknown sampler 'edm'"),
        ({"input_normalization_modes": {"observation.state": "magic"}}, "MIN_MAX, QUANTILES"),
        ({"input_shapes": {"observation.image": [3, 96, 96]}}, "observation.state"),
    ],
)
def test_what_does_not_fit_names_both_sides(lerobot_folder, change, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(lerobot_folder.old(**change))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files_say_so(lerobot_folder, file, share) -> None:
    path = lerobot_folder.old() / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(lerobot_folder.folder)


def test_unexpected_weights_are_named(lerobot_folder) -> None:
    lerobot_folder.weights["diffusion.transformer.x"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"unexpected key 'diffusion\.transformer\.x'"):
        load_checkpoint(lerobot_folder.old())
