"""Checkpoints of real-stanford/diffusion_policy: what they say is what we build, or a clear no."""

from __future__ import annotations

import dill
import pytest
import torch

from fastloop.policies.checkpoints import CheckpointError, load_checkpoint
from fastloop.policies.checkpoints.model import build_model
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.vision import ObservationEncoder, VisionConfig
from fastloop.policies.spec import TensorSpec


def test_transformer_checkpoint(published) -> None:
    weights = published.transformer_weights()
    checkpoint = load_checkpoint(published.transformer())
    assert checkpoint.kind == "diffusion_policy"
    assert checkpoint.network == "transformer"
    assert checkpoint.arch["cond_dim"] == 5
    assert checkpoint.arch["input_dim"] == checkpoint.arch["output_dim"] == 2
    assert (checkpoint.n_obs_steps, checkpoint.horizon, checkpoint.n_action_steps) == (2, 8, 4)
    assert checkpoint.inputs == {"obs": TensorSpec((5,))}
    assert checkpoint.sampler.kind == "ddpm"
    assert checkpoint.sampler.num_inference_steps == 100
    assert checkpoint.training["global_step"] == 123_456
    assert checkpoint.training["epoch"] == 7
    assert checkpoint.ema
    assert len(checkpoint.digest) == 64
    assert set(weights) - set(checkpoint.state_dict) == {
        "mask_generator._dummy_variable", "_dummy_variable",
    }  # fmt: skip
    for key, value in checkpoint.state_dict.items():
        assert torch.equal(value, weights[key]), key


