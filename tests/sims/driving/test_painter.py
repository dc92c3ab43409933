from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cv2")
from fastloop.datasets.logs import scenarionet
from fastloop.sims.driving import colors
from fastloop.sims.driving.camera import SMALL_SIZE, Camera, front_views
from fastloop.sims.driving.ground import Ground
from fastloop.sims.driving.painter import SHADES, paint
from fastloop.sims.driving.scene import Body, Moment, Surroundings
from fastloop.sims.driving.world import moment_of, surroundings_of

CAMERA = Camera("front", 320, 240, 200.0, 200.0, 159.5, 119.5, (0.0, 0.0, 2.0))
HORIZON = 120  # the first row of land in CAMERA's pictures


def surroundings(**parts):
    nothing = {"drivable": (), "lanes": {}, "lines": (), "edges": (), "crossings": ()}
    return Surroundings(**{**nothing, "route": np.zeros((0, 2)), **parts})


def body(kind, x, y, heading=0.0, size=(4.0, 2.0, 1.5)):
    return Body(kind, x, y, heading, 0.0, 0.0, *size)


def seen(*others, x=0.0, y=0.0, heading=0.0):
    return Moment(0.0, body("vehicle", x, y, heading), {str(i): b for i, b in enumerate(others)})


def picture(around=None, moment=None, camera=CAMERA):
    """(H, W, 3), the camera's frame beginning in the middle of the vehicle."""
    painted = paint(camera, around or surroundings(), moment or seen(), rear_axle=0.0)
    assert painted.dtype == np.uint8
    assert painted.shape == (3, camera.height, camera.width)
    return painted.transpose(1, 2, 0)


def shows(picture, color):
    """(H, W) where the picture has that color."""
    return (picture == color).all(-1)


def of_kind(picture, kind):
    shades = [np.uint8(np.array(colors.BODIES[kind]) * shade) for shade in SHADES]
    return np.any([shows(picture, shade) for shade in shades], axis=0)


def around(x=0.0, y=0.0, half=500.0):
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return half * corners + np.array([x, y])


def test_sky_is_above_the_horizon_and_land_below():
    empty = picture()
    assert shows(empty, colors.SKY)[:HORIZON].all()
    assert shows(empty, colors.LAND)[HORIZON:].all()


@pytest.mark.parametrize("pitch", [-0.2, 0.2])
def test_a_pitched_camera_sees_the_horizon_elsewhere(pitch):
    empty = picture(camera=replace(CAMERA, pitch=pitch))
    horizon = CAMERA.cy - CAMERA.fy * np.tan(pitch)
    assert shows(empty, colors.SKY)[:, 0].sum() == np.ceil(horizon)


def test_a_road_all_around_reaches_the_horizon_and_no_higher():
    road = picture(surroundings(drivable=(around(half=1e7),)))
    assert shows(road, colors.SKY)[:HORIZON].all()
    assert shows(road, colors.LAYERS["drivable"])[HORIZON + 1 :].all()


def test_a_line_from_behind_to_the_front_gets_narrower_with_its_distance():
    line = np.array([[-300.0, 0], [300, 0]])
    painted = shows(picture(surroundings(lines=(line,))), colors.LAYERS["line"])
    widths = painted.sum(1)
    assert not painted[:HORIZON].any()
    assert (np.diff(widths[HORIZON + 2 :]) >= 0).all()
    depth = CAMERA.fy * 2 / (239 - CAMERA.cy)
    assert widths[239] == pytest.approx(CAMERA.fx * 0.15 / depth, abs=1.5)


@pytest.mark.parametrize(("y", "half"), [(4.0, slice(0, 160)), (-4.0, slice(160, 320))])
def test_left_is_left(y, half):
    painted = of_kind(picture(moment=seen(body("vehicle", 20, y))), "vehicle")
    assert painted.any()
    assert painted[:, half].sum() == painted.sum()


def test_the_front_left_camera_sees_what_is_on_the_left():
    left, _, right = front_views(SMALL_SIZE)
    moment = seen(body("cyclist", 10, 10))
    assert of_kind(picture(moment=moment, camera=left), "cyclist").any()
    assert not of_kind(picture(moment=moment, camera=right), "cyclist").any()


def test_up_is_up():
    tall = of_kind(picture(moment=seen(body("vehicle", 20, 0, size=(4, 2, 6)))), "vehicle")
    rows = np.flatnonzero(tall.any(1))
    assert rows[0] == pytest.approx(CAMERA.cy - 200 * 4 / 18, abs=1)
    assert rows[-1] == pytest.approx(CAMERA.cy + 200 * 2 / 18, abs=1)


