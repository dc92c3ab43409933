"""Challenge submissions: complete or not written, and read back from any layout, hostile or not."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.waymo.submission import read, read_frames, write

pytest.importorskip("google.protobuf")
METADATA = {
    "account_name": "someone@example.org",
    "unique_method_name": "straight ahead",
    "uses_public_model_pretraining": False,
    "num_model_parameters": "12K",
    "public_model_names": [],
    "authors": ["Ada", "Grace"],
    "affiliation": "a garage",
    "description": "keeps its speed",
    "method_link": "",
}


def predictions(n=5):
    rng = np.random.default_rng(0)
    return {f"{k:032x}-{k:03d}": rng.normal(size=(20, 2)) * 30 for k in range(n)}


def assert_same(submission, expected):
    assert list(submission.predictions) == list(expected)
    for name, points in expected.items():
        assert submission.predictions[name].dtype == np.float64
        np.testing.assert_array_equal(submission.predictions[name], np.float32(points))
    assert submission.metadata == METADATA


@pytest.mark.parametrize("shards", [1, 3, 12])
def test_round_trip(tmp_path, shards):
    expected = predictions(12)
    path = write(tmp_path / "mine.tar.gz", expected, **METADATA, shards=shards, frames=expected)
    assert_same(read(path), expected)
    with tarfile.open(path) as archive:
        assert archive.getnames() == [f"mine/part{k}" for k in range(shards)]


def test_layouts_that_can_be_read(tmp_path):
    expected = predictions(11)
    path = write(tmp_path / "mine.tar.gz", expected, **METADATA, shards=11)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "mine" / "._part0").write_bytes(b"what macOS leaves")
    assert_same(read(tmp_path / "mine"), expected)  # part10 after part9
    assert list(read(tmp_path / "mine" / "part3").predictions) == [list(expected)[3]]
    plain = tmp_path / "mine.tar"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    assert_same(read(plain), expected)


def test_the_same_predictions_give_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [write(tmp_path / it / "mine.tar.gz", predictions(), **METADATA) for it in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_wire_format_is_that_of_the_challenge(tmp_path):
    path = write(tmp_path / "mine.tar.gz", {"s-001": np.full((20, 2), 0.5)}, **METADATA)
    with tarfile.open(path) as archive:
        part = archive.extractfile("mine/part0").read()
    trajectory = b"".join(
        bytes([tag, 80]) + np.full(20, 0.5, "<f4").tobytes() for tag in (0x0A, 0x12)
    )
    row = b"\x0a\x05s-001" + b"\x12\xa4\x01" + trajectory
    assert part.startswith(b"\x0a" + bytes([len(row) % 128 + 128, len(row) // 128]) + row)
    rest = part[len(row) + 3 :]
    assert rest.startswith(b"\x10\x01" + b"\x1a\x13someone@example.org" + b"\x22\x0estraight ahead")
    assert b"\x2a\x03Ada\x2a\x05Grace" in rest
    assert rest.endswith(b"\x58\x00" + b"\x62\x0312K")


def bad(name, points):
    return predictions() | {name: points}


@pytest.mark.parametrize(
    ("given_", "changes", "message"),
    [
        ({}, {}, "no predictions"),
        (bad("x-001", np.zeros((19, 2))), {}, r"x-001: a trajectory of shape \(19, 2\)"),
        (bad("x-001", np.full((20, 2), np.nan)), {}, "x-001: the trajectory holds nan"),
        (bad("x-001", np.full((20, 2), 1e39)), {}, "nan or inf"),
        (bad("x-001", "far"), {}, "x-001: no numbers"),
        (predictions(), {"account_name": ""}, "requires account_name"),
        (
            predictions(),
            {"unique_method_name": None, "num_model_parameters": "",
             "uses_public_model_pretraining": None},
            "unique_method_name, uses_public_model_pretraining, num_model_parameters",
        ),
        (predictions(), {"account_name": "someone"}, "email address"),
        (predictions(), {"uses_public_model_pretraining": "no"}, "true or false"),
        (predictions(), {"num_model_parameters": "7.5B"}, "whole number with the suffix"),
        (predictions(), {"num_model_parameters": 7}, "a text"),
        (predictions(), {"authors": "Ada"}, "a list of texts"),
        (predictions(), {"shards": 0}, "0 shards"),
        (predictions(), {"shards": 6}, "6 shards of 5"),
        (predictions(), {"frames": ["x-001", *predictions()]}, r"1 have no prediction \(x-001\)"),
        (predictions(), {"frames": list(predictions())[:1]}, "4 predictions are for other frames"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, given_, changes, message):
    with pytest.raises(DatasetError, match=message):
        write(tmp_path / "mine.tar.gz", given_, **(METADATA | changes))
    assert not list(tmp_path.iterdir())


def test_another_name_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"is a \.tar\.gz"):
        write(tmp_path / "mine.zip", predictions(), **METADATA)


def archive_of(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, payload in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))
    return path


def parts_of(tmp_path, predictions, **options):
    path = write(tmp_path / "source.tar.gz", predictions, **METADATA, **options)
    with tarfile.open(path) as archive:
        return [archive.extractfile(it).read() for it in archive.getmembers()]


def test_paths_in_an_archive_lead_nowhere(tmp_path):
    (part,) = parts_of(tmp_path, predictions())
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("../../outside")
        entry.size = len(part)
        archive.addfile(entry, io.BytesIO(part))
        link = tarfile.TarInfo("part1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    assert_same(read(path), predictions())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(65):
            file.write(bytes(1 << 20))
    with pytest.raises(DatasetError, match="larger than"):
        read(path)


def test_a_file_that_says_it_is_huge_is_refused(tmp_path):
    entry = tarfile.TarInfo("part0")
    entry.size = 1 << 40
    path = tmp_path / "huge.tar"
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(DatasetError, match=r"says that it is|damaged archive"):
        read(path)


def test_bad_rows_are_told_and_left_out(tmp_path):
    messages = pytest.importorskip("fastloop.datasets.waymo.protos").messages
    part = messages("waymo.open_dataset.E2EDChallengeSubmission")()
    good = [0.5] * 20
    for name, x, y in (
        ("a-001", good, good), ("b-001", good[:19], good[:19]), ("c-001", good, good[:3]),
        ("d-001", good, [np.nan] * 20), ("e-001", good, good), ("e-001", good, good),
        ("", good, good), ("e-001", good, good), ("f-001", good, good),
    ):  # fmt: skip
        row = part.predictions.add(frame_name=name)
        row.trajectory.pos_x.extend(x)
        row.trajectory.pos_y.extend(y)
    path = tmp_path / "part0"
    path.write_bytes(part.SerializeToString())
    faults = []
    submission = read(path, on_fault=faults.append)
    assert list(submission.predictions) == ["a-001", "f-001"]
    told = "\n".join(map(str, faults))
    assert len(faults) == 6
    for words in ("b-001: a trajectory of shape (19, 2)", "c-001: not as many", "d-001: the traj",
                  "e-001 is predicted twice", "prediction 6 has no frame name"):  # fmt: skip
        assert words in told
    with pytest.raises(DatasetError, match="b-001"):
        read(path)


def test_parts_that_disagree_are_told(tmp_path):
    first = parts_of(tmp_path, {"a-001": np.zeros((20, 2))})
    write(tmp_path / "other.tar.gz", {"b-001": np.zeros((20, 2))},
          **(METADATA | {"unique_method_name": "another"}))  # fmt: skip
    with tarfile.open(tmp_path / "other.tar.gz") as archive:
        second = archive.extractfile("other/part0").read()
    path = archive_of(tmp_path / "both.tar.gz", [("part0", first[0]), ("part1", second)])
    faults = []
    assert list(read(path, on_fault=faults.append).predictions) == ["a-001", "b-001"]
    assert "metadata differ" in str(faults)


def test_nothing_to_read(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    archive_of(tmp_path / "no.tar.gz", [])
    for name, message in (("folder", "no part"), ("empty", "empty"), ("none", "does not exist"),
                          ("no.tar.gz", "no prediction")):  # fmt: skip
        with pytest.raises(DatasetError, match=message):
            read(tmp_path / name)


def test_the_frames_of_the_challenge(tmp_path):
    names = ["0ccbcc47f5d0920f6918be5b7148e05c-161", "c086330168a335e2702e9bec118cb3a2-008"]
    index = tmp_path / "test_sequence_frames_for_submission.json"
    index.write_text(json.dumps({name[:-4]: int(name[-3:]) for name in names}))
    assert read_frames(index) == names
    for text in ("\n".join(names) + "\n", str(names), json.dumps(names)):
        listed = tmp_path / "test_sequence_frames_for_submission_as_list.txt"
        listed.write_text(text)
        assert read_frames(listed) == names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "lists no frames"),
        ("a.json", "3", "lists no frames"),
        ("a.json", "{}", "lists no frames"),
        ("a.json", '{"s": "7"}', "lists no frames"),
        ("a.json", '{"s": 7, "s": 7}', "s-007 twice"),
        ("a.json", "[" * 100_000, "lists no frames"),
        ("a.txt", "", "lists no frames"),
        ("a.txt", "s-001\nhello\n", "'hello' is no frame name"),
        ("a.txt", "s-001\ns-001\n", "s-001 twice"),
    ],
)
def test_a_damaged_list_of_frames(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_frames(tmp_path / name)
    with pytest.raises(DatasetError, match="lists no frames"):
        read_frames(tmp_path / "none.txt")


@given(data=st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_told(tmp_path, data):
    whole = write(tmp_path / "whole.tar.gz", predictions(2), **METADATA, shards=2).read_bytes()
    if data.draw(st.booleans()):
        whole = gzip.decompress(whole)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        new = data.draw(st.binary(max_size=4))
        damaged[at : at + data.draw(st.integers(0, 8))] = new
    path = tmp_path / "damaged"
    path.write_bytes(data.draw(st.sampled_from([bytes(damaged), bytes(damaged[: len(new) * 99])])))
    try:
        submission = read(path, on_fault=lambda fault: None)
    except DatasetError:
        return
    for points in submission.predictions.values():
        assert points.shape == (20, 2)
        assert np.isfinite(points).all()
