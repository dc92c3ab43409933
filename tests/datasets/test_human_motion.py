"""Human motion in the layouts that BeLFusion's scripts leave, on files written here."""

import json
import os
import zipfile

import numpy as np
import pytest

from fastloop.datasets import human_motion
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.human_motion import H36M_TEST, H36M_TRAIN, KEPT, amass, h36m


def motion(frames, joints, seed):
    steps = np.random.default_rng(seed).normal(size=(frames, joints, 3)) * 0.02
    return np.cumsum(steps, axis=0).astype(np.float32)


@pytest.fixture
def bodies():
    names = (*H36M_TRAIN, *H36M_TEST, "S4")
    return {
        who: {"Directions 1": motion(160, 32, 2 * k), "Walking": motion(125, 32, 2 * k + 1)}
        for k, who in enumerate(names)
    }


@pytest.fixture
def h36m_file(bodies, tmp_path):
    np.savez_compressed(tmp_path / "data_3d_h36m.npz", positions_3d=bodies)
    return tmp_path / "data_3d_h36m.npz"


def write_zarr(path, array, chunk):
    """Format 2, uncompressed, as ``zarr.open(path, mode="w")`` of zarr 2 lays it out."""
    path.mkdir(parents=True)
    chunks = [chunk, *array.shape[1:]]
    header = {
        "zarr_format": 2, "shape": list(array.shape), "chunks": chunks, "filters": None,
        "dtype": array.dtype.str, "compressor": None, "fill_value": 0, "order": "C",
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps(header))
    for k, start in enumerate(range(0, len(array), chunk)):
        piece = np.zeros(chunks, array.dtype)
        piece[: len(array[start : start + chunk])] = array[start : start + chunk]
        name = ".".join([str(k), *["0"] * (array.ndim - 1)])
        (path / name).write_bytes(piece.tobytes())


@pytest.fixture
def amass_folder(tmp_path):
    for k, name in enumerate(("CMU", "SFU", "SSM")):
        write_zarr(tmp_path / name / "poses.zarr", motion(400, 22, k), 100)
        write_zarr(tmp_path / name / "poses_index.zarr", np.array([[0, 170], [170, 400]]), 100)
    return tmp_path


PARTS = {"train": ["CMU"], "val": ["SFU"], "test": ["SSM"]}


def test_h36m_by_hand(h36m_file, bodies):
    data = h36m(h36m_file)
    assert (data.hz, data.same_situation) == (50, 0.5)
    # Frames 0, 10, 20, 30 begin a window of 125 frames in 160, and the first alone in 125.
    assert [len(it) for it in (data.train, data.val, data.test)] == [5 * 5, 0, 2 * 5]
    assert data.test.past.shape == (10, 25, 48)
    assert data.test.future.shape == (10, 100, 48)
    assert data.test.groups.tolist()[3:6] == ["S9/Directions 1", "S9/Walking", "S11/Directions 1"]
    body = bodies["S9"]["Directions 1"]
    expected = np.stack([body[30:155, j] - body[30:155, 0] for j in KEPT[1:]], 1).reshape(125, 48)
    found = np.concatenate([data.test.past[3], data.test.future[3]])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(data.test.situation, data.test.past[:, -1])
    assert data.test.moment[:5].tolist() == [24, 34, 44, 54, 160 + 24]
    assert (np.diff(data.test.moment) > 0).all()


def test_the_joints_that_stay():
    gone = {4, 5, 9, 10, 11, 16, 20, 21, 22, 23, 24, 28, 29, 30, 31}
    assert tuple(sorted(set(range(32)) - gone)) == KEPT


def test_seventeen_joints_are_taken_as_they_are(bodies, tmp_path, h36m_file):
    few = {who: {a: it[:, KEPT] for a, it in of.items()} for who, of in bodies.items()}
    np.savez(tmp_path / "few.npz", positions_3d=few)
    np.testing.assert_array_equal(h36m(tmp_path / "few.npz").test.past, h36m(h36m_file).test.past)


