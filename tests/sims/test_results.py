"""The episode log outlives kills, full disks and mixed configurations."""

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.sims.results import EpisodeLog, EpisodeRecord, JsonLines, LogWriteError


def record(seed, outcome="success"):
    return EpisodeRecord("t", seed, outcome, steps=3, total_reward=0.1 + 0.2, max_reward=-1.5)


@given(cut=st.integers(0, 10_000))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "episodes.jsonl"
    log = EpisodeLog(path, "d")
    for seed in range(4):
        log.append(record(seed))
    log.close()
    whole = path.read_bytes()
    cut = cut % (len(whole) + 1)
    path.write_bytes(whole[:cut])

    log = EpisodeLog(path, "d")
    assert list(log.records) == [
        ("t", seed) for seed in range(max(0, whole[:cut].count(b"\n") - 1))
    ]
    for seed in range(len(log.records), 4):
        log.append(record(seed))
    log.close()
    assert path.read_bytes() == whole


def test_another_configuration_is_refused_with_both_digests(tmp_path):
    EpisodeLog(tmp_path / "e.jsonl", "aaa").close()
    with pytest.raises(ValueError, match=r"aaa.*bbb"):
        EpisodeLog(tmp_path / "e.jsonl", "bbb")
    EpisodeLog(tmp_path / "e.jsonl", "aaa").close()  # the refusal left the file free


def test_a_second_writer_is_refused(tmp_path):
    log = EpisodeLog(tmp_path / "e.jsonl", "d")
    with pytest.raises(ValueError, match="another process"):
        EpisodeLog(tmp_path / "e.jsonl", "d")
    log.close()


@pytest.mark.parametrize("damage", ["{not json", "[1, 2]", '{"task": "t"}', '{"__class__": "os"}'])
def test_damage_in_the_middle_names_its_line(tmp_path, damage):
    path = tmp_path / "e.jsonl"
    log = EpisodeLog(path, "d")
    log.append(record(1))
    log.append(record(2))
    log.close()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, lines[2]]) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        EpisodeLog(path, "d")


@pytest.mark.parametrize("written", [0, 10])
def test_a_full_disk_loses_no_earlier_line(tmp_path, monkeypatch, written):
    path = tmp_path / "e.jsonl"
    log = EpisodeLog(path, "d")
    log.append(record(1))
    before = path.read_bytes()
    write = JsonLines._write

    def full(self, data):
        if len(data) > 100 and written:
            return write(self, data[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonLines, "_write", full)
    with pytest.raises(LogWriteError, match=r"No space left on device.*same command"):
        log.append(record(2))
    assert path.read_bytes() == before
    monkeypatch.undo()
    log.append(record(2))
    log.close()
    assert list(EpisodeLog(path, "d").records) == [("t", 1), ("t", 2)]


def test_sorting_replaces_the_file_at_once(tmp_path, monkeypatch):
    path = tmp_path / "e.jsonl"
    log = EpisodeLog(path, "d")
    for seed in (3, 1, 2, 9):
        log.append(record(seed))
    log.sort([("t", seed) for seed in (1, 2, 3)])
    seeds = [json.loads(line).get("seed") for line in path.read_text().splitlines()]
    assert seeds == [None, 1, 2, 3, 9]
    assert [p.name for p in tmp_path.iterdir()] == ["e.jsonl"]


def test_unknown_outcome_lists_the_choices():
    with pytest.raises(ValueError, match=r"success.*failure.*timeout.*error"):
        record(1, "won")
