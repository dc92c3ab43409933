"""Small checkpoints with the published layouts, written the way the published code writes them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import dill
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.unet import ConditionalUnet1D

POLICY = "diffusion_policy.policy."
SCHEDULER = {
    "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
    "num_train_timesteps": 100,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
STEPS = {
    "horizon": "${horizon}",
    "n_obs_steps": "${n_obs_steps}",
    "n_action_steps": "${eval:'${n_action_steps}+${n_latency_steps}'}",
    "num_inference_steps": 100,
}
TOP = {
    "_target_": "diffusion_policy.workspace.train.Workspace",
    "task_name": "pusht_lowdim",
    "task": {"name": "pusht_lowdim", "dataset_type": "ph"},
    "obs_dim": 5,
    "action_dim": 2,
    "horizon": 8,
    "n_obs_steps": 2,
    "n_action_steps": 4,
    "n_latency_steps": 0,
    "obs_as_cond": True,
    "training": {"use_ema": True, "seed": 42},
    "logging": {"name": "${now:%Y.%m.%d}_${task_name}"},
    "max_steps": '${eval:\'500 if "${task.dataset_type}" == "mh" else 400\'}',
}
TRANSFORMER = {
    "n_layer": 2, "n_head": 2, "n_emb": 16, "p_drop_emb": 0.0, "p_drop_attn": 0.1,
    "causal_attn": True, "time_as_cond": True, "n_cond_layers": 0,
}  # fmt: skip


def normalizer(**widths: int) -> dict[str, torch.Tensor]:
    """Published normalizer keys; every field gets its own numbers."""
    found = {}
    for number, (field, width) in enumerate(widths.items(), start=2):
        start = f"normalizer.params_dict.{field}"
        found[f"{start}.scale"] = torch.full((width,), float(number))
        found[f"{start}.offset"] = torch.arange(width).float()
        for stat in ("min", "max", "mean", "std"):
            found[f"{start}.input_stats.{stat}"] = torch.ones(width)
    return found


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with values at dotted paths replaced."""
    base = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = base
        for name in parents:
            place = place[name]
        place[last] = value
    return base


