"""The state encoder, and actions relative to an observation."""

import pytest
import torch

from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.state import StateConfig, StateEncoder
from fastloop.policies.diffusion.vision import VisionConfig
from fastloop.policies.spec import TensorSpec

INPUTS = {"observation.state": TensorSpec((2,)), "observation.environment_state": TensorSpec((3,))}
SMALL = StateConfig(width=16, depth=2, feature_dim=6)


def observations(batch, generator=None):
    return {
        key: torch.randn(batch, 2, *spec.shape, generator=generator) for key, spec in INPUTS.items()
    }


def normalizer():
    made = LinearNormalizer({key: spec.shape[0] for key, spec in INPUTS.items()})
    made.set_field("action", torch.tensor([2.0, 4.0]), torch.tensor([0.5, -1.0]))
    return made


def test_every_frame_reaches_every_token():
    torch.manual_seed(0)
    encoder = StateEncoder(INPUTS, 2, SMALL)
    seen = observations(3)
    tokens = encoder(seen, normalizer())
    assert tokens.shape == (3, 2, encoder.width)
    for frame in (0, 1):
        changed = {key: value.clone() for key, value in seen.items()}
        changed["observation.state"][:, frame] += 1
        moved = (encoder(changed, normalizer()) - tokens).abs().amax(dim=(0, 2))
        assert (moved > 1e-4).all()


def test_relative_actions_come_back_as_they_went():
    model = DiffusionModel(
        torch.nn.Linear(1, 1), normalizer(), tuple(INPUTS), relative_to="observation.state"
    )
    seen, actions = observations(5), torch.randn(5, 4, 2)
    inside = model.normalize_actions(actions, seen)
    by_hand = (actions - seen["observation.state"][:, 1][:, None]) * torch.tensor([2.0, 4.0])
    torch.testing.assert_close(inside, by_hand + torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(model.unnormalize_actions(inside, seen), actions)


def test_an_encoder_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="not both"):
        build_encoder(INPUTS, 2, vision=VisionConfig(), state=SMALL)
    camera = {"observation.images.top": TensorSpec((3, 8, 8), "uint8", 0, 255)}
    with pytest.raises(ValueError, match="images"):
        build_encoder(camera, 2, state=SMALL)
    assert build_encoder(INPUTS, 2) is None
