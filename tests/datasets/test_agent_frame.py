"""Where an agent looks, and that nothing is lost on the way there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.agent_frame import AgentFrame


def walked(direction, steps=8, length=0.5, start=(3.0, -2.0)):
    return np.array(start) + length * np.arange(steps)[:, None] * np.array(direction)


def test_who_walks_looks_along_x():
    direction = np.array([-0.6, 0.8])
    past = walked(direction)[None]
    frame = AgentFrame.of(past)
    assert not frame.still[0]
    np.testing.assert_allclose(frame.heading, np.arctan2(0.8, -0.6))
    seen = frame.seen(past)
    np.testing.assert_allclose(seen[0, :, 0], -0.5 * np.arange(7, -1, -1), atol=1e-12)
    np.testing.assert_allclose(seen[0, :, 1], 0, atol=1e-12)


def test_the_last_step_decides_and_not_the_way():
    way = walked((1, 0), 7)
    past = np.concatenate([way, way[-1:] + np.array([0, 0.5])])[None]
    np.testing.assert_allclose(AgentFrame.of(past).heading, np.pi / 2)


def test_who_stopped_looks_where_he_came_from_is_behind():
    """The newest position that is far enough tells; the jitter of the last ones does not."""
    way = walked((0, -1), 4)
    past = np.concatenate([way, way[-1:] + np.array([[0.05, 0.02]] * 4)])[None]
    assert abs(AgentFrame.of(past).heading[0] + np.pi / 2) < 0.2
    assert not AgentFrame.of(past).still[0]


def test_who_stands_still_keeps_the_axes_of_the_world():
    past = 5 + np.random.default_rng(0).uniform(-0.05, 0.05, (1, 8, 2))
    frame = AgentFrame.of(past)
    assert frame.still[0]
    assert frame.heading[0] == 0
    np.testing.assert_allclose(frame.seen(past), past - past[:, -1:])
    assert AgentFrame.of(np.zeros((1, 1, 2))).still[0]  # a past of one position


@pytest.mark.parametrize("shape", [(4, 2), (4, 5, 2), (4, 3, 5, 2)])
@given(seed=st.integers(0, 2**32 - 1))
def test_there_and_back(shape, seed):
    rng = np.random.default_rng(seed)
    frame = AgentFrame.of(rng.normal(size=(4, 8, 2)))
    positions = rng.normal(size=shape) * 10
    seen = frame.seen(positions)
    np.testing.assert_allclose(frame.world(seen), positions, atol=1e-12)
    lengths = np.linalg.norm(
        positions - frame.origin.reshape(4, *[1] * (len(shape) - 2), 2), axis=-1
    )
    np.testing.assert_allclose(np.linalg.norm(seen, axis=-1), lengths, atol=1e-12)


@given(angle=st.floats(-3, 3), x=st.floats(-9, 9), y=st.floats(-9, 9))
def test_what_is_seen_does_not_depend_on_where_the_world_is(angle, x, y):
    past = np.random.default_rng(1).normal(size=(3, 8, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    moved = past @ np.array([[cos, sin], [-sin, cos]]) + [x, y]
    np.testing.assert_allclose(
        AgentFrame.of(moved).seen(moved), AgentFrame.of(past).seen(past), atol=1e-9
    )
