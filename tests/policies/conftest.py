"""A diffusion policy of debug size, which plans in milliseconds."""

import pytest
import torch

from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion.model import ACTION, DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.diffusion.unet import ConditionalUnet1D
from fastloop.policies.diffusion.vision import ObservationEncoder, VisionConfig
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

N_OBS_STEPS, HORIZON = 2, 8
INPUTS = {
    "observation.state": TensorSpec((3,), low=-10, high=10),
    "observation.environment_state": TensorSpec((4,), low=-10, high=10),
}
IMAGE = {"observation.images.top": TensorSpec((3, 48, 48), "uint8", 0, 255)}


def build(
    network="transformer", *, images=False, kind="ddpm", steps=5, n_action_steps=3,
    n_obs_steps=N_OBS_STEPS, lags=(),
):  # fmt: skip
    torch.manual_seed(0)
    inputs = INPUTS | (IMAGE if images else {})
    action = ActionSpec(2, "absolute_position", (-5.0, -5.0), (5.0, 5.0))
    spec = PolicySpec(inputs, action, n_obs_steps, HORIZON, n_action_steps, 10.0, lags)
    normalizer = LinearNormalizer()
    for key, value in {**INPUTS, ACTION: TensorSpec((2,))}.items():
        width = value.shape[0]
        normalizer.set_field(key, torch.linspace(0.2, 0.4, width), torch.linspace(-0.1, 0.1, width))
    encoder = None
    if images:
        normalizer.set_image("observation.images.top")
        vision = VisionConfig(crop_shape=(40, 40), num_keypoints=4, feature_dim=6)
        encoder = ObservationEncoder(inputs, vision)
    width = encoder.width if encoder else 7
    if network == "transformer":
        net = TransformerForDiffusion(
            2,
            2,
            HORIZON,
            n_obs_steps,
            cond_dim=width,
            n_layer=2,
            n_head=2,
            n_emb=16,
            causal_attn=True,
        )
    else:
        net = ConditionalUnet1D(
            2,
            global_cond_dim=n_obs_steps * width,
            down_dims=(8, 16),
            n_groups=4,
            diffusion_step_embed_dim=10,  # and 14 make 24: products of odd width may round by place
        )
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    sampler = build_sampler(SamplerConfig(kind, 10, steps))
    return DiffusionPolicy(spec, DiffusionModel(net, normalizer, inputs, encoder), sampler)


@pytest.fixture(scope="session")
def diffusion_policy():
    """A function (network, *, images, kind, steps, n_action_steps, n_obs_steps, lags) ->
    DiffusionPolicy."""
    return build


@pytest.fixture(scope="session")
def camera_policy():
    """Like `diffusion_policy` with a camera, whose encoder is one convolution: it takes no time."""

    def make(network="transformer", **kwargs):
        policy = build(network, images=True, **kwargs)
        (encoder,) = policy.model.obs_encoder.obs_nets.values()
        encoder.backbone = torch.nn.Conv2d(3, encoder.backbone.channels, 32, 32, padding=12)
        policy.model.eval().requires_grad_(False)
        return policy

    return make


@pytest.fixture(scope="session")
def observe():
    """A function (policy, seed) -> one observation of the policy's inputs, in range."""

    def draw(policy, seed):
        random = torch.Generator().manual_seed(seed)
        return {
            key: torch.randint(256, spec.shape, generator=random, dtype=torch.uint8)
            if spec.dtype == "uint8"
            else torch.randn(spec.shape, generator=random)
            for key, spec in policy.spec.inputs.items()
        }

    return draw