class Published:
    """Writes `.ckpt` files as upstream's workspace does: torch.save through dill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        config: dict[str, Any],
        state_dict: dict[str, torch.Tensor],
        *,
        raw: dict[str, torch.Tensor] | None = None,
        **payload: Any,
    ) -> Path:
        """One file; `raw` are the weights that were not averaged."""
        held = {
            "cfg": OmegaConf.create(config),
            "state_dicts": {
                "model": raw or {k: v + 1 for k, v in state_dict.items()},
                "ema_model": state_dict,
                "optimizer": {
                    "state": {0: {"step": torch.ones(())}},
                    "param_groups": [{"lr": 1e-4}],
                },
            },
            "pickles": {
                "global_step": dill.dumps(123_456),
                "epoch": dill.dumps(7),
                "_output_dir": dill.dumps("/somewhere"),
            },
            **payload,
        }
        path = self.folder / "epoch=0007-test_mean_score=0.900.ckpt"
        with path.open("wb") as file:
            torch.save(held, file, pickle_module=dill)
        return path

    def transformer_config(self, **changes: Any) -> dict[str, Any]:
        """Low-dimensional transformer, unresolved as in the published YAML."""
        policy = {
            "_target_": POLICY
            + "diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy",
            "model": {
                "_target_": "diffusion_policy.model.diffusion.transformer_for_diffusion."
                "TransformerForDiffusion",
                "input_dim": "${eval:'${action_dim} if ${obs_as_cond} "
                "else ${obs_dim} + ${action_dim}'}",
                "output_dim": "${policy.model.input_dim}",
                "horizon": "${horizon}",
                "n_obs_steps": "${n_obs_steps}",
                "cond_dim": "${eval:'${obs_dim} if ${obs_as_cond} else 0'}",
                "obs_as_cond": "${obs_as_cond}",
                **TRANSFORMER,
            },
            "noise_scheduler": SCHEDULER,
            "obs_dim": "${obs_dim}",
            "action_dim": "${action_dim}",
            "obs_as_cond": "${obs_as_cond}",
            "pred_action_steps_only": False,
            **STEPS,
        }
        return merged(
            {**TOP, "policy": policy}, {k.replace("__", "."): v for k, v in changes.items()}
        )

    def transformer_weights(self, **changes: Any) -> dict[str, torch.Tensor]:
        """Its policy-level state dict."""
        arch = {"input_dim": 2, "output_dim": 2, "horizon": 8, "n_obs_steps": 2, "cond_dim": 5}
        torch.manual_seed(0)
        network = TransformerForDiffusion(**{**arch, **TRANSFORMER, **changes})
        return {
            **{f"model.{key}": value for key, value in network.state_dict().items()},
            **normalizer(obs=5, action=2),
            "mask_generator._dummy_variable": torch.empty(0),
            "_dummy_variable": torch.empty(0),
        }

    def transformer(self, **changes: Any) -> Path:
        """A sound checkpoint whose configuration has `changes` (``__`` for a dot)."""
        return self.write(self.transformer_config(**changes), self.transformer_weights())

    def unet(self) -> Path:
        """Low-dimensional U-Net, its expressions unquoted as in the published YAML."""
        arch = {
            "diffusion_step_embed_dim": 16, "down_dims": [8, 16], "kernel_size": 5,
            "n_groups": 8, "cond_predict_scale": True,
        }  # fmt: skip
        config = {
            **TOP,
            "obs_as_local_cond": False,
            "obs_as_global_cond": True,
            "policy": {
                "_target_": POLICY + "diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
                "model": {
                    "_target_": "diffusion_policy.model.diffusion.conditional_unet1d."
                    "ConditionalUnet1D",
                    "input_dim": "${eval: ${action_dim} if ${obs_as_local_cond} or "
                    "${obs_as_global_cond} else ${obs_dim} + ${action_dim}}",
                    "local_cond_dim": "${eval: ${obs_dim} if ${obs_as_local_cond} else None}",
                    "global_cond_dim": "${eval: ${obs_dim}*${n_obs_steps} "
                    "if ${obs_as_global_cond} else None}",
                    **arch,
                },
                "noise_scheduler": {
                    **SCHEDULER,
                    "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
                    "set_alpha_to_one": True,
                    "steps_offset": 0,
                },
                "obs_dim": "${obs_dim}",
                "action_dim": "${action_dim}",
                "obs_as_local_cond": "${obs_as_local_cond}",
                "obs_as_global_cond": "${obs_as_global_cond}",
                "pred_action_steps_only": False,
                "oa_step_convention": True,
                **STEPS,
                "num_inference_steps": 8,
            },
        }
        network = ConditionalUnet1D(2, global_cond_dim=10, **arch)
        weights = {f"model.{key}": value for key, value in network.state_dict().items()}
        return self.write(config, {**weights, **normalizer(obs=5, action=2)})


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


class ConvBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2),
            nn.GroupNorm(groups, channels),
            nn.Mish(),
        )


class Residual(nn.Module):
    """LeRobot's names: conv1, cond_encoder, conv2, residual_conv."""

    def __init__(self, channels_in: int, channels: int, cond: int) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels_in, channels, 5, 8)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond, 2 * channels))
        self.conv2 = ConvBlock(channels, channels, 5, 8)
        same = channels_in == channels
        self.residual_conv = nn.Identity() if same else nn.Conv1d(channels_in, channels, 1)

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        scale, bias = self.cond_encoder(cond)[..., None].chunk(2, dim=1)
        hidden = scale * self.conv1.block(x) + bias
        return self.conv2.block(hidden) + self.residual_conv(x)


