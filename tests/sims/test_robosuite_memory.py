"""The memory tasks: stages in order, mistakes that are final, exact states, and nothing told."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from fastloop.sims.experts.memory import PlaceOppositeExpert, SquareTwiceExpert
from fastloop.sims.experts.robosuite import DOWN, OPEN, SHUT, hand_action
from fastloop.sims.robosuite_memory import PlaceOpposite, SquareTwice

pytestmark = pytest.mark.skipif(
    find_spec("robosuite") is None, reason='pip install -c constraints.txt -e ".[sim]"'
)

SEED = 3
POSITIONS = [0, 1, 2, 11, 12, 13]  # of hand and object in a frame


class Episode:
    """What the expert did, with the moment before each of its actions."""

    def __init__(self, sim, expert, seed: int) -> None:
        self.sim, self.expert = sim, expert
        observation, _ = sim.reset(seed=seed)
        expert.reset(sim)
        self.frames, self.actions, self.stages, self.states, ended = [], [], [], [], False
        while not ended:
            self.frames.append(np.concatenate(list(observation.values())))
            self.stages.append(sim.stage)
            self.states.append(sim.save())
            self.actions.append(expert.act(sim))
            observation, self.reward, *ends, self.info = sim.step(self.actions[-1])
            ended = any(ends)

    def try_out(self, tick: int, act, ticks: int = 60) -> tuple[bool, bool, float]:
        """Whether it ended, succeeded, and the stage reached, by `act` from before `tick`."""
        self.sim.restore(self.states[tick])
        for _ in range(ticks):
            *_, terminated, _, info = self.sim.step(act(self.sim))
            if terminated:
                break
        return terminated, info["is_success"], info["figures"]["stage"]


@pytest.fixture(scope="module")
def square():
    sim = SquareTwice()
    yield Episode(sim, SquareTwiceExpert(), SEED)
    sim.close()


@pytest.fixture(scope="module")
def place():
    sim = PlaceOpposite()
    yield Episode(sim, PlaceOppositeExpert(), SEED)
    sim.close()


@pytest.fixture(params=["square", "place"])
def episode(request):
    return request.getfixturevalue(request.param)


def hold(sim, offset=(0, 0, 0), grip=SHUT):
    """The action that moves the hand by `offset`."""
    return hand_action(sim, sim.hand[0] + offset, DOWN, grip)


def test_the_stages_come_in_order_and_the_last_is_success(episode):
    stages = [*episode.stages, episode.sim.stages]
    assert sorted(set(stages)) == list(range(episode.sim.stages + 1))
    assert stages == sorted(stages)
    assert episode.info == {"is_success": True, "figures": {"stage": float(stages[-1])}}
    assert episode.reward == 1
    assert len(episode.actions) <= 150
    assert episode.sim.observation_space.contains(episode.states[0].observation)
    assert "observation" not in repr(episode.info)


def test_a_seed_is_an_episode(episode):
    sim = episode.sim
    other, _ = sim.reset(seed=SEED + 1)
    assert not np.array_equal(np.concatenate(list(other.values())), episode.frames[0])
    observation, _ = sim.reset(seed=SEED)
    for frame, action in zip(episode.frames[:12], episode.actions, strict=False):
        np.testing.assert_array_equal(np.concatenate(list(observation.values())), frame)
        observation = sim.step(action)[0]


def test_a_moment_is_restored_with_its_stage(episode):
    tick = episode.stages.index(1) - 2  # in the middle of what makes the stage
    episode.sim.reset(seed=SEED + 1)
    observation = episode.sim.restore(episode.states[tick])
    for t in range(tick, tick + 12):
        np.testing.assert_array_equal(np.concatenate(list(observation.values())), episode.frames[t])
        assert episode.sim.stage == episode.stages[t]
        observation = episode.sim.step(episode.actions[t])[0]


def test_letting_go_at_the_first_visit_is_a_failure(square):
    bottom = square.stages.index(1) + 4
    assert square.try_out(bottom, lambda sim: hold(sim, grip=OPEN)) == (True, False, 1.0)


def test_lifting_the_nut_for_a_third_visit_is_a_failure(square):
    bottom = square.stages.index(3) + 2
    assert square.try_out(bottom, lambda sim: hold(sim, (0, 0, 0.05))) == (True, False, 3.0)


def test_a_visit_counts_only_after_a_lift_well_above_the_peg(square):
    bottom = square.stages.index(1) + 4
    up = [True]

    def up_and_down(sim):
        up[0] = up[0] and sim.object[0][2] < 0.95
        return hold(sim, (0, 0, 0.05 if up[0] else min(0.0, 0.885 - sim.object[0][2])))

    assert square.try_out(bottom, up_and_down, ticks=25) == (False, False, 1.0)
    assert not up[0]
    assert square.sim.object[0][2] < square.sim.ON_M


def test_both_visits_look_alike_and_end_differently(square):
    frames, stages = np.array(square.frames), np.array(square.stages)
    release = next(t for t, action in enumerate(square.actions) if action[6] < 0)
    lift = next(t for t in np.flatnonzero(stages == 1) if frames[t, 13] < frames[t + 1, 13] - 0.002)
    np.testing.assert_allclose(
        frames[lift - 1 : lift + 1], frames[release - 1 : release + 1], atol=0.03
    )
    assert square.actions[lift][2] - square.actions[release][2] > 0.03
    assert square.actions[lift][6] == SHUT


def test_setting_the_cube_down_elsewhere_is_a_failure(place):
    right = place.sim.place

    def misled(sim):
        sim.place = (right + 1) % 4
        action = place.expert.act(sim)
        sim.place = right
        return action

    tick = place.stages.index(1)
    place.sim.restore(place.states[tick])
    place.expert.reset(place.sim)
    assert place.try_out(tick, misled) == (True, False, 1.0)


def test_without_a_rest_the_right_place_is_no_success(place):
    hasty = PlaceOppositeExpert()
    hasty.stays = (0, 1)
    place.sim.restore(place.states[0])
    hasty.reset(place.sim)
    assert place.try_out(0, hasty.act, ticks=95) == (False, False, 0.0)
    assert np.linalg.norm(place.sim.object[0][:2] - place.sim.goal) < place.sim.ON_M


def test_all_rests_look_alike_and_lead_elsewhere(place):
    first = place.sim.reset(seed=SEED)[0] and place.sim.place
    seed = next(s for s in range(20) if place.sim.reset(seed=s)[0] and place.sim.place != first)
    other = Episode(place.sim, place.expert, seed)
    seen, ways = [], []
    for one in (place, other):
        frames = np.array(one.frames)
        near = np.linalg.norm(frames[:, 11:14] - PlaceOpposite.REST, axis=1) < 0.015
        end = np.flatnonzero(near)[-1]
        seen.append(frames[end - 1 : end + 1, POSITIONS])
        ways.append(one.actions[end][:2] - frames[end, :2])
    np.testing.assert_allclose(*seen, atol=0.03)
    unit = [way / np.linalg.norm(way) for way in ways]
    assert unit[0] @ unit[1] < 0.3


def test_small_moves_and_a_time_limit_are_options():
    sim = SquareTwice(actions="delta", max_steps=6)
    sim.reset(seed=0)
    expert = SquareTwiceExpert()
    held = sim.object[0] - sim.hand[0]
    for _ in range(6):
        *_, terminated, truncated, _ = sim.step(expert.act(sim))
    assert (terminated, truncated) == (False, True)
    np.testing.assert_allclose(sim.object[0] - sim.hand[0], held, atol=0.01)
    assert sim.env_spec.name == "robosuite SquareTwice"
    sim.close()
