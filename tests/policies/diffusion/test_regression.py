"""Encoders that learn to say the chunk, without a denoiser."""

import pytest
import torch

from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.regression import ChunkRegression
from fastloop.policies.diffusion.scene import SceneConfig
from fastloop.policies.diffusion.state import StateConfig
from fastloop.policies.spec import TensorSpec

STATE, EGO = "observation.state", "observation.ego_states"
ENCODERS = {
    "state": (STATE, (2,), 2, {"state": StateConfig(width=16, depth=2, feature_dim=6)}),
    "scene": (EGO, (1, 6), 1, {"scene": SceneConfig(width=16, layers=1, heads=2, tokens=3)}),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_regression_trains_the_encoder_that_it_was_given(kind):
    key, shape, n_obs_steps, config = ENCODERS[kind]
    torch.manual_seed(0)
    encoder = build_encoder({key: TensorSpec(shape)}, n_obs_steps, **config)
    regression = ChunkRegression(encoder, horizon=4, action_dim=2)
    assert regression.head.in_features == {"state": 2 * 6, "scene": 3 * 16}[kind]
    optimizer = torch.optim.Adam(regression.parameters(), lr=1e-2)
    normalizer = LinearNormalizer({key: shape[-1]})
    seen = {key: torch.randn(64, n_obs_steps, *shape)}
    newest = seen[key][:, -1].reshape(64, 1, -1)[..., :2]
    actions = newest.repeat(1, 4, 1).square()  # no linear map of them
    before = [value.clone() for value in encoder.parameters()]
    first = regression.loss(seen, actions, normalizer).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = regression.loss(seen, actions, normalizer)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    assert any(not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))


def test_actions_before_the_first_are_not_learned():
    torch.manual_seed(0)
    encoder = build_encoder({STATE: TensorSpec((2,))}, 2, **ENCODERS["state"][3])
    regression = ChunkRegression(encoder, horizon=4, action_dim=2)
    normalizer, seen = LinearNormalizer({STATE: 2}), {STATE: torch.randn(5, 2, 2)}
    actions = torch.randn(5, 4, 2)
    late = regression.loss(seen, actions, normalizer, first=1).item()
    actions[:, 0] += 1
    assert regression.loss(seen, actions, normalizer, first=1).item() == late
    assert regression.loss(seen, actions, normalizer).item() != late
    actions[:, 1] += 1
    assert regression.loss(seen, actions, normalizer, first=1).item() != late
