"""Planners of waypoints through Session to a bicycle: what arrives, when, and how it drives."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.base import Plan, Policy
from fastloop.policies.driving.whole_plans import WholePlans, plan_action, plan_rate, waypoint_env
from fastloop.policies.load import load_policy
from fastloop.policies.session import Session
from fastloop.policies.spec import (
    ActionSpec,
    EnvSpec,
    PolicySpec,
    SpecMismatchError,
    TensorSpec,
    check_specs,
)
from fastloop.sims.clock import Replay, late_ticks
from fastloop.sims.driving.bicycle import Bicycle
from fastloop.sims.driving.observation import Observer
from fastloop.sims.driving.poses import Pose
from fastloop.sims.driving.route import Route
from fastloop.sims.driving.scene import Moment, Surroundings
from fastloop.sims.driving.tracker import Tracker, place

WAYPOINT = ActionSpec(2, "waypoint", (-math.inf,) * 2, (math.inf,) * 2, ("x", "y"), "m")
AXLE = 1.3


def road(waypoints=20, hz=4.0, **observations):
    shown = {"observation.ego_states": TensorSpec((16, 6))} | observations
    return EnvSpec("Road", shown, plan_action(waypoints, hz), 10.0, max_steps=200)


class Planner:
    """Plans `decide(observation row)` -> (T, 2) for each environment."""

    def __init__(self, decide, inputs, horizon=20, hz=4.0, **spec):
        self.decide = decide
        self.spec = PolicySpec(
            **({"inputs": inputs, "action": WAYPOINT, "n_obs_steps": 1, "horizon": horizon,
                "n_action_steps": 1, "control_hz": hz} | spec)
        )  # fmt: skip

    def plan(self, history, *, rng, budget=None):
        assert not any(history.actions)  # whole plans are nothing that it did
        rows = [
            self.decide({key: history[key][b, -1] for key in self.spec.inputs})
            for b in range(len(history))
        ]
        return Plan(torch.stack(rows), 1 / self.spec.control_hz, history.ticks)


def dating(horizon=20, hz=4.0, **spec):
    """A planner whose waypoints are the number of the tick that it saw."""
    inputs = {"tick": TensorSpec(())}
    return Planner(lambda seen: seen["tick"].expand(horizon, 2), inputs, horizon, hz, **spec)


def test_every_tick_gets_the_plan_and_its_age():
    policy = WholePlans(dating(horizon=3, hz=2.0), road(3, 2.0, tick=TensorSpec(())))
    assert isinstance(policy, Policy)
    session = Session(policy, num_envs=2)
    for env, tick in enumerate((7.0, 8.0)):
        session.observe(env, {"tick": np.float32(tick)})
    plan = session.plan([0, 1])
    assert plan.dt == 0.1
    assert plan.actions.dtype == torch.float32
    assert plan.actions.shape == (2, 16, 7)  # 0 to 1.5 s
    np.testing.assert_allclose(plan.actions[..., 0], [np.arange(16) / 10] * 2, atol=1e-6)
    for row, tick in zip(plan.actions, (7.0, 8.0), strict=True):
        np.testing.assert_array_equal(row[:, 1:], tick)


def test_waypoints_stay_in_their_order():
    steps = torch.arange(10.0).reshape(5, 2)
    policy = WholePlans(Planner(lambda seen: steps, {}, 5, 1.0), road(5, 1.0))
    session = Session(policy)
    session.observe(0, {})
    np.testing.assert_array_equal(session.plan([0]).actions[0, 3, 1:], np.arange(10))


def test_alternatives_are_whole_plans_too():
    class Hesitant(Planner):
        def plan(self, history, *, rng, budget=None):
            plan = super().plan(history, rng=rng)
            return dataclasses.replace(plan, candidates=plan.actions[:, None].expand(-1, 3, -1, -1))

    policy = WholePlans(Hesitant(lambda seen: torch.ones(20, 2), {}), road())
    session = Session(policy)
    session.observe(0, {})
    plan = session.plan([0])
    assert plan.candidates.shape == (1, 3, 51, 41)
    np.testing.assert_array_equal(plan.candidates[0, 2], plan.actions[0])


@settings(max_examples=60)
@given(
    n_action_steps=st.integers(1, 20),
    waypoints=st.sampled_from([(20, 4.0), (5, 1.0), (6, 2.0), (40, 10.0), (7, 2.5), (20, 3.0)]),
    late=st.lists(st.integers(0, 70), min_size=1, max_size=12),
)
def test_the_age_is_the_ticks_since_the_observation(n_action_steps, waypoints, late):
    """However late plans are; a plan that has ended stays at its end."""
    env = road(*waypoints, tick=TensorSpec(()))
    policy = WholePlans(dating(*waypoints), env, n_action_steps=n_action_steps)
    session, tick = Session(policy), 0
    session.observe(0, {"tick": np.float32(0)})
    for number, ticks_late in enumerate(late):
        planned, ticks_late = tick, ticks_late if number else 0
        actions = session.plan([0]).actions[0]
        queue = [session.act(0) for _ in range(ticks_late)]
        session.install(0, actions, late=ticks_late)
        while not session.due(0):
            queue.append(session.act(0))
        assert len(queue) >= max(1, min(n_action_steps, ticks_late))
        for action in queue:
            age, dates = float(action[0]), set(action[1:].tolist())
            assert len(dates) == 1
            since = (tick - dates.pop()) / 10
            assert age == pytest.approx(min(since, (policy.spec.horizon - 1) / 10), abs=1e-5)
            tick += 1
            session.observe(0, {"tick": np.float32(tick)})
        assert tick > planned


@pytest.mark.parametrize(("waypoints", "hz", "ticks"), [(20, 4.0, 2), (5, 1.0, 10), (6, 2.0, 5)])
def test_it_plans_at_the_planners_rate(waypoints, hz, ticks):
    env = road(waypoints, hz, tick=TensorSpec(()))
    assert WholePlans(dating(waypoints, hz), env).spec.n_action_steps == ticks
    assert WholePlans(dating(waypoints, hz), env, n_action_steps=7).spec.n_action_steps == 7
    check_specs(WholePlans(dating(waypoints, hz), env).spec, env)


def test_longer_plans_are_cut():
    policy = WholePlans(dating(horizon=30), road(20, 4.0, tick=TensorSpec(())))
    session = Session(policy)
    session.observe(0, {"tick": np.float32(0)})
    assert session.plan([0]).actions.shape == (1, 51, 41)


@pytest.mark.parametrize(
    ("planner", "faults"),
    [
        (dating(horizon=10), ["plans 10 waypoints, Road takes 20"]),
        (dating(hz=2.0), ["plans 2.0 waypoints a second, Road takes 4.0"]),
        (dating(n_obs_steps=2, horizon=20), ["plans 19 waypoints", "reads 2 observations 0.25 s"]),
        (dating(action=ActionSpec(2, "steer_throttle", (-1, -1), (1, 1))), ["steer_throttle"]),
    ],
)
def test_what_does_not_fit_is_named(planner, faults):
    with pytest.raises(SpecMismatchError) as error:
        WholePlans(planner, road())
    for fault in faults:
        assert fault in str(error.value)


@pytest.mark.parametrize(
    "action", [WAYPOINT, ActionSpec(3, "plan", (0,) * 3, (1,) * 3), plan_action(3, 2)]
)
def test_only_plans_have_a_rate(action):
    if action.names[:1] == ("age",):
        assert plan_rate(action) == (3, 2.0)
        return
    with pytest.raises(ValueError, match="no plan of waypoints"):
        plan_rate(action)
    with pytest.raises(ValueError, match="no plan of waypoints"):
        WholePlans(dating(), dataclasses.replace(road(), action=action))


@given(st.integers(1, 60), st.sampled_from([0.5, 1, 2, 2.5, 3, 4, 5, 10, 20]))
def test_an_action_tells_its_rate(waypoints, hz):
    action = plan_action(waypoints, hz)
    assert plan_rate(action) == (waypoints, hz)
    assert len(set(action.names)) == action.dim == 1 + 2 * waypoints


def test_load_policy_wraps_where_plans_are_driven():
    env = road()
    policy = load_policy("constant_velocity", env=env, n_action_steps=3)
    assert isinstance(policy, WholePlans)
    assert policy.digest == "constant_velocity"
    assert policy.spec.n_action_steps == 3
    check_specs(policy.spec, env)
    judge = waypoint_env(env)
    assert not isinstance(load_policy("constant_velocity", env=judge), WholePlans)


# --- the whole chain: observer, planner, session, tracker and bicycle ---


def slalom(length=400.0):
    x = np.linspace(0, length, 800)
    return np.stack([x, 6 * np.sin(x / 20)], -1)


def drive(make_policy, latency_s, *, speed=8.0, ticks=200, start=(0.0, 0.0, 0.3)):
    """Poses (N, 3) of a vehicle on the slalom, and its speeds, under a replayed latency."""
    surroundings = Surroundings((), {}, (), (), (), slalom())
    observer = Observer(surroundings, rear_axle=AXLE)
    env = EnvSpec("Slalom", observer.specs(), plan_action(20, 4.0), 10.0, max_steps=ticks)
    policy = make_policy(env)
    check_specs(policy.spec, env)
    session, clock = Session(policy), Replay([latency_s])
    bicycle, tracker = Bicycle(2.6, 0.7, 4.0, 8.0), Tracker(2.6, 0.7, 4.0, 8.0, 0.1, AXLE)
    state, poses, speeds = np.array([*start, speed]), [Pose(*start)], [speed]

    def observe():
        ego = bicycle.body(state, rear_axle=AXLE)
        session.observe(0, observer.see(Moment(len(poses) / 10, ego, {})))

    observe()
    plans = 0
    while len(poses) < ticks:
        actions = session.plan([0]).actions[0]
        late = late_ticks(clock.latency_s(0, episode=0, plan=plans), 10.0) if plans else 0
        queue = [session.act(0) for _ in range(late)]
        session.install(0, actions, late=late)
        while not session.due(0):
            queue.append(session.act(0))
        plans += 1
        for action in queue:
            age, waypoints = float(action[0]), action[1:].double().numpy().reshape(-1, 2)
            then = poses[-1 - round(age * 10)]
            plan, times = place(waypoints, then, hz=4.0, age_s=age)
            controls = tracker.control(plan, times, bicycle.body(state, rear_axle=AXLE))
            state = bicycle.step(state, controls, 0.1)
            poses.append(Pose(*state[:3]))
            speeds.append(state[3])
            observe()
    return np.array(poses), np.array(speeds)


def along_the_route(env, seconds=5.0, speed=8.0):
    """Drives along the route for that long, then straight on: a planner with a short sight."""

    def decide(seen):
        route = seen["observation.route"].double().numpy()
        sight = int(seconds * speed / 3)
        route = route[: sight + 1]
        along = np.arange(len(route)) * 3.0
        way = speed * np.arange(1, 21) / 4
        end = (route[-1] - route[-2]) / 3.0
        points = np.stack([np.interp(way, along, route[:, axis]) for axis in (0, 1)], -1)
        return torch.tensor(points + np.maximum(way - along[-1], 0)[:, None] * end).float()

    return WholePlans(Planner(decide, {"observation.route": TensorSpec((30, 2))}), env)


def off_the_route(poses):
    route = Route(slalom())
    return np.array([np.hypot(*(route.ahead(Pose(*p), 1, 1.0)[0] - p[:2])) for p in poses])


def test_a_route_is_followed_however_late_where_the_plan_sees_far_enough():
    for latency_s in (0.0, 0.5, 2.0):
        poses, speeds = drive(along_the_route, latency_s)
        assert off_the_route(poses).max() < 0.6
        assert np.abs(speeds - 8).max() < 0.6


def test_the_later_the_plans_the_larger_the_error():
    off = [
        off_the_route(drive(lambda env: along_the_route(env, seconds=0.8), latency_s)[0]).mean()
        for latency_s in (0.0, 0.6, 1.2, 1.8)
    ]
    assert off[0] < 0.3
    assert all(sooner * 1.3 < later for sooner, later in pairwise(off)), off


@pytest.mark.parametrize("latency_s", [0.0, 0.35, 2.0])
def test_constant_velocity_goes_straight_on(latency_s):
    poses, speeds = drive(lambda env: load_policy("constant_velocity", env=env), latency_s)
    expected = 0.8 * np.arange(len(poses))[:, None] * [np.cos(0.3), np.sin(0.3)]
    np.testing.assert_allclose(poses[:, :2], expected, atol=0.02)
    np.testing.assert_allclose(speeds, 8, atol=0.01)


def test_stand_still_stops():
    poses, speeds = drive(lambda env: load_policy("stand_still", env=env), 0.3, ticks=60)
    assert speeds[-1] == 0
    assert 3 < np.hypot(*poses[-1, :2]) < 8
