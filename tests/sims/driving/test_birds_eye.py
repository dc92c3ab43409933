import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cv2")
from fastloop.sims.driving import colors
from fastloop.sims.driving.birds_eye import birds_eye
from fastloop.sims.driving.ground import Ground
from fastloop.sims.driving.scene import Body, Moment, Surroundings


def surroundings(**parts):
    nothing = {"drivable": (), "lanes": {}, "lines": (), "edges": (), "crossings": ()}
    return Surroundings(**{**nothing, "route": np.zeros((0, 2)), **parts})


def body(kind, x, y, heading=0.0):
    return Body(kind, x, y, heading, 0.0, 0.0, 4.0, 2.0)


def seen(*others, x=0.0, y=0.0, heading=0.0):
    return Moment(0.0, body("vehicle", x, y, heading), {str(i): b for i, b in enumerate(others)})


def where(picture, color):
    """Mean (row, column) of what is nearly of that color."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - color) < 12).all(-1))
    assert len(rows), f"nothing is {color}"
    return rows.mean(), columns.mean()


@pytest.mark.parametrize(("x", "y", "heading"), [(0.0, 0.0, 0.0), (500.0, -70.0, 2.0)])
def test_ahead_is_up_and_left_is_left(x, y, heading):
    along = np.array([np.cos(heading), np.sin(heading)])
    aside = np.array([-along[1], along[0]])
    ahead, left = [x, y] + 20 * along, [x, y] + 10 * aside
    moment = seen(
        body("cyclist", *ahead, heading), body("pedestrian", *left, heading),
        x=x, y=y, heading=heading,
    )  # fmt: skip
    picture = birds_eye(surroundings(), moment, (300, 400), 30.0)
    assert picture.shape == (300, 400, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_allclose(where(picture, colors.EGO), (149.5, 199.5), atol=1)
    np.testing.assert_allclose(where(picture, colors.BODIES["cyclist"]), (49.5, 199.5), atol=1)
    np.testing.assert_allclose(where(picture, colors.BODIES["pedestrian"]), (149.5, 149.5), atol=1)


def test_the_road_is_where_it_is():
    road = np.array([[-100.0, 3], [100, 3], [100, 9], [-100, 9]])
    picture = birds_eye(surroundings(drivable=(road,)), seen(), (200, 200), 20.0)
    painted = (picture == colors.LAYERS["drivable"]).all(-1)
    columns = np.flatnonzero(painted.any(0))
    assert painted.all(0).sum() == pytest.approx(30, abs=2)
    np.testing.assert_allclose([columns[0], columns[-1]], [99.5 - 45, 99.5 - 15], atol=1.5)


def test_plan_and_trail_are_drawn_in_the_frame_of_the_scene():
    moment = seen(x=100.0, y=50.0, heading=np.pi / 2)
    plan = np.array([[100.0, 55], [100, 60], [100, 65]])
    trail = np.array([[100.0, 30], [100, 40], [100, 50]])
    picture = birds_eye(surroundings(), moment, (200, 200), 20.0, plan=plan, trail=trail)
    row, column = where(picture, colors.PLAN)
    assert row < 80
    assert column == pytest.approx(99.5, abs=1)
    row, column = where(picture, colors.TRAIL)
    assert row > 120
    assert column == pytest.approx(99.5, abs=1)


def test_no_plan_and_no_trail_are_not_drawn():
    none = birds_eye(surroundings(), seen())
    empty = birds_eye(surroundings(), seen(), plan=np.empty((0, 2)), trail=np.empty((0, 2)))
    np.testing.assert_array_equal(none, empty)


def test_a_ground_gives_the_same_picture():
    fixed = surroundings(drivable=(np.array([[-9.0, -9], [9, -9], [9, 9]]),))
    moment = seen(body("vehicle", 8, 2, 0.3))
    once = birds_eye(fixed, moment)
    np.testing.assert_array_equal(once, birds_eye(fixed, moment))
    np.testing.assert_array_equal(once, birds_eye(Ground(fixed), moment))


extreme = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.floats(-50, 50))
ways = st.lists(st.tuples(extreme, extreme), max_size=6).map(lambda p: np.array(p).reshape(-1, 2))
shapes = st.lists(ways, max_size=3).map(tuple)
bodies = st.builds(Body, st.sampled_from([*colors.BODIES, "?"]), *[extreme] * 7, height=extreme)


@given(
    shapes, shapes, bodies, st.lists(bodies, max_size=3), ways, ways,
    st.tuples(st.integers(1, 60), st.integers(1, 60)), st.floats(1e-3, 1e9),
)  # fmt: skip
@settings(max_examples=50)
def test_no_scene_is_too_extreme(drivable, lines, ego, others, plan, trail, size, reach_m):
    moment = Moment(0.0, ego, {str(i): other for i, other in enumerate(others)})
    fixed = surroundings(drivable=drivable, lines=lines)
    picture = birds_eye(fixed, moment, size, reach_m, plan=plan, trail=trail)
    assert picture.shape == (*size, 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"size": (0, 10)}, "shows nothing"), ({"reach_m": 0.0}, "shows nothing"),
     ({"reach_m": float("nan")}, "shows nothing"), ({"plan": np.zeros((3, 3))}, "plan has shape"),
     ({"trail": np.full((2, 2), np.nan)}, "trail has shape")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        birds_eye(surroundings(), seen(), **wrong)
