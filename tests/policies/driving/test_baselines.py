"""Extrapolations against motions of which the future is known."""

import dataclasses

import numpy as np
import pytest
import torch

from fastloop.policies.base import Policy
from fastloop.policies.driving.baselines import BASELINES, Baseline
from fastloop.policies.session import Session
from fastloop.policies.spec import SpecMismatchError, check_specs


def motion(env, position):
    """The observation and the future (T, 2) of a vehicle at `position(t)` (N,) -> (N, 2) m, which
    is at the origin and heads along x at time 0."""
    rows, hz = env.observations["observation.ego_states"].shape[0], env.control_hz

    def around(t, h=1e-4):
        before, now, after = position(t - h), position(t), position(t + h)
        return now, (after - before) / (2 * h), (after - 2 * now + before) / h**2

    past = np.arange(1 - rows, 1) / hz
    where, velocity, acceleration = around(past)
    observation = {
        "observation.ego_states": np.concatenate([where, velocity, acceleration], -1),
        "observation.intent": np.array(1),
        "observation.ego_heading": np.arctan2(velocity[:, 1], velocity[:, 0]),
    }
    observation["observation.ego_states"] = observation["observation.ego_states"].astype("float32")
    observation["observation.ego_heading"] = observation["observation.ego_heading"].astype(
        "float32"
    )
    future = position(np.arange(1, env.horizon + 1) / hz)
    return {key: observation[key] for key in env.observations}, future


def planned(policy, *observations):
    """Plans (B, T, 2) of as many environments."""
    session = Session(policy, num_envs=len(observations))
    for env, observation in enumerate(observations):
        session.observe(env, {key: observation[key] for key in policy.spec.inputs})
    plan = session.plan(range(len(observations)))
    assert plan.actions.dtype == torch.float32
    assert plan.dt == 1 / policy.spec.control_hz
    return plan.actions.numpy()


def straight(speed, acceleration=0.0):
    def position(t):
        return np.stack([speed * t + acceleration * t**2 / 2, 0 * t], -1)

    return position


def circle(speed, rate):
    def position(t):
        return speed / rate * np.stack([np.sin(rate * t), 1 - np.cos(rate * t)], -1)

    return position


@pytest.fixture(params=["short", "long"])
def env(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_fits_what_it_is_built_for(env, name):
    policy = Baseline(name, env)
    assert isinstance(policy, Policy)
    check_specs(policy.spec, env)
    assert policy.spec.horizon == env.horizon
    observation, _ = motion(env, straight(5.0))
    assert planned(policy, observation, observation).shape == (2, env.horizon, 2)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("stand_still", straight(0.0)),
        ("constant_velocity", straight(7.0)),
        ("constant_acceleration", straight(7.0)),
        ("constant_acceleration", straight(7.0, 1.2)),
        ("constant_acceleration", straight(12.0, -1.5)),
        ("constant_turn_rate", straight(7.0)),
        ("constant_turn_rate", circle(6.0, 0.3)),
        ("constant_turn_rate", circle(6.0, -0.3)),
        ("constant_turn_rate", circle(-3.0, 0.2)),
    ],
)
def test_a_motion_that_goes_on_is_foreseen(env, name, position):
    observation, future = motion(env, position)
    np.testing.assert_allclose(planned(Baseline(name, env), observation)[0], future, atol=2e-2)


def test_a_braking_vehicle_stops_and_does_not_turn_back(env):
    observation, _ = motion(env, straight(4.0, -4.0))
    ahead = planned(Baseline("constant_acceleration", env), observation)[0, :, 0]
    assert (np.diff(ahead) >= 0).all()
    assert ahead[-1] == pytest.approx(2.0, abs=1e-3)  # v^2 / 2a


def test_one_that_just_stopped_stays(env):
    observation, _ = motion(env, straight(0.0))
    observation["observation.ego_states"][-1, 4] = -3.0
    assert not planned(Baseline("constant_acceleration", env), observation).any()


def test_a_parked_vehicle_does_not_spin(env):
    observation, _ = motion(env, straight(0.0))
    states = observation["observation.ego_states"]
    noise = np.random.default_rng(0).normal(0, 0.01, states.shape).astype("float32")
    observation["observation.ego_states"] = noise
    if "observation.ego_heading" in observation:
        observation["observation.ego_heading"] = noise[:, 0] * 20
    (plan,) = planned(Baseline("constant_turn_rate", env), observation)
    assert np.abs(plan).max() < 0.2
    assert np.ptp(np.arctan2(plan[:, 1], plan[:, 0])) < 1e-5


def test_headings_are_angles(short):
    observation, future = motion(short, circle(6.0, 0.3))
    observation["observation.ego_heading"][:-1] += np.float32(2 * np.pi)
    plan = planned(Baseline("constant_turn_rate", short), observation)[0]
    np.testing.assert_allclose(plan, future, atol=2e-2)


def test_a_history_too_short_for_a_turn(short):
    one = dataclasses.replace(short.observations["observation.ego_states"], shape=(1, 6))
    bare = dataclasses.replace(short, observations={"observation.ego_states": one})
    observation, future = motion(bare, straight(5.0))
    plan = planned(Baseline("constant_turn_rate", bare), observation)[0]
    np.testing.assert_allclose(plan, future, atol=2e-2)


def test_environments_that_take_no_waypoints(short):
    with pytest.raises(SpecMismatchError, match="Drives takes 2 elements of kind waypoint, one a"):
        Baseline("stand_still", dataclasses.replace(short, horizon=None))
    other = dataclasses.replace(short.action, kind="absolute_position")
    with pytest.raises(SpecMismatchError, match="2 elements of kind absolute_position"):
        Baseline("stand_still", dataclasses.replace(short, action=other))
    with pytest.raises(SpecMismatchError, match=r"reads .*ego_states.; Drives offers no"):
        Baseline("constant_velocity", dataclasses.replace(short, observations={}))
    assert not Baseline("stand_still", dataclasses.replace(short, observations={})).spec.inputs
