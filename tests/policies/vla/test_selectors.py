"""One plan from several."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.vla.selectors import (
    SELECTORS,
    build_selector,
    mean,
    medoid,
    weighted_mean,
)
from fastloop.policies.vla.selectors import feasible as feasible_at

feasible = partial(feasible_at, dt=0.25)
EVERY = pytest.mark.parametrize(
    "select", [build_selector(name, 0.25) for name in SELECTORS], ids=SELECTORS
)


def drives(*speeds, points=20, dt=0.25):
    """(N, T, 2): straight on at each speed, m/s."""
    x = torch.tensor(speeds)[:, None] * dt * torch.arange(1, points + 1)
    return torch.stack([x, torch.zeros_like(x)], -1).double()


@st.composite
def candidates(draw):
    """N plans of T points, all different."""
    seed = draw(st.integers(0, 10**6))
    shape = draw(st.integers(1, 6)), draw(st.integers(3, 8)), 2
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).cumsum(1)


@EVERY
@given(plans=candidates(), order=st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(select, plans, order):
    places = list(range(len(plans)))
    order.shuffle(places)
    if len(plans) == 2 and select is medoid:
        return  # each is as near to the other
    torch.testing.assert_close(select(plans[places]), select(plans))


@EVERY
@given(plans=candidates())
def test_candidates_that_agree_are_what_is_taken(select, plans):
    same = plans[:1].expand(4, -1, -1)
    torch.testing.assert_close(select(same), plans[0])


@pytest.mark.parametrize("select", [mean, medoid])
@given(plans=candidates(), x=st.floats(-100, 100), y=st.floats(-100, 100))
def test_a_shift_of_all_shifts_what_is_taken(select, plans, x, y):
    if len(plans) == 2 and select is medoid:
        return  # rounding decides between two
    shift = torch.tensor([x, y], dtype=torch.float64)
    torch.testing.assert_close(select(plans + shift), select(plans) + shift)


@EVERY
@given(plans=candidates(), angle=st.floats(-3, 3))
def test_a_turn_of_all_turns_what_is_taken(select, plans, angle):
    if len(plans) == 2 and select is medoid:
        return
    cos, sin = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
    turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    torch.testing.assert_close(select(plans @ turn.T), select(plans) @ turn.T)


@EVERY
@given(plans=candidates())
def test_a_batch_is_its_rows(select, plans):
    batch = torch.stack([plans, plans.flip(1), 2 * plans])
    torch.testing.assert_close(select(batch), torch.stack([select(row) for row in batch]))


@pytest.mark.parametrize("select", [medoid, feasible])
@given(plans=candidates())
def test_what_is_taken_is_a_candidate(select, plans):
    assert any(torch.equal(select(plans), plan) for plan in plans)


def test_the_medoid_is_the_nearest_to_all_and_no_stray_moves_it():
    plans = drives(10, 11, 12.5, 90)
    total = (plans[:, None] - plans).norm(dim=-1).mean(-1).sum(1)
    assert torch.equal(medoid(plans), plans[total.argmin()])
    assert torch.equal(medoid(plans), plans[1])
    assert torch.equal(medoid(plans[[0, 3]]), plans[0])  # of two, the first


@given(plans=candidates(), seed=st.integers(0, 100))
def test_weighted_mean(plans, seed):
    weights = torch.rand(len(plans), generator=torch.Generator().manual_seed(seed)) + 0.01
    expected = sum(w * plan for w, plan in zip(weights.double(), plans, strict=True))
    torch.testing.assert_close(weighted_mean(plans, weights), expected / weights.double().sum())
    torch.testing.assert_close(weighted_mean(plans, 3 * torch.ones(len(plans))), mean(plans))
    one = torch.eye(len(plans))[-1]
    torch.testing.assert_close(weighted_mean(plans, one), plans[-1])


@pytest.mark.parametrize(
    "weights", [[0.0, 0.0], [1.0, -0.5], [float("nan"), 1.0], [float("inf"), 1.0], [1.0], [1.0] * 3]
)
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        weighted_mean(drives(1, 2), torch.tensor(weights))


def test_too_fast_and_too_sharp_are_left_out():
    smooth, fast = drives(20)[0], drives(40)[0]
    late = smooth.clone()
    late[8:, 1] = 3.0  # a jump aside
    assert torch.equal(feasible(torch.stack([fast, late, smooth])), smooth)
    assert torch.equal(feasible(torch.stack([fast, smooth]), max_speed=10.0), smooth)
    assert torch.equal(feasible(torch.stack([fast, late]), max_acceleration=1e3), late)


def test_the_first_step_counts():
    t = 0.25 * torch.arange(1, 21).double()
    still = torch.stack([torch.zeros(20).double(), torch.zeros(20).double()], -1)
    leap = still + torch.tensor([12.0, 0.0]).double()  # there at once, then standing
    crawl = torch.stack([0.5 * t, 0.3 * torch.sin(t)], -1)
    assert torch.equal(feasible(torch.stack([leap, crawl])), crawl)


def test_of_feasible_ones_the_smoothest():
    plan, wavy = drives(10, 9)  # the slower one wavers
    wavy[::2, 1] += 0.01
    assert torch.equal(feasible(torch.stack([wavy, plan])), plan)


def test_what_is_feasible_depends_on_the_time_between_points():
    fast = drives(20)  # m/s, where points are 0.25 s apart
    fast = torch.cat([fast, 0.5 * fast])
    fast[1, ::2, 1] += 0.01
    at_2_hz, at_8_hz = (build_selector("feasible", dt)(fast) for dt in (0.5, 0.125))
    assert torch.equal(at_2_hz, fast[0]), "10 m/s, and smoother than 5"
    assert torch.equal(at_8_hz, fast[1]), "40 m/s is too fast"


def test_where_none_is_feasible_the_one_that_exceeds_least():
    assert torch.equal(feasible(drives(60, 45, 50)), drives(45)[0])


@EVERY
@pytest.mark.parametrize("shape", [(20, 2), (0, 20, 2), (4, 0, 2)])
def test_what_is_no_set_of_candidates_is_refused(select, shape):
    with pytest.raises(ValueError, match=r"expected \(\.\.\., N, T, D\)"):
        select(torch.zeros(shape))


def test_smoothness_needs_three_points():
    with pytest.raises(ValueError, match="needs 3 points"):
        feasible(torch.zeros(4, 2, 2))
