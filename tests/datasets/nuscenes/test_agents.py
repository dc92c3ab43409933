"""Who is there at the waypoints' times, against slow walks as the references make them."""

import numpy as np
import pytest

from fastloop.datasets.nuscenes.agents import NEAR_M, Agents
from fastloop.datasets.nuscenes.moments import ego_motion
from fastloop.datasets.nuscenes.scenes import NuScenes
from fastloop.datasets.scores.planning import CONVENTIONS, collisions

STEPS = 6


@pytest.fixture(scope="module")
def data(both):
    return NuScenes(both, "v1.0-mini")


def about(box_row, translation, rotation):
    """The devkit's box in the frame at a pose: x, y, yaw."""
    from nuscenes.utils.data_classes import Box
    from pyquaternion import Quaternion

    box = Box(box_row["translation"], box_row["size"], Quaternion(box_row["rotation"]))
    for t, r in zip(translation, rotation, strict=True):
        box.translate(-np.array(t))
        box.rotate(r.inverse)
    ahead = box.orientation.rotation_matrix[:, 0]
    return (*box.center[:2], ahead[0], ahead[1])


def ahead_of(devkit, sample):
    """The samples after this one, None where the scene ends."""
    found = []
    for _ in range(STEPS):
        token = sample["next"] if sample else ""
        sample = devkit.get("sample", token) if token else None
        found.append(sample)
    return found


def walk(devkit, token, convention):
    """(instance, step) to x, y, cosine, sine in lidar axes, and who is known, one by one."""
    from pyquaternion import Quaternion

    sample = devkit.get("sample", token)
    sweep = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    poses = [
        devkit.get("ego_pose", sweep["ego_pose_token"]),
        devkit.get("calibrated_sensor", sweep["calibrated_sensor_token"]),
    ]
    frame = [p["translation"] for p in poses], [Quaternion(p["rotation"]) for p in poses]
    there, known = {}, set()
    seen = set()
    if convention == "stp3":
        past = sample
        for _ in range(3):
            for row in (devkit.get("sample_annotation", t) for t in past["anns"]):
                if row["visibility_token"] != "1":
                    seen.add(row["instance_token"])
            if not past["prev"]:
                break
            past = devkit.get("sample", past["prev"])
    for step, future in enumerate(ahead_of(devkit, sample)):
        for row in (devkit.get("sample_annotation", t) for t in (future["anns"] if future else [])):
            name = row["category_name"]
            if not name.startswith(("vehicle", "human")):
                continue
            if convention == "uniad" and name.startswith("vehicle.emergency"):
                continue
            key = row["instance_token"], step
            there[key] = about(row, *frame)
            if convention == "uniad" or row["instance_token"] in seen:
                known.add(key)
    if convention == "vad":
        for row in (devkit.get("sample_annotation", t) for t in sample["anns"]):
            if row["num_lidar_pts"] + row["num_radar_pts"] == 0:
                continue
            for step in range(STEPS):
                if not row["next"]:
                    break
                row = devkit.get("sample_annotation", row["next"])
                known.add((row["instance_token"], step))
    return there, known & there.keys()


@pytest.mark.parametrize("convention", ["uniad", "stp3", "vad"])
def test_boxes_are_those_of_a_slow_walk(data, devkit, convention):
    samples = np.arange(1, len(data), max(1, len(data) // 12))
    boxes = Agents(data.tables).boxes(samples, convention)
    # Which instance a box is of is told by where it is: centers differ.
    for i, sample in enumerate(samples):
        there, known = walk(devkit, data.tables.tokens[sample], convention)
        rows = np.flatnonzero(boxes.sample == i)
        assert len(rows) == len(there)
        right, forward, cos, sin = np.array(list(there.values())).reshape(-1, 4).T
        steps = np.array([step for _, step in there], dtype=int)
        expected = np.stack([steps, forward, -right, sin, -cos], -1)
        expected = np.c_[expected, [key in known for key in there]]
        found = np.c_[boxes.step[rows], boxes.rectangles[rows][:, [0, 1, 4, 5]], boxes.known[rows]]
        order = [np.lexsort(np.round(a[:, :5], 5).T) for a in (found, expected)]
        np.testing.assert_allclose(found[order[0]], expected[order[1]], atol=1e-7)


def test_boxes_about_the_rear_axle_are_the_lidar_s_mounting_away(data):
    boxes = Agents(data.tables).boxes(np.arange(5), "stp3")
    moved = boxes.about_rear_axle - boxes.rectangles
    # Both roots are flat and look straight ahead, so only the offset is left.
    np.testing.assert_allclose(
        moved, np.tile([0.943713, 0, 0, 0, 0, 0], (len(boxes), 1)), atol=1e-6
    )


def test_far_objects_and_strange_ones_are_unknown_if_only_near_ones_are_kept(data):
    samples = np.arange(len(data))
    every, near = (Agents(data.tables, only).boxes(samples, "vad") for only in (False, True))
    np.testing.assert_array_equal(every.rectangles, near.rectangles)
    assert 0 < near.known.sum() < every.known.sum()
    assert not (near.known & ~every.known).any()
    # Nobody can be far outside of the window half a second after he was in it.
    first = near.known & (near.step == 0)
    assert (abs(near.rectangles[first, :2]) < np.array(NEAR_M) + 20).all()


@pytest.mark.parametrize(
    ("convention", "percent"),
    [("uniad", (0, 0.8982, 3.8922)), ("stp3", (0, 0.0749, 0.9481)), ("vad", (0, 0.4491, 1.5968))],
)
def test_published_collisions_of_constant_velocity_on_mini(mini, convention, percent):
    """As the references' own functions count them on grids drawn about the present pose."""
    data = NuScenes(mini, "v1.0-mini")
    motion = ego_motion(data.tables)
    rows = np.flatnonzero(motion.known.all(1) & (motion.past >= 1))
    plans = motion.states[rows, -1, None, 2:4] * 0.5 * np.arange(1, 7)[:, None]
    columns = collisions(
        plans,
        motion.future[rows],
        Agents(data.tables).boxes(rows, convention),
        convention=convention,
        faults=CONVENTIONS[convention].faults - {"resampled_grid"},
    )
    rates = [100 * column.mean() for column in columns.values()]
    np.testing.assert_allclose(rates, percent, atol=1e-4)


def test_the_rear_axle_moves_as_the_tables_say(data):
    samples = np.array([2, 5])
    motion = Agents(data.tables).boxes(samples, "stp3").motion
    poses = data.tables.ego_pose
    for sample, moved in zip(samples, motion, strict=True):
        for step, (x, y, heading) in enumerate(moved):
            pose = np.linalg.inv(poses[sample]) @ poses[sample + step + 1]
            expected = *pose[:2, 3], np.arctan2(pose[1, 0], pose[0, 0])
            np.testing.assert_allclose((x, y, heading), expected, atol=1e-9)