@given(
    st.floats(8, 60), st.floats(-0.5, 0.5), st.floats(-4, 4),
    st.tuples(st.floats(0.5, 12), st.floats(0.5, 3), st.floats(0.5, 4)),
)  # fmt: skip
def test_a_box_is_painted_where_its_corners_are_projected(x, bearing, heading, size):
    box = body("vehicle", x + size[0] / 2, bearing * x, heading, size)
    painted = of_kind(picture(moment=seen(box)), "vehicle")
    corners = np.concatenate(
        [np.column_stack([box.corners(), np.full(4, z)]) for z in (0.0, box.height)]
    )
    pixels, _ = CAMERA.project(corners)
    low = np.clip(pixels.min(0), 0, [319, 239])
    high = np.clip(pixels.max(0), 0, [319, 239])
    rows, columns = np.nonzero(painted)
    np.testing.assert_allclose([columns.min(), rows.min()], low, atol=1.01)
    np.testing.assert_allclose([columns.max(), rows.max()], high, atol=1.01)


def test_the_near_hides_the_far_whatever_their_order():
    near, far = body("vehicle", 12, 0, size=(4, 3, 3)), body("pedestrian", 30, 0, size=(1, 1, 1))
    for moment in (seen(near, far), seen(far, near)):
        assert not of_kind(picture(moment=moment), "pedestrian").any()
    before = picture(moment=seen(near, body("pedestrian", 8, 0, size=(1, 1, 1))))
    assert of_kind(before, "pedestrian").any()


def test_a_bus_hides_who_is_behind_it_and_nearer_than_its_middle():
    bus = body("vehicle", 16, -3, size=(16, 2.5, 3.5))
    painted = picture(moment=seen(body("pedestrian", 13, -5.5, size=(0.7, 0.7, 1.7)), bus))
    assert of_kind(painted, "vehicle").any()
    assert not of_kind(painted, "pedestrian").any()


def test_the_top_is_brightest_and_every_side_differs():
    painted = [
        picture(moment=seen(body("vehicle", 15, 0, heading)))
        for heading in (0.0, np.pi / 2, np.pi, -np.pi / 2)
    ]
    top = np.array(colors.BODIES["vehicle"])
    sides = [view[137, 159] for view in painted]
    assert len({tuple(side.tolist()) for side in sides}) == 4
    for view, side in zip(painted, sides, strict=True):
        assert shows(view, top).any()
        assert (side < top).all()


def test_road_users_differ_by_kind():
    kinds = list(colors.BODIES)
    moment = seen(*(body(kind, 20, 6 - 4 * i) for i, kind in enumerate(kinds)))
    painted = picture(moment=moment)
    assert all(of_kind(painted, kind).any() for kind in kinds)
    np.testing.assert_array_equal(
        picture(moment=seen(body("tractor", 20, 0))), picture(moment=seen(body("other", 20, 0)))
    )


@pytest.mark.parametrize("place", [(-10.0, 0.0), (0.0, 30.0), (-3.0, 2.0), (125.0, 0.0)])
def test_what_is_behind_beside_or_too_far_is_not_painted(place):
    hidden = picture(moment=seen(body("vehicle", *place)))
    np.testing.assert_array_equal(hidden, picture())
    far = picture(surroundings(drivable=(around(*place, half=2.5),)))
    np.testing.assert_array_equal(far, picture())


def test_inside_a_box_the_camera_sees_through_it():
    np.testing.assert_array_equal(
        picture(moment=seen(body("vehicle", 0, 0, size=(4, 2, 3)))), picture()
    )


def test_the_hole_of_an_outline_stays_open():
    outer, inner = around(20, half=10), around(20, half=4)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    painted = picture(surroundings(drivable=(keyhole,)))
    (u, v), _ = np.rint(CAMERA.project(np.array([[20.0, 1, 0]]))[0][0]).astype(int), None
    assert (painted[v, u] == colors.LAND).all()
    (u, v), _ = np.rint(CAMERA.project(np.array([[13.0, 1, 0]]))[0][0]).astype(int), None
    assert (painted[v, u] == colors.LAYERS["drivable"]).all()


def test_what_two_areas_share_is_drivable():
    one = picture(surroundings(drivable=(around(20, half=8),)))
    two = picture(surroundings(drivable=(around(20, half=8), around(22, half=5))))
    np.testing.assert_array_equal(one, two)


