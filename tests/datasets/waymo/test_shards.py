import json
import os

import pytest

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.waymo import shards


@pytest.fixture
def folder(wod, tmp_path):
    """Two shards that hold the frames of two drives in no order."""
    root = tmp_path / "data"
    root.mkdir()
    picture = [(1, bytes(5000))]
    wod.write(
        root / "val.tfrecord-00000-of-00002",
        wod.message("a-020", images=picture),
        wod.message("b-003", ratings=[(-1, 0.0)] * 3),
        wod.message("a-001", ratings=(), future=False),
    )
    wod.write(root / "val.tfrecord-00001-of-00002", wod.message("a-010", points=11))
    return root


def test_a_drive_is_in_order_although_its_shards_are_not(folder):
    index = shards.index(folder)
    assert list(index.places) == ["a-020", "b-003", "a-001", "a-010"]
    assert [place.index for place in index.sequences["a"]] == [1, 10, 20]
    assert [place.read().name for place in index.sequences["a"]] == ["a-001", "a-010", "a-020"]


def test_what_is_known_without_reading(folder):
    places = shards.index(folder).places
    assert [places[name].raters for name in ("a-020", "b-003", "a-001", "a-010")] == [3, 0, 0, 3]
    assert [places[name].short for name in ("a-020", "a-010")] == [0, 3]
    assert [places[name].logged for name in ("a-020", "a-001")] == [True, False]


def test_one_file_is_a_folder_of_one(folder):
    assert list(shards.index(folder / "val.tfrecord-00001-of-00002").places) == ["a-010"]


def test_shards_that_are_not_there(folder, tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        shards.index(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no file 'test\*'; it holds val.tfrecord-00000"):
        shards.index(folder, "test*")


def test_a_shard_that_is_still_being_copied_is_not_read(folder):
    (folder / "val.tfrecord-00002-of-00002.partial").write_bytes(b"half")
    assert len(shards.index(folder).places) == 4


def test_progress_is_told(folder):
    told = []
    shards.index(folder, progress=lambda *count: told.append(count))
    assert told == [(1, 2), (2, 2)]


def test_a_name_that_occurs_twice_is_a_fault_and_the_first_is_kept(wod, folder):
    wod.write(folder / "val.tfrecord-00002-of-00002", wod.message("a-010"))
    with pytest.raises(DatasetError, match="00002-of-00002 at byte 0: frame a-010 is already in"):
        shards.index(folder)
    faults = []
    index = shards.index(folder, on_fault=faults.append)
    assert len(faults) == 1
    assert index.places["a-010"].shard.name == "val.tfrecord-00001-of-00002"
    assert len(index.sequences["a"]) == 3


def test_damage_is_told_and_the_rest_is_found(wod, folder):
    shard = folder / "val.tfrecord-00001-of-00002"
    bad = wod.message("c-001")
    del bad.past_states.vel_x[:]
    wod.write(shard, wod.message("a-010"), bad, wod.message("c-002"))
    shard.write_bytes(shard.read_bytes()[:-1])
    faults = []
    index = shards.index(folder, on_fault=faults.append)
    assert list(index.places) == ["a-020", "b-003", "a-001", "a-010"]
    assert ["(c-001)" in str(faults[0]), "cut off" in str(faults[1])] == [True, True]


class TestCache:
    def test_it_says_the_same(self, folder, tmp_path):
        cache = tmp_path / "cache" / "frames"
        made = shards.index(folder, cache=cache)
        assert len(list(cache.iterdir())) == 2
        again = shards.index(folder, cache=cache)
        assert again.places == made.places == shards.index(folder).places

    def test_it_spares_looking(self, folder, tmp_path, monkeypatch):
        made = shards.index(folder, cache=tmp_path / "cache")
        monkeypatch.setattr(shards, "_look", None)
        assert shards.index(folder, cache=tmp_path / "cache").places == made.places

    def test_faults_are_told_again(self, wod, folder, tmp_path):
        shard = folder / "val.tfrecord-00001-of-00002"
        shard.write_bytes(shard.read_bytes()[:-1])
        told = []
        for _ in range(2):
            faults = []
            shards.index(folder, cache=tmp_path / "cache", on_fault=faults.append)
            told.append([str(fault) for fault in faults])
        assert told[0] == told[1]
        assert len(told[0]) == 1

    def test_only_a_shard_that_changed_is_looked_at_again(self, wod, folder, tmp_path, monkeypatch):
        shards.index(folder, cache=tmp_path / "cache")
        changed = wod.write(folder / "val.tfrecord-00001-of-00002", wod.message("z-001"))
        looked = []
        look = shards._look
        monkeypatch.setattr(shards, "_look", lambda shard: looked.append(shard) or look(shard))
        assert "z-001" in shards.index(folder, cache=tmp_path / "cache").places
        assert looked == [changed]

    def test_a_file_of_another_time_is_looked_at_again(self, folder, tmp_path, monkeypatch):
        shards.index(folder, cache=tmp_path / "cache")
        shard = folder / "val.tfrecord-00001-of-00002"
        os.utime(shard, ns=(0, 1))
        monkeypatch.setattr(shards, "_look", lambda shard: ([], ["looked"]))
        with pytest.raises(DatasetError, match="looked"):
            shards.index(folder, cache=tmp_path / "cache")

    @pytest.mark.parametrize(
        "content",
        ["", "[]", "{", "null", '{"stamp": 1}', "[" * 100_000, "rows", "types"],
    )
    def test_a_damaged_one_is_made_anew(self, folder, tmp_path, content):
        made = shards.index(folder, cache=tmp_path / "cache")
        path = tmp_path / "cache" / "val.tfrecord-00000-of-00002.frames.json"
        known = json.loads(path.read_text())
        if content == "rows":
            known["frames"][0].pop()
            content = json.dumps(known)
        elif content == "types":
            known["frames"][0][0] = "0"
            content = json.dumps(known)
        path.write_text(content)
        assert shards.index(folder, cache=tmp_path / "cache").places == made.places
        assert shards.index(folder, cache=tmp_path / "cache").places == made.places

    def test_one_that_cannot_be_kept_is_told(self, folder, tmp_path):
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(DatasetError, match="cache= names a folder that can be written"):
            shards.index(folder, cache=tmp_path / "cache")


def test_a_file_that_was_replaced_since_is_a_fault(wod, folder):
    index = shards.index(folder)
    wod.write(folder / "val.tfrecord-00001-of-00002", wod.message("a-longer-name-010"))
    with pytest.raises(DatasetError, match="changed since it was indexed"):
        index.places["a-010"].read()


def test_real_shards(realdata):
    index = shards.index(realdata / "wod_e2e_rebuilt")
    assert len(index.places) == 23
    assert sum(place.raters > 0 for place in index.places.values()) == 21
    drive = index.sequences["dd0c8c27fdd6ef59"]
    assert [place.index for place in drive] == list(range(40, 137, 12))
