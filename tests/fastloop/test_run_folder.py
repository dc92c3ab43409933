"""Where a run leaves what it made."""

import json
from dataclasses import replace

import pytest

from fastloop.config import EvalConfig
from fastloop.run_folder import (
    claim,
    config_digest,
    config_yaml,
    make_run_dir,
    provenance,
    write_result,
)


def test_runs_of_the_same_second_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [make_run_dir("eval", None) for _ in range(5)]
    assert len(set(folders)) == 5
    assert all(str(folder.parent) == "runs/eval" and folder.is_dir() for folder in folders)


def test_a_named_folder_is_used_again(tmp_path):
    folder = make_run_dir("eval", str(tmp_path / "a/b"))
    (folder / "kept").touch()
    assert make_run_dir("eval", str(tmp_path / "a/b")) == folder
    assert (folder / "kept").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_run_dir("eval", str(tmp_path / "file"))


def test_the_digest_is_of_what_decides():
    config = EvalConfig()
    same = replace(config, num_envs=3, run_dir="elsewhere")
    other = replace(config, seed=1)
    neutral = ("num_envs", "run_dir")
    assert config_digest(config, without=neutral) == config_digest(same, without=neutral)
    assert config_digest(config) != config_digest(same)
    assert config_digest(config, without=neutral) != config_digest(other, without=neutral)


def test_a_result_has_every_field_that_scripts_read(tmp_path):
    path = write_result(
        tmp_path, "eval", EvalConfig(), {"speedup": {"value": 3.5, "n": 20}}, checkpoint="mine"
    )
    found = json.loads(path.read_text())
    assert set(found) == {"schema", "verb", "config", "provenance", "metrics", "coverage"}
    assert found["metrics"]["speedup"] == {
        "value": 3.5, "unit": "", "n": 20, "low": None, "high": None,
    }  # fmt: skip
    assert found["provenance"]["checkpoint"] == "mine"
    assert {"python", "cores", "version/torch", "revision"} <= set(found["provenance"])
    assert found["coverage"] == {"value": 1.0, "complete": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_the_configuration_is_readable(tmp_path):
    assert "episodes: 100" in config_yaml(replace(EvalConfig(), episodes=100))
    assert next(iter(provenance(first=1))) == "first"


def test_a_folder_belongs_to_who_made_something_in_it(tmp_path):
    folder = tmp_path / "parts"
    claim(folder, "one", "it is another's")
    claim(folder, "two", "it is another's")  # nothing was made
    (folder / "part").touch()
    claim(folder, "two", "it is another's")
    for mark in ("one", None):
        (folder / "digest").write_text(mark) if mark else (folder / "digest").unlink()
        with pytest.raises(ValueError, match="another's"):
            claim(folder, "two", "it is another's")
