"""Quintic interpolation of waypoints."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.vla.interpolation import interpolate

DRIVE = torch.tensor(
    [[14.7, -0.04], [29.55, -0.21], [44.51, -0.56], [59.5, -1.06], [74.39, -1.69]],
    dtype=torch.float64,
)


def plans(low=2, high=6):
    number = st.floats(-100, 100).map(lambda x: round(x, 3))
    rows = st.lists(st.tuples(number, number), min_size=low, max_size=high)
    return rows.map(lambda rows: torch.tensor(rows, dtype=torch.float64))


def solved(waypoints, points, published):
    """Each piece from the six equations of its two ends."""
    p = np.vstack([np.zeros(2), waypoints])
    n = len(p)
    v, a = np.zeros_like(p), np.zeros_like(p)
    for i in range(n):
        v[i] = (p[min(i + 1, n - 1)] - p[max(i - 1, 0)]) / (min(i + 1, n - 1) - max(i - 1, 0))
        j = min(max(i, 1), n - 2)
        a[i] = p[j + 1] - 2 * p[j] + p[j - 1]
    if published:
        a[0] = (p[1] - p[0]) - (p[2] - p[1])
    rows = []
    for u in (0.0, 1.0):
        k = np.arange(6)
        rows.append(u**k)
        rows.append(k * u ** np.maximum(k - 1, 0))
        rows.append(k * (k - 1) * u ** np.maximum(k - 2, 0))
    out = []
    for i in range(n - 1):
        ends = np.stack([p[i], v[i], a[i], p[i + 1], v[i + 1], a[i + 1]])
        coefficients = np.linalg.solve(np.array(rows), ends)
        out += [((j / points) ** np.arange(6)) @ coefficients for j in range(1, points + 1)]
    return np.array(out)


def test_published_points():
    drawn = interpolate(DRIVE, published=True)
    assert drawn.shape == (20, 2)
    expected = [
        (3.6708, -0.0064), (7.3383, -0.0098), (11.0125, -0.0191), (14.7, -0.04),
        (18.399, -0.0696), (22.1087, -0.1056),
    ]  # fmt: skip
    torch.testing.assert_close(
        drawn[:6], torch.tensor(expected, dtype=torch.float64), atol=5.1e-5, rtol=0
    )
    torch.testing.assert_close(
        drawn[18], torch.tensor([70.6676, -1.5323], dtype=torch.float64), atol=5.1e-5, rtol=0
    )


@given(plan=plans(), points=st.integers(1, 5), published=st.booleans())
def test_equals_the_solution_of_each_piece(plan, points, published):
    drawn = interpolate(plan, points=points, published=published)
    expected = solved(plan.numpy(), points, published)
    np.testing.assert_allclose(drawn.numpy(), expected, atol=1e-9)
    torch.testing.assert_close(drawn[points - 1 :: points], plan)


def test_the_published_sign_changes_the_first_second_alone():
    right, published = interpolate(DRIVE), interpolate(DRIVE, published=True)
    torch.testing.assert_close(right[3:], published[3:])
    assert 1e-4 < (right - published).abs().max() < 5e-3


def test_an_even_acceleration_is_drawn_exactly_where_its_start_is_known():
    t = torch.arange(1, 6, dtype=torch.float64)
    fine = torch.arange(1, 21, dtype=torch.float64) / 4
    start = torch.tensor([3.0, -1.0], dtype=torch.float64)
    bend = torch.tensor([0.8, 0.2], dtype=torch.float64)

    def at(t):
        return start * t[:, None] + bend * t[:, None] ** 2 / 2

    drawn = interpolate(at(t), velocity=start)
    torch.testing.assert_close(drawn[:16], at(fine)[:16])  # the last velocity is one-sided
    assert not torch.allclose(interpolate(at(t))[:3], at(fine)[:3])


@given(velocity=st.tuples(st.floats(-30, 30), st.floats(-5, 5)))
def test_a_straight_line_stays_one(velocity):
    step = torch.tensor(velocity, dtype=torch.float64)
    drawn = interpolate(step * torch.arange(1, 6)[:, None])
    torch.testing.assert_close(drawn, step * torch.arange(1, 21)[:, None] / 4)


def test_rows_are_drawn_alone_and_keep_their_type():
    rows = torch.stack([DRIVE, -DRIVE, DRIVE.flip(0)]).float()
    velocity = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
    drawn = interpolate(rows, velocity=velocity)
    assert (drawn.dtype, drawn.shape) == (torch.float32, (3, 20, 2))
    for row, start, one in zip(rows, velocity, drawn, strict=True):
        torch.testing.assert_close(interpolate(row, velocity=start), one)


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 1, 2)])
def test_too_few_waypoints_are_refused(shape):
    with pytest.raises(ValueError, match="T >= 2"):
        interpolate(torch.zeros(shape))
    with pytest.raises(ValueError, match="at least 1 point"):
        interpolate(DRIVE, points=0)
