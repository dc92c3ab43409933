"""Recording demonstrations: the same for any number of processes, and nothing is ever lost."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fastloop.datasets import robomimic
from fastloop.policies.base import Plan
from fastloop.policies.session import Session
from fastloop.policies.spec import PolicySpec
from fastloop.sims import demos
from fastloop.sims.config import SimConfig
from fastloop.sims.demos import Recipe, demonstrate, read_part, record
from fastloop.sims.toy import PointMass, PointMassExpert

EXPERT = {"_target_": "fastloop.sims.toy.PointMassExpert"}
HARD = 22  # ticks in which only some goals can be reached


def recipe(disturb=0.0, noise=0.0, **arguments):
    return Recipe(SimConfig("fastloop.sims.toy.PointMass", arguments), EXPERT, disturb, noise)


def recorded(made, parts, episodes=6, num_workers=1):
    tried = []
    paths = list(
        record(
            made, parts, episodes=episodes, first_seed=100, num_workers=num_workers,
            progress=lambda successes, attempts: tried.append((successes, attempts)),
        )
    )  # fmt: skip
    return paths, tried


def contents(paths):
    """Everything in the recorded files, in order, to be compared with ==."""
    return [
        (path.name, d.seed, d.success, d.actions.tolist(), d.rewards.tolist(),
         {key: value.tolist() for key, value in d.observations.items()})
        for path in paths
        for d in read_part(path)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What one process records of a hard, disturbed task."""
    made = recipe(disturb=1.0, noise=0.2, max_steps=HARD)
    return recorded(made, tmp_path_factory.mktemp("serial"))


def test_failed_seeds_are_skipped_and_counted(serial):
    paths, tried = serial
    seeds = [int(path.stem) for path in paths]
    assert len(seeds) == 6
    assert seeds == sorted(seeds)
    assert tried[-1] == (6, seeds[-1] - 100 + 1)
    assert tried[-1][1] > 6, "the task is hard enough that some seeds failed"
    assert [attempts for _, attempts in tried] == list(range(1, len(tried) + 1))


def test_the_number_of_processes_changes_nothing(serial, tmp_path):
    made = recipe(disturb=1.0, noise=0.2, max_steps=HARD)
    paths, tried = recorded(made, tmp_path, num_workers=2)
    assert contents(paths) == contents(serial[0])
    assert tried == serial[1]


def test_a_recording_goes_on_where_it_was(serial, tmp_path):
    made = recipe(disturb=1.0, noise=0.2, max_steps=HARD)
    first, _ = recorded(made, tmp_path, episodes=2)
    (tmp_path / "103.partial").write_bytes(b"a kill in the middle of writing")
    before = {path: path.stat().st_mtime_ns for path in first}
    paths, tried = recorded(made, tmp_path)
    assert contents(paths) == contents(serial[0])
    assert tried == serial[1]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_an_undisturbed_episode_is_one_demonstration():
    sim, expert = PointMass(), PointMassExpert()
    (made,) = demonstrate(sim, expert, 3, recipe())
    again = PointMass()
    observation, _ = again.reset(seed=3)
    for tick, action in enumerate(made.actions):
        for key, value in observation.items():
            np.testing.assert_allclose(made.observations[key][tick], value, atol=1e-5)
        observation, reward, terminated, _, info = again.step(action)
        assert made.rewards[tick] == pytest.approx(reward, abs=1e-5)
    assert terminated
    assert info["is_success"]
    assert made.seed == 3
    assert made.success
    assert made.actions.dtype == np.float32


def test_a_demonstration_is_split_where_it_was_disturbed():
    class Watched(PointMassExpert):
        def __init__(self):
            self.resets = self.nudges = 0

        def reset(self, sim):
            self.resets += 1

        def act(self, sim):
            return np.zeros(2) if sim.ticks < 100 else super().act(sim)

        def nudge(self, sim, rng):
            self.nudges += 1
            return np.zeros(2)

    expert = Watched()
    made = demonstrate(PointMass(max_steps=400), expert, 3, recipe(disturb=1.0))
    assert expert.resets == Recipe.bursts + 1, "anew after each disturbance"
    assert len(made) == Recipe.bursts + 1
    low, high = demos.BURST_TICKS
    assert low * Recipe.bursts <= expert.nudges < high * Recipe.bursts
    assert [part.success for part in made] == [False] * Recipe.bursts + [True]
    assert all(len(part) >= demos.SHORTEST for part in made)
    assert len({part.seed for part in made}) == 1