def scene():
    """A crossroads with some of everything."""
    cross = [np.array([[-200.0, -6], [200, -6], [200, 6], [-200, 6]])]
    cross.append(cross[0][:, ::-1] + [25, 0])
    lines = [np.array([[-200.0, 0], [200, 0]]), np.array([[25.0, -200], [25, 200]])]
    fixed = surroundings(
        drivable=tuple(cross),
        lines=tuple(lines),
        edges=(np.array([[-200.0, 6], [18, 6], [19, 8], [19, 200]]),),
        crossings=(np.array([[15.0, -6], [18, -6], [18, 6], [15, 6]]),),
    )
    return fixed, seen(
        body("vehicle", 12, -3, 0.1), body("pedestrian", 16, 2, size=(0.6, 0.6, 1.8)),
        body("cyclist", 9, 4, 1.0, (1.8, 0.7, 1.7)), body("vehicle", 30, 3, 3.0, (12, 2.5, 3)),
    )  # fmt: skip


def test_a_scene_is_painted_alike_on_every_call():
    fixed, moment = scene()
    once = picture(fixed, moment)
    for again in (fixed, Ground(fixed)):
        np.testing.assert_array_equal(picture(again, moment), once)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-np.pi, np.pi))
@settings(max_examples=25)
def test_where_in_the_world_a_scene_lies_is_not_seen(x, y, angle):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def moved(points):
        return points @ turn.T + [x, y]

    def moved_body(one):
        place = moved(np.array([one.x, one.y]))
        return replace(one, x=place[0], y=place[1], heading=one.heading + angle)

    fixed, moment = scene()
    there = replace(
        fixed,
        **{
            name: tuple(map(moved, getattr(fixed, name)))
            for name in ("drivable", "lines", "edges", "crossings")
        },
    )
    then = Moment(
        0.0, moved_body(moment.ego), {k: moved_body(one) for k, one in moment.others.items()}
    )
    differs = (picture(there, then) != picture(fixed, moment)).any(-1)
    assert differs.mean() < 0.005  # pixels on borders


extreme = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.floats(-50, 50), st.just(0.0)
)
shapes = st.lists(
    st.lists(st.tuples(extreme, extreme), max_size=6).map(lambda p: np.array(p).reshape(-1, 2)),
    max_size=3,
).map(tuple)
bodies = st.builds(
    Body, st.sampled_from([*colors.BODIES, "?"]), *[extreme] * 7, height=extreme
)  # fmt: skip


@given(
    shapes, shapes, shapes, shapes, bodies, st.lists(bodies, max_size=4),
    st.floats(1, 1e4), st.floats(-1, 9), st.tuples(st.floats(-4, 4), st.floats(-2, 2)),
)  # fmt: skip
@settings(max_examples=50)
def test_no_scene_is_too_extreme(
    drivable, lines, edges, crossings, ego, others, focal, height, angles
):
    fixed = surroundings(drivable=drivable, lines=lines, edges=edges, crossings=crossings)
    moment = Moment(0.0, ego, {str(i): other for i, other in enumerate(others)})
    view = Camera("any", 97, 108, focal, focal, 48.0, 54.0, (1.0, 0.0, height), *angles)
    assert paint(view, fixed, moment).shape == (3, 108, 97)
    flat = picture(fixed, replace(moment, others={}))
    assert shows(flat, colors.SKY)[: HORIZON - 1].all()


def test_the_frame_of_the_camera_begins_at_the_rear_axle():
    moment = seen(body("vehicle", 20, 0))
    estimated = paint(CAMERA, surroundings(), moment)
    behind = 1.461 / 5.176 * moment.ego.length
    np.testing.assert_array_equal(
        estimated, paint(CAMERA, surroundings(), moment, rear_axle=behind)
    )
    assert (estimated != paint(CAMERA, surroundings(), moment, rear_axle=0.0)).any()


def test_who_is_nowhere_is_named():
    with pytest.raises(ValueError, match=r"road user 0 .*finite"):
        picture(moment=seen(body("vehicle", np.nan, 0)))


def test_most_real_scenes_show_road_ahead(realdata):
    files = sorted((realdata / "nuscenes_mini_scenarionet").glob("*.pkl"))
    assert files
    shares = []
    for file in files:
        (log,) = scenarionet.read(file)
        front = front_views(SMALL_SIZE)[1]
        painted = paint(front, surroundings_of(log), moment_of(log, 20)).transpose(1, 2, 0)
        ahead = painted[230:, 110:132]
        road = shows(ahead, colors.LAYERS["drivable"]) | shows(ahead, colors.LAYERS["line"])
        busy = np.any([of_kind(ahead, kind) for kind in colors.BODIES], axis=0)
        shares.append((road | busy).mean())
    assert np.median(shares) > 0.95