def test_listed_moments(h36m_file, tmp_path):
    path = tmp_path / "segments_test.csv"
    path.write_text(
        "subject,action,pred_init,pred_end\nS11,Walking,25,124\nS9,Directions 1,60,159\n"
    )
    data, every = h36m(h36m_file, segments=path), h36m(h36m_file, stride=5)
    assert data.test.groups.tolist() == ["S11/Walking", "S9/Directions 1"]
    np.testing.assert_array_equal(data.test.future[1], every.test.future[7])
    for moment in ("24", "26", "x"):
        path.write_text(f"subject,action,pred_init\nS11,Walking,{moment}\n")
        with pytest.raises(DatasetError, match=r"segments_test\.csv"):
            h36m(h36m_file, segments=path)
    path.write_text("subject,action,pred_init\n")
    with pytest.raises(DatasetError, match="lists nothing"):
        h36m(h36m_file, segments=path)


def test_amass_by_hand(amass_folder):
    data = amass(amass_folder, **PARTS)
    # 170 frames: windows of 150 from 0, 10, 20; 230 frames: from 0 to 80.
    assert [len(it) for it in (data.train, data.val, data.test)] == [12, 12, 12]
    assert data.train.past.shape == (12, 30, 63)
    assert data.train.future.shape == (12, 120, 63)
    body = motion(400, 22, 2)[180:330]
    found = np.concatenate([data.test.past[4], data.test.future[4]])
    np.testing.assert_allclose(found, (body[:, 1:] - body[:, :1]).reshape(150, 63), atol=1e-6)
    assert data.test.groups.tolist() == ["SSM/0"] * 3 + ["SSM/1"] * 9
    assert (data.hz, data.same_situation) == (60, 0.4)


def test_amass_listed(amass_folder, tmp_path):
    path = tmp_path / "segments_test.csv"
    path.write_text("dataset,file,file_idx,pred_init,pred_end\nSSM,a.npz,1,40,159\n")
    listed = amass(amass_folder, segments=path, **PARTS).test
    np.testing.assert_array_equal(listed.past[0], amass(amass_folder, **PARTS).test.past[4])


def test_what_is_wrong_is_named(h36m_file, amass_folder, bodies, tmp_path):
    with pytest.raises(DatasetError, match="BMLmovi"):
        amass(amass_folder, train=["CMU", "BMLmovi"], val=[], test=["SSM"])
    with pytest.raises(ValueError, match="SSM cannot be in two parts"):
        amass(amass_folder, train=["CMU", "SSM"], val=[], test=["SSM"])
    with pytest.raises(ValueError, match="stride 0"):
        h36m(h36m_file, stride=0)
    index = np.array([[0, 401]])
    for part in (amass_folder / "SSM" / "poses_index.zarr").iterdir():
        part.unlink()
    (amass_folder / "SSM" / "poses_index.zarr").rmdir()
    write_zarr(amass_folder / "SSM" / "poses_index.zarr", index, 100)
    with pytest.raises(DatasetError, match="recording 0 is said to go from 0 to 401 of 400"):
        amass(amass_folder, **PARTS)

    def refused(saved, match):
        np.savez(tmp_path / "bad.npz", **saved)
        with pytest.raises(DatasetError, match=match):
            h36m(tmp_path / "bad.npz")

    refused({"other": bodies}, "positions_3d")
    refused({"positions_3d": np.zeros(3)}, "no data_3d_h36m")
    refused({"positions_3d": np.array([bodies, bodies], object)}, "several objects")
    refused({"positions_3d": {"S1": 1}}, "no dict of subjects")
    refused({"positions_3d": {k: v for k, v in bodies.items() if k != "S9"}}, "lacks S9; it holds")
    wrong = {**bodies, "S9": {"Walking": motion(160, 20, 0)}}
    refused({"positions_3d": wrong}, r"S9, Walking: shape \(160, 20, 3\)")
    wrong = {**bodies, "S9": {"Walking": np.full((160, 32, 3), np.nan)}}
    refused({"positions_3d": wrong}, "holds nan")
    with pytest.raises(DatasetError, match="cannot be read"):
        h36m(tmp_path / "none.npz")


def test_nothing_of_a_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    content = np.empty((), object)
    content[()] = {"S1": Evil()}
    np.savez(tmp_path / "evil.npz", positions_3d=content)
    with pytest.raises(DatasetError, match="nothing was run"):
        h36m(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


def test_an_unpacked_giant_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(human_motion, "LARGEST", 1000)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("positions_3d.npy", bytes(5000))
    with pytest.raises(DatasetError, match="more than 1000 bytes"):
        h36m(tmp_path / "a.npz")
