"""Files of predictions: every layout means the same, bad rows are told, wrong axes are refused."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.datasets import pickles
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.poses import lidar_to_vehicle
from fastloop.datasets.predictions import check_heading, read, write
from fastloop.datasets.waymo import submission


def drives(n, T=6, seed=0):
    """n plans in the vehicle frame: mostly ahead, some turning, some parked."""
    rng = np.random.default_rng(seed)
    t = np.arange(1, T + 1) / 2
    speed = np.where(rng.random(n) < 0.2, 0, rng.uniform(2, 12, n))[:, None]
    turn = rng.normal(0, 0.15, n)[:, None] * (rng.random(n) < 0.5)[:, None]
    x, y = speed * t * np.cos(turn * t), speed * t * np.sin(turn * t)
    return np.stack([x, y], axis=-1) + rng.normal(0, 0.01, (n, T, 2))


def vehicle_to_lidar(points):
    return np.stack([-points[..., 1], points[..., 0]], axis=-1)


PLANS = {f"token{k}": plan for k, plan in enumerate(drives(4))}
LISTS = {key: plan.tolist() for key, plan in PLANS.items()}
LIDAR = {key: vehicle_to_lidar(plan) for key, plan in PLANS.items()}


def saved(path, content):
    """Content in the layout that the suffix of `path` means."""
    if path.suffix == ".json":
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    elif path.suffix == ".npz":
        np.savez_compressed(path, **content)
    else:
        path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "frame"),
    [
        ("a.json", LISTS, "vehicle"),
        ("a.json", {"trajectories": LISTS}, "vehicle"),
        ("a.json", {"frame": "vehicle", "hz": 2, "trajectories": LISTS}, "vehicle"),
        ("a.json", {"frame": "lidar", "trajectories": {k: v.tolist() for k, v in LIDAR.items()}},
         "lidar"),
        ("a.npz", {"keys": list(PLANS), "trajectories": list(PLANS.values())}, "vehicle"),
        ("a.npz", {"keys": list(PLANS), "trajectories": list(LIDAR.values()), "frame": "lidar"},
         "lidar"),
        ("a.NPZ", {"keys": list(PLANS), "trajectories": np.asfortranarray(list(PLANS.values())),
                   "hz": 2.0}, "vehicle"),
        ("a.pkl", LIDAR, "lidar"),
        ("output_data.pkl", {k: v[None] for k, v in LIDAR.items()}, "lidar"),
        ("a.pickle", {k: np.pad(v, ((0, 0), (0, 1)))[None] for k, v in LIDAR.items()}, "lidar"),
        ("a.pkl", {k: v.tolist() for k, v in LIDAR.items()}, "lidar"),
    ],
)  # fmt: skip
def test_every_layout_means_the_same(tmp_path, name, content, frame):
    path = tmp_path / name
    found = read(saved(path, content) if path.suffix != ".NPZ" else _upper(path, content),
                 steps=6, hz=2)  # fmt: skip
    assert found.frame == frame
    assert not found.faults
    assert list(found.trajectories) == list(PLANS)
    for key, plan in PLANS.items():
        assert found.trajectories[key].dtype == np.float64
        np.testing.assert_array_equal(found.trajectories[key], plan)


def _upper(path, content):
    with path.open("wb") as file:
        np.savez(file, **content)
    return path


@pytest.mark.parametrize("name", ["mine.tar.gz", "folder", "part0"])
def test_a_submission_is_read_as_predictions(tmp_path, name):
    pytest.importorskip("google.protobuf")
    plans = {f"frame-{k:03d}": plan for k, plan in enumerate(drives(3, T=20))}
    path = submission.write(
        tmp_path / "mine.tar.gz", plans, account_name="a@b.c", unique_method_name="x",
        uses_public_model_pretraining=False, num_model_parameters="1K",
    )  # fmt: skip
    if name != "mine.tar.gz":
        with tarfile.open(path) as archive:
            part = archive.extractfile("mine/part0").read()
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        (path / "part0" if name == "folder" else path).write_bytes(part)
    found = read(path, steps=20, hz=4)
    for key, plan in plans.items():
        np.testing.assert_array_equal(found.trajectories[key], np.float32(plan))
    with pytest.raises(DatasetError, match="no trajectory of 6 points"):
        read(path, steps=6)


@pytest.mark.parametrize("name", ["a.json", "a.npz"])
def test_what_is_written_is_read_back_to_the_last_bit(tmp_path, name):
    found = read(write(tmp_path / name, PLANS, hz=2), steps=6, hz=2)
    assert (found.frame, found.faults) == ("vehicle", {})
    for key, plan in PLANS.items():
        np.testing.assert_array_equal(found.trajectories[key], plan)
    with pytest.raises(DatasetError, match=r"says 2(\.0)? waypoints a second, expected 4"):
        read(tmp_path / name, steps=6, hz=4)
    assert [it.name for it in tmp_path.iterdir()] == [name]


def test_nothing_can_be_written(tmp_path):
    for name in ("a.json", "a.npz"):
        with pytest.raises(DatasetError, match="no trajectory of 6 points"):
            read(write(tmp_path / name, {}), steps=6)


@pytest.mark.parametrize(
    ("name", "plans", "message"),
    [
        ("a.pkl", PLANS, r"\.json or \.npz"),
        ("a.json", PLANS | {"b": np.zeros((5, 2))}, "of shapes"),
        ("a.npz", {"b": np.zeros((5, 3))}, "expected one of"),
        ("a.npz", {"b": np.zeros(2)}, "expected one of"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, name, plans, message):
    with pytest.raises(DatasetError, match=message):
        write(tmp_path / name, plans)
    assert not list(tmp_path.iterdir())


BAD_ROWS = {
    "nan": [[0, np.nan]] * 6,
    "inf": [[np.inf, 0]] * 6,
    "short": [[0, 0]] * 5,
    "long": [[0, 0]] * 7,
    "words": [["0", "0"]] * 6,
    "truth": [[True, False]] * 6,
    "deep": [[[0, 0]]] * 6,
    "three": [[0, 0, 0]] * 6,
    "huge": [[0, 10**400]] * 6,
    "nothing": None,
    "number": 3,
    "object": {"x": 1},
}


@pytest.mark.parametrize("name", ["a.json", "a.pkl"])
def test_bad_rows_are_told_and_left_out(tmp_path, name):
    found = read(saved(tmp_path / name, LISTS | BAD_ROWS), steps=6)
    assert list(found.trajectories) == list(PLANS)
    assert list(found.faults) == list(BAD_ROWS)
    assert "nan or inf" in found.faults["nan"]
    assert "5 rows, expected 6 points" in found.faults["short"]


def test_keys_that_are_there_twice(tmp_path):
    row = json.dumps(LISTS["token0"])
    text = ", ".join(f'"{key}": {row}' for key in ("a", "b", "a", "c", "a"))
    for content in (f"{{{text}}}", f'{{"trajectories": {{{text}}}}}'):
        found = read(saved(tmp_path / "a.json", content), steps=6)
        assert list(found.trajectories) == ["b", "c"]
        assert found.faults == {"a": "it is there twice"}
    table = {"keys": ["a", "b", "a"], "trajectories": np.zeros((3, 6, 2))}
    found = read(saved(tmp_path / "a.npz", table), steps=6)
    assert list(found.trajectories) == ["b"]
    assert list(found.faults) == ["a"]


def test_bad_keys_are_told(tmp_path):
    found = read(saved(tmp_path / "a.pkl", LIDAR | {7: LIDAR["token0"]}), steps=6)
    assert found.faults == {"7": "its key is no text"}
    text = json.dumps(LISTS)[:-1] + r', "\ud800": []}'
    assert r"\ud800" in read(saved(tmp_path / "a.json", text), steps=6).faults


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.json", "[" * 200_000, "is no JSON"),
        ("a.json", "[]", "is no JSON object"),
        ("a.json", "{}", "no trajectory of 6 points"),
        ("a.json", {"a": [[0, 0]] * 5}, "no trajectory of 6 points: a: a trajectory of 5 rows"),
        ("a.json", {"frame": "ego", "trajectories": LISTS}, "unknown frame 'ego'; have: vehicle"),
        ("a.json", {"frame": "lidar", "trajectories": []}, "no object by key"),
        ("a.json", {"Frame": "lidar", "trajectories": LISTS}, "has the entries Frame, traj"),
        ("a.json", '{"frame": "lidar", "frame": "vehicle", "trajectories": {}}', "expected once"),
        ("a.npz", {"keys": ["a"]}, "is no .npz of keys"),
        ("a.npz", {"keys": ["a"], "trajectories": np.zeros((2, 6, 2))}, "keys of shape"),
        ("a.npz", {"keys": "a", "trajectories": np.zeros((1, 6, 2))}, "keys of shape"),
        ("a.npz", {"keys": np.array(["a"], object), "trajectories": np.zeros((1, 6, 2))},
         "of type object"),
        ("a.npz", {"keys": ["a"], "trajectories": np.zeros((1, 6, 2), complex)}, "of type complex"),
        ("a.pkl", [1, 2], "holds a list, expected a dict"),
        ("a.pkl", io.BytesIO, "asks for"),
        ("a.csv", {}, "unknown kind of file '.csv'; have"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(tmp_path, name, content, message):
    with pytest.raises(DatasetError, match=message):
        read(saved(tmp_path / name, content), steps=6)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        read(tmp_path / "a.json", steps=6)


def test_an_array_that_says_it_is_huge_is_refused(tmp_path):
    for shape in ((10**12,), (10**30, 0), (2**63, 2**63)):
        for dtype in ("<U0", "<f8", "<U9"):
            stream = io.BytesIO()
            np.lib.format.write_array_header_2_0(
                stream, {"descr": dtype, "fortran_order": False, "shape": shape}
            )
            with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
                archive.writestr("keys.npy", stream.getvalue())
                archive.writestr("trajectories.npy", stream.getvalue())
            with pytest.raises(DatasetError, match="keys"):
                read(tmp_path / "a.npz", steps=6)


def test_a_list_of_astronomic_extent_is_not_walked(tmp_path, monkeypatch):
    deep = [0.0, 0.0]
    for _ in range(60):
        deep = [deep, deep]  # 2**61 numbers
    monkeypatch.setattr(pickles, "load", lambda path: LIDAR | {"deep": deep})
    found = read(saved(tmp_path / "a.pkl", {}), steps=6)
    assert list(found.faults) == ["deep"]


def test_lidar_axes():
    ahead_and_right = np.array([[1.0, 5.0]])
    np.testing.assert_array_equal(lidar_to_vehicle(ahead_and_right), [[5.0, -1.0]])


@pytest.mark.parametrize("seed", range(5))
def test_axes_are_known_by_the_heading(seed):
    plans = drives(60, seed=seed)
    check_heading(plans)
    with pytest.raises(DatasetError, match=r"along \+y .*lidar axes .* declare the frame 'lidar'"):
        check_heading(vehicle_to_lidar(plans))
    with pytest.raises(DatasetError, match=r"along -y .*declared as 'lidar'"):
        check_heading(lidar_to_vehicle(plans))
    with pytest.raises(DatasetError, match=r"along -x .*negate"):
        check_heading(-plans)


def test_no_claim_without_enough_movement():
    check_heading([])
    check_heading(vehicle_to_lidar(drives(15)))
    check_heading(np.zeros((500, 6, 2)))
    parked = np.random.default_rng(0).normal(0, 0.3, (500, 6, 2))
    check_heading(np.concatenate([parked, vehicle_to_lidar(drives(15))]))
    check_heading(np.full((50, 6, 2), np.nan))


def test_no_claim_on_turns_or_scattered_plans():
    t = np.arange(1, 7) / 2
    left = np.stack([4 * np.sin(t / 2), 4 * (1 - np.cos(t / 2))], axis=-1)  # 86 degrees in 3 s
    check_heading([left * k for k in np.linspace(1, 4, 100)])
    check_heading(np.random.default_rng(0).normal(0, 20, (500, 6, 2)))
    mixed = np.concatenate([drives(70), vehicle_to_lidar(drives(130, seed=1))])
    check_heading(mixed)


@given(data=st.data(), name=st.sampled_from(["a.json", "a.npz", "a.pkl"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_told(tmp_path, data, name):
    path = tmp_path / name
    few = dict(list(PLANS.items())[:2])
    if name == "a.pkl":
        saved(path, few)
    else:
        write(path, few, hz=2)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        damaged[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=4))
    path.write_bytes(damaged[: data.draw(st.sampled_from([None, len(damaged) // 2]))])
    try:
        found = read(path, steps=6)
    except DatasetError:
        return
    for plan in found.trajectories.values():
        assert plan.shape == (6, 2)
        assert np.isfinite(plan).all()