def test_what_is_executed_deviates_from_what_is_recorded():
    taken = []

    class Watched(PointMass):
        def step(self, action):
            taken.append(np.array(action))
            return super().step(action)

    demonstrate(Watched(), PointMassExpert(), 3, recipe())
    (quiet,) = demonstrate(Watched(), PointMassExpert(), 3, recipe())
    assert np.allclose(taken[-len(quiet) :], quiet.actions)
    taken.clear()
    noisy = demonstrate(Watched(), PointMassExpert(), 3, recipe(disturb=1.0, noise=0.1))
    off = np.array(taken[: len(noisy[0])]) - noisy[0].actions
    assert 0 < np.abs(off).max() < 1


def test_an_episode_without_success_leaves_nothing():
    assert demonstrate(PointMass(max_steps=3), PointMassExpert(), 3, recipe()) == []


def test_a_seed_whose_simulator_raises_is_a_failed_attempt(tmp_path):
    made = recipe(faults={101: "raise", 102: "raise"})
    paths, tried = recorded(made, tmp_path, episodes=3)
    assert [path.stem for path in paths] == ["100", "103", "104"]
    assert tried[-1] == (3, 5)
    clean, _ = recorded(recipe(), tmp_path / "clean", episodes=5)
    assert contents(paths) == contents([clean[0], *clean[3:]]), "a later seed saw nothing of it"


def test_a_simulator_that_dies_is_told_and_nothing_finished_is_lost(tmp_path):
    with pytest.raises(OSError, match=r"process died.*finished episodes are safe"):
        recorded(recipe(faults={102: "segfault"}), tmp_path, episodes=4)
    assert {"100.npz", "101.npz"} <= {path.name for path in tmp_path.iterdir()}


def test_a_hopeless_expert_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "HOPELESS", 5)
    with pytest.raises(ValueError, match=r"failed on all of the first 5 seeds$"):
        recorded(recipe(max_steps=1), tmp_path / "a")
    faults = dict.fromkeys(range(100, 120), "raise")
    with pytest.raises(ValueError, match="5 seeds raised, lastly RuntimeError: the solver"):
        recorded(recipe(faults=faults), tmp_path / "b")
    assert not list(tmp_path.glob("*/*")), "nothing is in the way of another try"


@pytest.mark.parametrize(
    ("sim", "expert", "message"),
    [
        ({"speed": 1}, EXPERT, "does not take .*speed"),
        ({}, {"_target_": "fastloop.sims.toy.Nobody"}, "there is no fastloop.sims.toy.Nobody"),
        ({}, {"_target_": "os.system", "command": "true"}, "inside fastloop"),
        ({}, {**EXPERT, "skill": 3}, "does not take .*skill"),
    ],
)
def test_a_recipe_that_cannot_be_built(tmp_path, sim, expert, message):
    made = Recipe(SimConfig("fastloop.sims.toy.PointMass", sim), expert)
    with pytest.raises(ValueError, match=message):
        recorded(made, tmp_path)


