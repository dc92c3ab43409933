"""The PushT expert: its model of the T against the simulator's, and what it does closed loop."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("gym_pusht")

from fastloop.sims.experts import pusht_geometry as geometry
from fastloop.sims.experts.pusht import PushTExpert, ticks_to_go
from fastloop.sims.experts.pusht_pushes import GAP, LENGTHS, Physics, push_table
from fastloop.sims.experts.pusht_ways import SAFE, way
from fastloop.sims.pusht import PushT

Array = geometry.Array


def make_env(seed: int) -> PushT:
    env = PushT()
    env.reset(seed=seed)
    return env


def place(env: PushT, pose: Array, agent: Array) -> None:
    env.engine.block.angle = float(pose[2])
    env.engine.block.position = tuple(pose[:2].tolist())
    env.engine.agent.position = tuple(agent.tolist())
    env.engine.agent.velocity = (0, 0)
    env.engine.space.reindex_shapes_for_body(env.engine.block)
    env.engine.space.reindex_shapes_for_body(env.engine.agent)
    env.engine.space.step(env.engine.dt)


def run(env: PushT, expert: PushTExpert, ticks: int) -> tuple[bool, list[Array]]:
    actions: list[Array] = []
    for _ in range(ticks):
        action = expert.act(env)
        actions.append(action)
        if env.step(action)[2]:
            return True, actions
    return False, actions


poses = st.tuples(
    st.floats(150, 360), st.floats(150, 360), st.floats(-np.pi, np.pi, allow_nan=False)
).map(np.array)
small = st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(-0.02, 0.02)).map(np.array)


@given(pose=poses)
@settings(max_examples=20, deadline=None)
def test_keypoints_are_those_of_the_simulator(pose: Array) -> None:
    env = make_env(0)
    place(env, pose, np.array([20.0, 20.0]))
    seen = env.engine.get_obs()["environment_state"].reshape(8, 2)
    assert np.allclose(geometry.to_world(pose, geometry.KEYPOINTS), seen, atol=1e-6)
    assert np.allclose(geometry.centroids(pose), seen.mean(0), atol=1e-6)


@given(offset=small)
@settings(max_examples=30, deadline=None)
def test_missing_share_agrees_with_the_simulators_coverage(offset: Array) -> None:
    env = make_env(0)
    pose = geometry.GOAL + offset
    place(env, pose, np.array([20.0, 20.0]))
    missing = geometry.missing(geometry.centroids(pose[None]), pose[2:])[0]
    assert missing == pytest.approx(1 - env.engine._get_coverage(), abs=0.006)


@given(pose=poses)
@settings(max_examples=30, deadline=None)
def test_the_goal_is_the_cheapest_pose_and_error_ignores_full_turns(pose: Array) -> None:
    both = np.stack([pose, geometry.GOAL])
    pose_ticks, goal_ticks = ticks_to_go(geometry.centroids(both), both[:, 2])
    assert pose_ticks >= goal_ticks
    error = geometry.pose_error(geometry.centroids(both), both[:, 2])
    turned = geometry.pose_error(geometry.centroids(both), both[:, 2] + 2 * np.pi)
    assert np.allclose(error, turned)
    assert error[1] == pytest.approx(0, abs=1e-9)


@given(pose=poses, row=st.integers(0, 10_000), length=st.integers(0, len(LENGTHS) - 1))
@settings(max_examples=20, deadline=None)
def test_the_table_predicts_a_push_from_any_pose(pose: Array, row: int, length: int) -> None:
    table = push_table()
    row %= len(table.start)
    start = geometry.to_world(pose, table.start[row])
    direction = geometry.rotate(float(pose[2]), table.direction[row])
    after = Physics().push(pose, start, direction, int(GAP + LENGTHS[length]))[-1]
    corners = geometry.to_world(after, geometry.OUTLINE)
    assume(bool(((corners > 10) & (corners < 500)).all()))  # the table knows no walls
    predicted = geometry.to_world(pose, table.centroid[row, length])
    assert np.allclose(predicted, geometry.centroids(after), atol=2.0)
    assert table.turn[row, length] == pytest.approx(after[2] - pose[2], abs=0.05)


@given(pose=poses, a=st.integers(0, 10_000), b=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_way_ends_at_its_place_and_keeps_clear_of_the_block(pose: Array, a: int, b: int) -> None:
    starts = geometry.to_world(pose, push_table().start)
    agent, goal = starts[a % len(starts)], starts[b % len(starts)]
    path = np.vstack([agent, way(pose, agent, goal)])
    assert np.allclose(path[-1], goal)
    points = np.vstack([np.linspace(p, q, 60) for p, q in pairwise(path)])
    assert geometry.clearance(geometry.to_body(pose, points)).min() > SAFE - 1.5


@pytest.mark.parametrize("seed", range(12))
def test_solves_seeded_episodes(seed: int) -> None:
    env = make_env(seed)
    expert = PushTExpert(seed)
    expert.reset(env)
    success, actions = run(env, expert, 300)
    assert success
    assert np.stack(actions).dtype == np.float32
    assert np.stack(actions).min() >= 0
    assert np.stack(actions).max() <= 512


@pytest.mark.parametrize("seed", range(6))
def test_solves_from_poses_near_the_walls_and_after_a_disturbance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    env = make_env(seed)
    corner = np.where(rng.uniform(size=2) < 0.5, 120.0, 390.0)
    place(env, np.array([*corner, rng.uniform(-np.pi, np.pi)]), rng.uniform(20, 490, 2))
    expert = PushTExpert(seed)
    run(env, expert, 15)
    for _ in range(8):
        if env.step(rng.uniform(20, 490, 2))[2]:
            return
    expert.reset(env)
    assert run(env, expert, 300)[0]


def test_an_action_is_a_short_distance_ahead_of_the_agent() -> None:
    env = make_env(3)
    expert = PushTExpert(0)
    leads = []
    for _ in range(60):
        before = np.array(env.engine.agent.position)
        action = expert.act(env)
        leads.append(float(np.linalg.norm(action - before)))
        if env.step(action)[2]:
            break
    assert max(leads) < 80
    assert np.mean(leads) > 5


def test_the_same_seed_gives_the_same_actions_and_an_expert_can_be_used_again() -> None:
    def actions(expert: PushTExpert) -> Any:
        env = make_env(5)
        expert.reset(env)
        return np.stack(run(env, expert, 40)[1])

    used = PushTExpert(1)
    first = actions(used)
    assert np.array_equal(first, actions(used))
    assert np.array_equal(first, actions(PushTExpert(1)))


def test_only_reads_the_environment() -> None:
    env = make_env(4)
    before = (
        env.engine.agent.position,
        env.engine.agent.velocity,
        env.engine.block.position,
        env.engine.block.angle,
    )
    PushTExpert(0).act(env)
    after = (
        env.engine.agent.position,
        env.engine.agent.velocity,
        env.engine.block.position,
        env.engine.block.angle,
    )
    assert before == after
