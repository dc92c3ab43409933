"""PushT: exact seeds in one object, another one and another process; saved states; pictures."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from fastloop.sims.pusht import PushT

pytest.importorskip("gym_pusht", reason='pip install -c constraints.txt -e ".[pusht]"')

FRESH = """
import runpy, sys
here = runpy.run_path(sys.argv[1])
print(here["trace"](here["PushT"](), 3))
"""


def trace(sim: PushT, seed: int) -> str:
    """A digest of everything that is seen while the block is pushed about."""
    digest = hashlib.sha256()
    observation, _ = sim.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(40):
        for value in observation.values():
            digest.update(value.tobytes())
        corners = observation["observation.environment_state"].reshape(8, 2)
        observation = sim.step(corners.mean(0) + rng.normal(0, 60, 2))[0]
    return digest.hexdigest()


def test_a_seed_is_an_episode_everywhere() -> None:
    sim = PushT()
    first = trace(sim, 3)
    assert trace(sim, 4) != first
    assert trace(sim, 3) == first
    assert trace(PushT(), 3) == first
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, __file__],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k not in ("DISPLAY", "SDL_VIDEODRIVER")},
    )
    assert fresh.stdout.strip() == first


def test_restore_in_the_middle_of_a_push_is_exact() -> None:
    sim = PushT()
    observation, _ = sim.reset(seed=1)
    for _ in range(30):
        corners = observation["observation.environment_state"].reshape(8, 2)
        observation = sim.step(corners.mean(0))[0]
    state = sim.save()
    actions = np.random.default_rng(0).uniform(100, 400, (20, 2))
    expected = [sim.step(action)[0] for action in actions]
    other = PushT()
    other.restore(state)
    for action, seen in zip(actions, expected, strict=True):
        again = other.step(action)[0]
        for key, value in seen.items():
            np.testing.assert_array_equal(again[key], value)


def test_observations_are_what_the_spec_says() -> None:
    sim = PushT(images=True)
    observation, info = sim.reset(seed=0)
    assert sim.observation_space.contains(observation)
    assert info == {"is_success": False, "seed": 0}
    observation, _, terminated, truncated, info = sim.step(np.array([256.0, 256.0]))
    assert sim.observation_space.contains(observation)
    assert (terminated, truncated, info["is_success"]) == (False, False, False)
    corners = observation["observation.environment_state"].reshape(8, 2)
    np.testing.assert_allclose(np.linalg.norm(corners[0] - corners[1]), 120, rtol=1e-4)


def test_the_picture_shows_the_disc_where_the_state_says() -> None:
    sim = PushT(images=True)
    observation, _ = sim.reset(seed=0)
    x, y = (observation["observation.state"] * 96 / 512).astype(int)
    red, green, blue = observation["observation.images.top"][:, y, x].astype(int)
    assert blue > green > red  # royal blue
    assert sim.render().shape == (256, 256, 3)


def test_the_t_on_its_outline_is_a_success() -> None:
    sim = PushT()
    sim.reset(seed=0)
    block = sim.engine.block
    block.angle = np.pi / 4
    block.position = (256.0, 256.0)
    _, reward, terminated, _, info = sim.step(np.array([20.0, 20.0]))
    assert info["is_success"]
    assert terminated
    assert reward == 1.0


def test_pictures_of_two_episodes_do_not_leak_into_each_other() -> None:
    fresh = PushT()
    fresh.reset(seed=5)
    used = PushT()
    used.reset(seed=6)
    used.step(np.array([100.0, 100.0]))
    used.reset(seed=5)
    digest = [hashlib.sha256(sim.render().tobytes()).hexdigest() for sim in (fresh, used)]
    assert digest[0] == digest[1]