@contextmanager
def largest_file(size):
    """A disk that is full, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_clear_and_loses_nothing(tmp_path):
    first, _ = recorded(recipe(), tmp_path, episodes=2)
    before = contents(first)
    for path in tmp_path.glob("*.npz"):
        if path not in first:
            path.unlink()  # attempts that ran ahead
    with largest_file(500), pytest.raises(OSError, match=r"finished episodes are safe.*make room"):
        recorded(recipe(), tmp_path, episodes=6)
    assert sorted(tmp_path.iterdir()) == sorted(first)
    assert contents(first) == before
    paths, _ = recorded(recipe(), tmp_path, episodes=6)
    assert contents(paths)[:2] == before
    assert len(paths) == 6


SLOW = ["sim=toy", "expert=toy", "sim.step_s=0.01", "episodes=12", "num_workers=2"]


def start(folder, *overrides):
    """`fastloop record` in a session of its own, as under a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastloop.cli", "record", *SLOW, "out=demos.hdf5",
         "run_dir=run", *overrides],
        cwd=folder, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def session_of(process):
    """Processes of its session that are alive."""
    alive = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if session == str(process.pid) and state != "Z":
            alive.append(int(entry.parent.name))
    return alive


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_next_run_completes(tmp_path):
    parts = tmp_path / "demos.hdf5.parts"
    process = start(tmp_path)
    wait_for(lambda: len(list(parts.glob("*.npz"))) >= 3, "three episodes")
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    wait_for(lambda: not session_of(process), "its processes to leave", seconds=30)
    kept = {path.name: path.read_bytes() for path in parts.glob("*.npz")}
    assert len(kept) >= 3
    assert not list(parts.glob("*.partial"))
    assert not (tmp_path / "demos.hdf5").exists()

    again = start(tmp_path)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert not parts.exists()
    found = robomimic.read(tmp_path / "demos.hdf5")
    assert len({demonstration.seed for demonstration in found}) == 12
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["expert_success"]["n"] >= 12


@pytest.mark.slow
def test_a_killed_recorder_leaves_no_process_behind(tmp_path):
    parts = tmp_path / "demos.hdf5.parts"
    process = start(tmp_path, "sim.step_s=0.05")
    wait_for(lambda: list(parts.glob("*.npz")), "an episode")
    assert len(session_of(process)) > 1
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for(lambda: not session_of(process), "its processes to leave", seconds=30)


def test_a_student_drives_and_the_expert_says_what_it_would_do():
    class Student:
        spec = PolicySpec(
            inputs=PointMass().env_spec.observations, action=PointMass().env_spec.action,
            n_obs_steps=1, horizon=1, n_action_steps=1, control_hz=PointMass().env_spec.control_hz,
        )  # fmt: skip

        def plan(self, history, *, rng, budget=None):
            stay = torch.zeros(len(history), 1, self.spec.action.dim)
            return Plan(stay, 1 / self.spec.control_hz, history.ticks)

    (segment,) = demonstrate(PointMass(), PointMassExpert(), 3, recipe(), Session(Student()))
    assert not segment.success  # it stays where it is
    for seen in segment.observations.values():
        np.testing.assert_allclose(seen, seen[:1].repeat(len(seen), 0))
    assert np.abs(segment.actions).max() > 0.1  # the expert would have gone
    (led,) = demonstrate(PointMass(), PointMassExpert(), 3, recipe())
    assert led.success
    np.testing.assert_allclose(segment.actions[0], led.actions[0])


def test_an_episode_that_a_disturbance_ends_is_kept_where_a_student_drives(monkeypatch):
    class Doomed(PointMass):
        nudged = False

        def step(self, action):
            observation, reward, _, _, info = super().step(action)
            return observation, reward, self.nudged, False, {**info, "is_success": False}

    class Fatal(PointMassExpert):
        def nudge(self, sim, rng):
            sim.nudged = sim.ticks > 20
            return np.zeros(2)

    class Student:
        def begin(self, *_):
            pass

    monkeypatch.setattr(demos, "_act", lambda *_: np.zeros(2))
    made = recipe(disturb=1.0)
    segments = demonstrate(Doomed(), Fatal(), 3, made, Student())
    assert segments
    assert not any(segment.success for segment in segments)
    assert demonstrate(Doomed(), Fatal(), 3, made) == []


def test_noise_on_a_student_is_refused():
    with pytest.raises(ValueError, match="my_policy drives instead: say noise=0"):
        Recipe(SimConfig("fastloop.sims.toy.PointMass", {}), EXPERT, noise=0.1, student="my_policy")


@pytest.mark.parametrize(("asked", "ticks"), [(None, 2), (7, 7)])
def test_a_student_plans_as_often_as_asked(asked, ticks):
    road = SimConfig("fastloop.sims.toy_road.ToyRoad", {})
    made = Recipe(road, EXPERT, student="constant_velocity", n_action_steps=asked)
    assert demos._student(made, road.build().env_spec).policy.spec.n_action_steps == ticks
