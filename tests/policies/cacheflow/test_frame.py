import math

import pytest
import torch

from fastloop.policies.cacheflow.frame import ROUTE, AlongRoute, frame_of, turned
from fastloop.policies.cacheflow.reading import read
from fastloop.policies.spec import TensorSpec

RADIUS, SPACING = 20.0, 3.0


def bend(points=30, radius=RADIUS):
    """A route (1, R, 2) that turns left, float64."""
    angle = torch.arange(points, dtype=torch.float64) * SPACING / radius
    return radius * torch.stack([angle.sin(), 1 - angle.cos()], -1)[None]


def test_a_straight_route_turns_and_shifts_and_no_more():
    angle = math.radians(30)
    ahead = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    route = start + SPACING * torch.arange(10, dtype=torch.float64)[:, None] * ahead
    points = torch.randn(3, 5, 7, 2, dtype=torch.float64) * 40  # also behind, and beyond its end
    way = AlongRoute(route.expand(3, -1, -1))
    found = way.relative(points)
    expected = turned(points - start, ahead)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(way.absolute(found), points)


def test_a_plan_along_one_road_is_driven_along_another():
    stations = torch.linspace(0, 30, 20, dtype=torch.float64)
    plan = torch.stack([stations, torch.full_like(stations, 0.5)], -1)[None]
    left, right = bend(), bend() * torch.tensor([1.0, -1.0])
    for route, radius in ((left, RADIUS - 0.5), (right, RADIUS + 0.5)):
        driven = AlongRoute(route).absolute(plan)
        center = torch.tensor([0.0, RADIUS]) * route[0, -1, 1].sign()
        away = (driven - center).norm(dim=-1)
        assert (away - radius).abs().max() < SPACING**2 / 8 / RADIUS + 1e-3  # a chord's height
        torch.testing.assert_close(AlongRoute(route).relative(driven), plan, atol=0.08, rtol=0)


def test_the_way_back_is_exact_but_for_the_corners():
    stations = SPACING * torch.arange(0.05, 28.5, 0.1, dtype=torch.float64)
    stations = stations[(stations % SPACING - SPACING / 2).abs() < SPACING / 2 - 0.2]
    plans = torch.stack([stations, torch.linspace(-1, 1, len(stations)).double()], -1)[None]
    way = AlongRoute(bend())
    torch.testing.assert_close(way.relative(way.absolute(plans)), plans)


@pytest.mark.parametrize("points", [1, 6])
def test_where_a_route_ends_or_none_is_it_goes_straight_on(points):
    ended = bend()
    ended[:, points:] = ended[:, points - 1 : points]
    along = torch.tensor([[[SPACING * (points - 1) + 25.0, 0.0]]], dtype=torch.float64)
    angle = (points - 1.5) * SPACING / RADIUS if points > 1 else 0.0
    ahead = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    chord = 2 * RADIUS * math.sin(SPACING / RADIUS / 2)
    beyond = ended[:, -1:] + (25.0 + (points - 1) * (SPACING - chord)) * ahead
    torch.testing.assert_close(AlongRoute(ended).absolute(along), beyond)
    torch.testing.assert_close(AlongRoute(ended).relative(beyond), along)


def test_frames_of_nothing_and_of_a_value():
    actions, value = torch.randn(2, 4, 5, 3), torch.randn(2, 3)
    assert frame_of(None, {}).relative(actions) is actions
    frame = frame_of("state", {"state": torch.stack([value * 9, value], 1)})
    torch.testing.assert_close(frame.relative(actions), actions - value[:, None, None])
    torch.testing.assert_close(frame.absolute(frame.relative(actions)), actions)


def test_neighbors_and_lanes_are_seen_along_the_route():
    inputs = {
        "observation.ego_states": TensorSpec((16, 6)), "observation.neighbors": TensorSpec((2, 10)),
        "observation.map": TensorSpec((1, 20, 6)), ROUTE: TensorSpec((30, 2)),
    }  # fmt: skip
    route = bend().float()
    angle = 4.5 * SPACING / RADIUS
    place = (route[0, 4] + route[0, 5]) / 2
    ahead = torch.tensor([math.cos(angle), math.sin(angle)])
    left = torch.tensor([-ahead[1], ahead[0]])
    coming = torch.cat([place + 3.5 * left, -ahead, -8 * ahead, torch.tensor([4.5, 2, 0, 1])])
    seen = {
        "observation.ego_states": torch.randn(1, 1, 16, 6),
        "observation.neighbors": torch.stack([coming, torch.zeros(10)])[None, None],
        "observation.map": torch.cat([place, ahead, torch.ones(2)]).expand(1, 1, 1, 20, 6),
        ROUTE: route[None],
    }
    found = read(seen, inputs, relative_to=ROUTE)
    station = 4.5 * float((route[0, 1] - route[0, 0]).norm())
    row, nobody, lane = found["neighbors"][0]
    expected = torch.tensor([station, 3.5, -1, 0, -8, 0, 4.5, 2, 0, 1])
    torch.testing.assert_close(row[:10], expected, atol=1e-4, rtol=0)
    assert nobody.isnan().all()
    expected = torch.tensor([station, 0.0, 1, 0, 1, 1])
    torch.testing.assert_close(lane[:6], expected, atol=1e-4, rtol=0)
    history = found["history"][0, 0]
    assert torch.equal(history[:6], seen["observation.ego_states"][0, 0, -1]), "present motion"
    torch.testing.assert_close(history[6:].view(30, 2).cumsum(0), route[0])
