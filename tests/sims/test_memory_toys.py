"""The toys need a memory, count exactly, and are the same for every object and moment."""

from __future__ import annotations

import numpy as np
import pytest

from fastloop.sims.memory_toys import Corridor, CorridorExpert, Touches, TouchesExpert

TOYS = {"corridor": (Corridor, CorridorExpert), "touches": (Touches, TouchesExpert)}


@pytest.fixture(params=TOYS)
def toy(request):
    make_sim, make_expert = TOYS[request.param]
    return make_sim(), make_expert()


def drive(sim, expert, seed):
    """Frames before each action, actions, stages before them, and how the episode ended."""
    frame = sim.reset(seed=seed)[0]["observation.state"]
    expert.reset(sim)
    frames, actions, stages, ended = [], [], [], False
    while not ended:
        frames.append(frame)
        stages.append(sim.stage)
        actions.append(expert.act(sim))
        observation, reward, *ends, info = sim.step(actions[-1])
        frame, ended = observation["observation.state"], any(ends)
        assert sim.observation_space.contains(observation)
        assert reward == info["is_success"]
    return np.array(frames), np.array(actions), stages, info


def push(sim, actions):
    """Outcomes (terminated, success, stage) of actions until the episode ends."""
    for action in actions:
        *_, terminated, truncated, info = sim.step(np.atleast_1d(action))
        if terminated or truncated:
            break
    return terminated, info["is_success"], info["figures"]["stage"]


def test_the_expert_succeeds_and_a_seed_is_an_episode(toy):
    sim, expert = toy
    episodes = [drive(sim, expert, seed) for seed in range(20)]
    assert all(info["is_success"] for *_, info in episodes)
    frames, actions, *_ = drive(type(sim)(), type(expert)(), 7)
    np.testing.assert_array_equal(frames, episodes[7][0])
    np.testing.assert_array_equal(actions, episodes[7][1])
    assert len({frames[0].tobytes() for frames, *_ in episodes}) == 20
    assert all(stages == sorted(stages) for _, _, stages, _ in episodes)


@pytest.mark.parametrize("tick", [0, 12, 24])
def test_a_moment_is_restored_with_its_stage(toy, tick):
    sim, expert = toy
    frames, actions, stages, end = drive(sim, expert, 3)
    sim.reset(seed=3)
    for action in actions[:tick]:
        sim.step(action)
    state = sim.save()
    drive(sim, expert, 4)
    sim.restore(state)
    for frame, action, stage in zip(frames[tick:], actions[tick:], stages[tick:], strict=True):
        assert sim.stage == stage
        np.testing.assert_array_equal(sim.save().observation["observation.state"], frame)
        *_, info = sim.step(action)
    assert info == end


def test_the_corridor_looks_alike_from_both_sides():
    sides = {}
    for seed in range(20):
        sim = Corridor()
        sim.reset(seed=seed)
        frames, actions, stages, _ = drive(sim, CorridorExpert(), seed)
        junction = stages.index(1)
        sides.setdefault(sim.side, (frames[junction - 5 : junction + 1], actions[junction]))
    (one, left), (other, right) = sides[-1], sides[1]
    np.testing.assert_array_equal(one, other)
    assert left == pytest.approx(-right)
    assert abs(left[0]) == 1


def into_the_corridor(sim):
    """Where the walls are on both sides."""
    sim.reset(seed=0)
    while sim.place[1] < 0.5:
        sim.step(CorridorExpert().act(sim))


def test_the_wrong_exit_is_final_and_the_way_in_is_no_exit():
    sim = Corridor()
    into_the_corridor(sim)
    wrong = push(sim, np.array([(0, 1)] * 6 + [(sim.side, 0)] * 11, float))
    assert wrong == (True, False, 1.0)
    into_the_corridor(sim)
    back = push(sim, np.array([(0, -1)] * 8 + [(-sim.side, 0)] * 12, float))
    assert back == (False, False, 0.0)
    assert sim.place.tolist() == [-sim.side, 0]


def test_the_walls_of_the_corridor_hold():
    sim = Corridor()
    into_the_corridor(sim)
    before = sim.place.copy()
    push(sim, np.array([(1.0, 0.0)] * 3))
    np.testing.assert_array_equal(sim.place, before)


def test_every_way_home_looks_alike_and_only_the_last_stays():
    frames, actions, stages, _ = drive(Touches(), TouchesExpert(), 0)
    homes = [
        next(t for t, stage in enumerate(stages) if stage == n and frames[t][0] < Touches.HOME)
        for n in (1, 2, 3)
    ]
    windows = [frames[t - 8 : t + 1] for t in homes]
    for window in windows[1:]:
        np.testing.assert_array_equal(window, windows[0])
    again, still_again, stay = (actions[t][0] for t in homes)
    assert again == still_again == 4
    assert stay < 1


def test_a_fourth_touch_and_an_early_stay_are_failures():
    sim, expert = Touches(), TouchesExpert()
    for wanted in (2, 4):  # the expert counts to another number than the judge
        sim.reset(seed=1)
        ended = False
        expert.reset(sim)
        while not ended:
            sim.touches = wanted
            action = expert.act(sim)
            sim.touches = 3
            *_, terminated, truncated, info = sim.step(action)
            ended = terminated or truncated
        assert terminated
        assert not info["is_success"]
        assert info["figures"]["stage"] == wanted


def test_leaning_on_the_wall_is_one_touch_and_waiting_at_the_start_is_allowed():
    sim = Touches()
    sim.reset(seed=0)
    push(sim, np.zeros(15))
    terminated, _, stage = push(sim, np.full(30, 4.0))
    assert (terminated, stage) == (False, 1.0)


def test_pictures_show_where_it_is(toy):
    sim, expert = toy
    sim.reset(seed=0)
    start = sim.render()
    assert start.shape == (64, 64, 3)
    for _ in range(12):
        sim.step(expert.act(sim))
    assert (sim.render() != start).any()
    red = (start == (200, 0, 0)).all(-1)
    assert 9 <= red.sum() <= 64