class LeRobotUnet(nn.Module):
    """The U-Net of LeRobot's diffusion policy for two levels, from its description."""

    def __init__(self, action: int, cond: int) -> None:
        super().__init__()
        self.diffusion_step_encoder = nn.Sequential(
            nn.Identity(), nn.Linear(16, 64), nn.Mish(), nn.Linear(64, 16)
        )
        low, high, cond = 8, 16, 16 + cond
        self.down_modules = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        Residual(action, low, cond),
                        Residual(low, low, cond),
                        nn.Conv1d(low, low, 3, 2, 1),
                    ]
                ),
                nn.ModuleList([Residual(low, high, cond), Residual(high, high, cond)]),
            ]
        )
        self.mid_modules = nn.ModuleList([Residual(high, high, cond) for _ in range(2)])
        self.up_modules = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        Residual(2 * high, low, cond),
                        Residual(low, low, cond),
                        nn.ConvTranspose1d(low, low, 4, 2, 1),
                    ]
                )
            ]
        )
        self.final_conv = nn.Sequential(ConvBlock(low, low, 5, 8), nn.Conv1d(low, action, 1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        frequencies = torch.exp(torch.arange(8) * -(torch.log(torch.tensor(10_000.0)) / 7))
        angles = t[:, None] * frequencies
        feature = self.diffusion_step_encoder(torch.cat([angles.sin(), angles.cos()], -1))
        feature = torch.cat([feature, cond], -1)
        x = x.transpose(1, 2)
        x = self.down_modules[0][1](self.down_modules[0][0](x, feature), feature)
        x = self.down_modules[0][2](x)
        x = self.down_modules[1][1](self.down_modules[1][0](x, feature), feature)
        skip = x
        for block in self.mid_modules:
            x = block(x, feature)
        first, second, up = self.up_modules[0]
        x = up(second(first(torch.cat([x, skip], 1), feature), feature))
        return self.final_conv[1](self.final_conv[0].block(x)).transpose(1, 2)


class LeRobot:
    """Writes policy folders of LeRobot's diffusion policy: state 3, environment state 4, A=2."""

    STATS = {  # noqa: RUF012
        "observation.state": {"min": [0.0, 1.0, 5.0], "max": [2.0, 1.0, 9.0]},
        "observation.environment_state": {"min": [0.0] * 4, "max": [4.0] * 4},
        "action": {"min": [0.0, -1.0], "max": [512.0, 1.0]},
    }
    CONFIG = {  # noqa: RUF012
        "n_obs_steps": 2, "horizon": 8, "n_action_steps": 4,
        "vision_backbone": "resnet18", "crop_shape": None, "use_group_norm": True,
        "spatial_softmax_num_keypoints": 32, "down_dims": [8, 16], "kernel_size": 5, "n_groups": 8,
        "diffusion_step_embed_dim": 16, "use_film_scale_modulation": True,
        "noise_scheduler_type": "DDIM", "num_train_timesteps": 100, "num_inference_steps": 10,
        "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02,
        "prediction_type": "epsilon", "clip_sample": True, "clip_sample_range": 1.0,
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        self.network = LeRobotUnet(2, 2 * (3 + 4))
        self.weights = {f"diffusion.unet.{k}": v for k, v in self.network.state_dict().items()}

    def old(self, **changes: Any) -> Path:
        """As in 2024: shapes by name, statistics in buffers of the model."""
        config = {
            **self.CONFIG,
            "input_shapes": {"observation.state": [3], "observation.environment_state": [4]},
            "output_shapes": {"action": [2]},
            "input_normalization_modes": {
                "observation.state": "min_max",
                "observation.environment_state": "min_max",
            },
            "output_normalization_modes": {"action": "min_max"},
        }
        buffers = {}
        for key, stats in self.STATS.items():
            places = ["normalize_inputs"]
            if key == "action":
                places = ["normalize_targets", "unnormalize_outputs"]
            for place in places:
                for name, values in stats.items():
                    buffers[f"{place}.buffer_{key.replace('.', '_')}.{name}"] = torch.tensor(values)
        return self.write({**config, **changes}, {**self.weights, **buffers})

    def new(self, **changes: Any) -> Path:
        """As since 2025: features with types, statistics in processor files."""
        state = {"type": "STATE", "shape": [3]}
        features = {
            "observation.environment_state": {"type": "ENV", "shape": [4]},
            "observation.state": state,
        }
        config = {
            "type": "diffusion",
            **self.CONFIG,
            "input_features": features,
            "output_features": {"action": {"type": "ACTION", "shape": [2]}},
            "normalization_mapping": {
                "VISUAL": "MEAN_STD",
                "STATE": "MIN_MAX",
                "ACTION": "MIN_MAX",
            },
        }
        norm_map = {**config["normalization_mapping"], "ENV": "MIN_MAX"}
        stats = {
            f"{key}.{name}": torch.tensor(values)
            for key, held in self.STATS.items()
            for name, values in held.items()
        }
        for side, step, number in (
            ("pre", "normalizer_processor", 3),
            ("post", "unnormalizer_processor", 0),
        ):
            name = f"policy_{side}processor"
            file = f"{name}_step_{number}_{step}.safetensors"
            steps = [
                {"registry_name": "device_processor", "config": {"device": "cpu"}},
                {
                    "registry_name": step,
                    "config": {"eps": 1e-8, "norm_map": norm_map},
                    "state_file": file,
                },
            ]
            (self.folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))
            save_file(stats, self.folder / file)
        return self.write({**config, **changes}, self.weights)

    def write(self, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
        """The folder's two main files."""
        (self.folder / "config.json").write_text(json.dumps(config))
        tensors = {key: value.contiguous() for key, value in weights.items()}
        save_file(tensors, self.folder / "model.safetensors")
        return self.folder


@pytest.fixture
def lerobot_folder(tmp_path: Path) -> LeRobot:
    return LeRobot(tmp_path)
