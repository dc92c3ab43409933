"""What MetaDrive's expert is shown here is what MetaDrive shows it, and it drives by that."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(
    find_spec("metadrive") is None, reason='pip install -c constraints.txt -e ".[driving]"'
)

from fastloop.policies.load import load_policy  # noqa: E402
from fastloop.policies.session import Session  # noqa: E402
from fastloop.policies.spec import check_specs  # noqa: E402
from fastloop.sims.experts.metadrive import Demonstrator  # noqa: E402
from fastloop.sims.metadrive.engine import metadrive  # noqa: E402
from fastloop.sims.metadrive.expert_view import VIEW, expert_view  # noqa: E402
from fastloop.sims.metadrive.map import MetaDriveMap  # noqa: E402

TRAFFIC = {"blocks": "CrX", "traffic_density": 0.2, "control": "steer_throttle"}


@pytest.fixture(scope="module")
def sim():
    made = MetaDriveMap(own_observation=True, **TRAFFIC)
    yield made
    made.close()


def test_it_sees_and_does_what_metadrives_own_code_sees_and_does(sim):
    observation, _ = sim.reset(seed=3)
    theirs = metadrive("examples.ppo_expert.numpy_expert")
    ours = load_policy("metadrive_expert", env=sim.env_spec)
    check_specs(ours.spec, sim.env_spec)
    for _ in range(40):
        assert sim.observation_space.contains(observation)
        vehicle, view = sim.engine.env.agent, observation[VIEW]
        # What the expert was trained with; its own code leaves that to whoever made the vehicle.
        vehicle.config["max_speed_km_h"] = 80.0
        mean, seen = theirs.expert(vehicle, deterministic=True, need_obs=True)
        vehicle.config["max_speed_km_h"] = 200.0
        np.testing.assert_array_equal(np.delete(view, [10, 15]), np.delete(seen[0], [10, 15]))
        np.testing.assert_array_equal(1 - view[[10, 15]], seen[0][[10, 15]])
        np.testing.assert_allclose(ours(torch.from_numpy(view)[None])[0], mean, atol=2e-6)
        observation, *_ = sim.step(mean)
    assert view[:35].std() > 0.1  # there is somebody, and the road turns
    assert (view[35:] < 1).any()


def test_looking_changes_nothing(sim):
    sim.reset(seed=3)
    before = str(sim.engine.env.agent.config)
    first = expert_view(sim.engine.env)
    assert str(sim.engine.env.agent.config) == before
    assert sim.engine.env.agent.config["max_speed_km_h"] == 200
    np.testing.assert_array_equal(expert_view(sim.engine.env), first)
    ways = []
    blind = MetaDriveMap(**TRAFFIC)
    for drives in (sim, blind):
        drives.reset(seed=3)
        for tick in range(30):
            drives.step(np.array([0.02 * np.sin(tick), 0.5]))
        ways.append(drives.moments)
    assert VIEW not in blind.env_spec.observations
    blind.close()
    assert ways[0] == ways[1]


def test_it_arrives_where_nobody_is_in_the_way():
    sim = MetaDriveMap(own_observation=True, **{**TRAFFIC, "blocks": "SC", "traffic_density": 0.0})
    session = Session(load_policy("metadrive_expert", env=sim.env_spec))
    observation, _ = sim.reset(seed=0)
    while True:
        action = session.select_action({VIEW: observation[VIEW][None]})[0]
        observation, _, terminated, truncated, info = sim.step(action.numpy())
        if terminated or truncated:
            break
    assert info["is_success"]
    sim.close()


def test_as_a_demonstrator_it_needs_no_more_than_the_engine():
    sim = MetaDriveMap(**TRAFFIC)
    sim.reset(seed=3)
    expert, rng = Demonstrator(), np.random.default_rng(0)
    expert.reset(sim)
    for _ in range(10):
        sim.step(expert.act(sim))
    act = expert.act(sim)
    assert (np.abs(act) <= 1).all()
    nudged = np.array([expert.nudge(sim, rng) for _ in range(20)])
    assert (np.abs(nudged) <= 1).all()
    assert (np.abs(nudged - act) <= [0.1, 0.4]).all()
    assert nudged.std(axis=0).min() > 0.01
    sim.close()
    with pytest.raises(ValueError, match=r"say sim\.control=steer_throttle"):
        expert.reset(MetaDriveMap())
