import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.sims.driving.camera import (
    FULL_SIZE,
    NEAR,
    SMALL_SIZE,
    Camera,
    front_views,
    scene_to_vehicle,
)
from fastloop.sims.driving.poses import Pose

meters = st.floats(-200, 200)
cameras = st.builds(
    Camera,
    name=st.just("front"),
    width=st.integers(50, 2000),
    height=st.integers(50, 2000),
    fx=st.floats(100, 3000),
    fy=st.floats(100, 3000),
    cx=st.floats(-100, 2000),
    cy=st.floats(-100, 2000),
    position=st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 4)),
    yaw=st.floats(-4, 4),
    pitch=st.floats(-1.5, 1.5),
)


def level(yaw=0.0, pitch=0.0):
    return Camera("front", 640, 480, 500.0, 400.0, 320.0, 240.0, (1.5, 0.0, 2.0), yaw, pitch)


@pytest.mark.parametrize("yaw", [0.0, 0.7, -2.5])
@pytest.mark.parametrize("pitch", [0.0, 0.3, -0.3])
def test_what_lies_on_the_optical_axis_is_at_the_principal_point(yaw, pitch):
    axis = [np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)]
    pixels, depth = level(yaw, pitch).project(np.array([[1.5, 0, 2]]) + 20 * np.array([axis]))
    np.testing.assert_allclose(pixels, [[320, 240]], atol=1e-9)
    np.testing.assert_allclose(depth, [20])


def test_left_is_left_and_up_is_up_by_focal_length_over_depth():
    pixels, depth = level().project(np.array([[11.5, 1, 2], [11.5, 0, 3], [11.5, -2, 1]]))
    np.testing.assert_allclose(pixels, [[270, 240], [320, 200], [420, 280]])
    np.testing.assert_allclose(depth, [10, 10, 10])


def test_a_camera_that_is_turned_to_the_left_sees_what_is_there():
    (ahead, left), _ = level(np.pi / 4).project(np.array([[11.5, 0, 2], [11.5, 10, 2]]))
    np.testing.assert_allclose(ahead, [820, 240])
    np.testing.assert_allclose(left, [320, 240])


def test_pitch_is_downwards():
    (ground,), _ = level(pitch=np.arctan2(2, 10)).project(np.array([[11.5, 0, 0]]))
    np.testing.assert_allclose(ground, [320, 240])


def test_what_is_before_the_near_plane_has_no_pixel():
    x = 1.5 + np.array([NEAR * 1.01, NEAR * 0.99, 0, -10])
    pixels, depth = level().project(np.stack([x, 0 * x, 0 * x + 2], -1))
    assert np.isfinite(pixels).all(1).tolist() == [True, False, False, False]
    np.testing.assert_allclose(depth, x - 1.5, atol=1e-12)


@given(cameras, st.lists(st.tuples(meters, meters, meters), min_size=1, max_size=5))
def test_pixels_and_depth_lead_back_to_the_point(camera, points):
    pixels, depth = camera.project(np.array(points))
    seen = depth >= NEAR
    rays = np.linalg.inv(camera.matrix()) @ np.vstack([pixels[seen].T, np.ones(seen.sum())])
    back = camera.extrinsics_opencv() @ np.vstack([rays * depth[seen], np.ones(seen.sum())])
    np.testing.assert_allclose(back[:3].T, np.array(points)[seen], atol=1e-6)


@given(cameras)
def test_both_conventions_of_axes_are_one_rotation(camera):
    waymo, opencv = camera.extrinsics(), camera.extrinsics_opencv()
    for pose in (waymo, opencv):
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose) == pytest.approx(1)
    forward, left, up = waymo[:3, :3].T
    np.testing.assert_allclose(opencv[:3, :3].T, [-left, -up, forward], atol=1e-12)
    np.testing.assert_array_equal(opencv[:3, 3], camera.position)


@given(cameras, st.tuples(meters, meters, meters), st.floats(0, 50))
def test_the_frustum_holds_what_is_projected_into_the_picture(camera, point, margin):
    (pixel,), (depth,) = camera.project(np.array([point]))
    beyond = np.array([camera.width, camera.height]) - 1 + margin - pixel
    gap = np.min([depth - NEAR, *((pixel + margin) * depth), *(beyond * depth)])
    if np.isfinite(pixel).all() and abs(gap) > 1e-6:
        assert bool((camera.frustum(margin) @ [*point, 1] >= 0).all()) == (gap > 0)
    elif depth < NEAR - 1e-6:
        assert (camera.frustum(margin) @ [*point, 1]).min() < 0


@given(cameras, st.tuples(meters, meters, meters))
def test_a_resized_camera_sees_the_same_at_the_same_share_of_the_picture(camera, point):
    smaller = camera.resized(40, 30)
    (before,), _ = camera.project(np.array([point]))
    (after,), _ = smaller.project(np.array([point]))
    share = (before + 0.5) / [camera.width, camera.height]
    np.testing.assert_allclose((after + 0.5) / [40, 30], share, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [FULL_SIZE, SMALL_SIZE])
def test_front_views_stand_side_by_side(size):
    views = front_views(size)
    assert [view.name for view in views] == ["front_left", "front", "front_right"]
    assert {(view.width, view.height) for view in views} == {size}
    left, front, right = views
    at_seam = 50 * np.array([[np.cos(a), np.sin(a), 0] for a in (np.pi / 8, -np.pi / 8)])
    (u_left, _), _ = left.project(at_seam)
    u_front, _ = front.project(at_seam)
    (_, u_right), _ = right.project(at_seam)
    assert 0.95 * size[0] < u_left[0] < size[0]
    assert 0 < u_front[0, 0] < 0.05 * size[0]
    assert 0.95 * size[0] < u_front[1, 0] < size[0]
    assert 0 < u_right[0] < 0.05 * size[0]


def test_the_vehicle_frame_begins_where_the_vehicle_is():
    to_vehicle = scene_to_vehicle(Pose(100.0, 50.0, np.pi / 2))
    there = np.array([[100, 50, 0, 1], [100, 53, 1, 1], [98, 50, 0, 1]]).T
    np.testing.assert_allclose(
        (to_vehicle @ there).T[:, :3], [[0, 0, 0], [3, 0, 1], [0, 2, 0]], atol=1e-12
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"fx": 0.0}, "positive"), ({"width": -1}, "positive"), ({"yaw": np.nan}, "finite"),
     ({"position": (0.0, 1.0)}, "3 of position")],
)  # fmt: skip
def test_a_camera_that_cannot_be_says_why(wrong, said):
    parts = {"width": 9, "height": 9, "fx": 9.0, "fy": 9.0, "cx": 4.0, "cy": 4.0}
    with pytest.raises(ValueError, match=said):
        Camera(**{"name": "front", "position": (0.0, 0.0, 1.0), **parts, **wrong})