def test_the_model_is_the_published_one(published) -> None:
    model = build_model(load_checkpoint(published.transformer()))
    arch = {"input_dim": 2, "output_dim": 2, "horizon": 8, "n_obs_steps": 2, "cond_dim": 5}
    arch |= {"n_layer": 2, "n_head": 2, "n_emb": 16, "causal_attn": True}
    original = TransformerForDiffusion(**arch).eval()
    counted = sum(parameter.numel() for parameter in original.parameters())
    assert load_checkpoint(published.transformer()).parameters == counted
    weights = published.transformer_weights()
    original.load_state_dict(
        {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
    )
    sample, obs = torch.randn(3, 8, 2), torch.randn(3, 2, 5)
    cond = model.condition({"obs": obs})
    assert torch.allclose(cond, obs * 2 + torch.arange(5.0))
    assert torch.equal(model.denoise(sample, torch.tensor(7), cond), original(sample, 7, cond))


def test_averaged_weights_only_when_the_run_says_so(published) -> None:
    weights = published.transformer_weights()
    checkpoint = load_checkpoint(published.transformer(training__use_ema=False))
    assert not checkpoint.ema
    assert torch.equal(checkpoint.state_dict["model.pos_emb"], weights["model.pos_emb"] + 1)


def test_resolved_configurations_load_too(published) -> None:
    changes = {
        "policy__model__input_dim": 2, "policy__model__output_dim": 2, "policy__model__cond_dim": 5,
        "policy__model__horizon": 8, "policy__horizon": 8, "policy__n_action_steps": 4,
    }  # fmt: skip
    resolved = load_checkpoint(published.transformer(**changes))
    assert dict(resolved.arch) == dict(load_checkpoint(published.transformer()).arch)


def test_unet_checkpoint(published) -> None:
    checkpoint = load_checkpoint(published.unet())
    assert checkpoint.network == "unet"
    assert checkpoint.arch["global_cond_dim"] == 10
    assert checkpoint.sampler.kind == "ddim"
    assert checkpoint.sampler.num_inference_steps == 8
    model = build_model(checkpoint)
    out = model.denoise(torch.randn(2, 8, 2), torch.tensor(3), torch.randn(2, 2, 5))
    assert out.shape == (2, 8, 2)


def test_hybrid_image_checkpoint(published) -> None:
    inputs = {
        "robot0_eef_pos": TensorSpec((3,)),
        "agentview_image": TensorSpec((3, 84, 84), "uint8", 0, 255),
    }
    vision = VisionConfig(final_relu=True)
    torch.manual_seed(0)
    encoder = ObservationEncoder(inputs, vision)
    weights = published.transformer_weights(cond_dim=67)
    weights = {key: value for key, value in weights.items() if ".obs." not in key}
    for field, width in (("agentview_image", 1), ("robot0_eef_pos", 3)):
        weights[f"normalizer.params_dict.{field}.scale"] = torch.full((width,), 2.0)
        weights[f"normalizer.params_dict.{field}.offset"] = torch.full((width,), -1.0)
    # robomimic's names: the backbone, pool and linear layer by name and again in a sequence.
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    start = "obs_encoder.obs_nets.agentview_image"
    for key, value in encoder.obs_nets["agentview_image"].state_dict().items():
        part, _, rest = key.partition(".")
        if part == "backbone":
            layer, _, rest = rest.partition(".")
            names = [f"backbone.nets.{numbers[layer]}.{rest}"]
            names.append(f"nets.0.{names[0].removeprefix('backbone.')}")
        elif part == "pool":
            names = [f"pool.{rest}", f"nets.1.{rest}"]
        else:
            names = [f"nets.3.{rest}"]
        for name in names:
            weights[f"{start}.{name}"] = value
    for name in ("pool", "nets.1"):
        weights[f"{start}.{name}.pos_x"] = weights[f"{start}.{name}.pos_y"] = torch.zeros(1, 9)
    config = published.transformer_config()
    model = config["policy"].pop("model")
    hybrid = "diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy"
    config["policy"] |= {
        **{k: v for k, v in model.items() if k.startswith(("n_", "p_")) and k != "n_obs_steps"},
        "causal_attn": True, "time_as_cond": True, "crop_shape": [76, 76],
        "obs_encoder_group_norm": True, "_target_": f"diffusion_policy.policy.{hybrid}",
        "shape_meta": {
            "obs": {
                "robot0_eef_pos": {"shape": [3]},
                "agentview_image": {"shape": [3, 84, 84], "type": "rgb"},
            },
            "action": {"shape": [2]},
        },
    }  # fmt: skip
    path = published.write(config, weights, raw={"unused": torch.zeros(1)})
    checkpoint = load_checkpoint(path)
    assert checkpoint.inputs == inputs
    assert list(checkpoint.inputs) == list(inputs)
    assert checkpoint.vision == vision
    loaded = build_model(checkpoint)
    images = torch.randint(0, 255, (1, 2, 3, 84, 84), dtype=torch.uint8)
    cond = loaded.condition({"robot0_eef_pos": torch.zeros(1, 2, 3), "agentview_image": images})
    expected = encoder.eval().obs_nets["agentview_image"](images[0] / 255 * 2 - 1)
    assert torch.allclose(cond[0, :, 3:], expected, atol=1e-5)

    config["policy"]["obs_encoder_group_norm"] = False
    with pytest.raises(CheckpointError, match="batch norm"):
        load_checkpoint(published.write(config, {"model.x": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy.model.n_emb": 32}, r"n_emb: configuration 32, weights 16"),
        ({"policy.model.n_layer": 3}, r"n_layer: configuration 3, weights 2"),
        ({"policy.model.n_head": 3}, "no transformer can be built"),
        ({"policy.model.causal_attn": False}, "causal_attn: configuration False, weights True"),
        ({"horizon": 16}, "horizon: configuration 16, weights 8"),
        ({"obs_dim": 20}, "cond_dim: configuration 20, weights 5"),
        ({"policy.model.n_layer": 10**9}, "n_layer: configuration 1000000000"),
        ({"policy.obs_as_cond": False}, "obs_as_cond is False"),
        ({"policy.pred_action_steps_only": True}, "pred_action_steps_only is True"),
        ({"policy.noise_scheduler.beta_schedule": "spiral"}, "squaredcos_cap_v2"),
        ({"policy.noise_scheduler.variance_type": "learned"}, "variance_type is 'learned'"),
        ({"policy.num_inference_steps": 500}, "500"),
        (
            {"policy._target_": "diffusion_policy.policy.ibc_dfo_lowdim_policy.IbcDfoLowdimPolicy"},
            "DiffusionTransformerLowdimPolicy",
        ),
        ({"policy.noise_scheduler._target_": "diffusers.X"}, "DDIMScheduler"),
    ],
)
def test_what_does_not_fit_names_both_sides(published, change, message) -> None:
    config = published.transformer_config(**change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(published.write(config, published.transformer_weights()))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("normalizer.", "no normalizer"),
        ("normalizer.params_dict.action.", "no field 'action'"),
        ("normalizer.params_dict.obs.scale", "has no scale"),
        ("model.cond_obs_emb.", "cond_dim: configuration 5, weights 0"),
        ("model.decoder.layers.1.norm3.", "norm3.bias"),
        ("model.", "pos_emb"),
    ],
)
def test_missing_weights_are_named(published, lost, message) -> None:
    weights = published.transformer_weights()
    kept = {key: value for key, value in weights.items() if not key.startswith(lost)}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(published.write(published.transformer_config(), kept))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("normalizer.params_dict.action.scale", torch.zeros(2), "scale has a 0"),
        ("normalizer.params_dict.action.offset", torch.tensor([0.0, torch.inf]), "not finite"),
        ("normalizer.params_dict.action.scale", torch.ones(3), "action"),
        ("model.surprise", torch.zeros(1), "model.surprise: configuration has none"),
        ("surprise", torch.zeros(1), "unexpected key 'surprise'"),
        ("model.pos_emb", "text", "is a str, no tensor"),
    ],
)
def test_wrong_weights_are_named(published, key, value, message) -> None:
    weights = {**published.transformer_weights(), key: value}
    path = published.write(published.transformer_config(), weights, raw={"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_another_network_is_named(published) -> None:
    unet = published.unet()
    with unet.open("rb") as file:
        other = torch.load(file, pickle_module=dill, weights_only=False)["state_dicts"]["ema_model"]
    path = published.write(published.transformer_config(), other)
    with pytest.raises(CheckpointError, match="expected the weights of a transformer"):
        load_checkpoint(path)


def test_other_payloads_are_named(published) -> None:
    path = published.folder / "weights.ckpt"
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds weights; expected diffusion_policy's cfg"):
        load_checkpoint(path)
    path = published.write(published.transformer_config(), {}, state_dicts={"other": {}})
    with pytest.raises(CheckpointError, match="asks for 'ema_model'; state_dicts has other"):
        load_checkpoint(path)
