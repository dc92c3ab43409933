"""`make demo-vehicle`: a stranger gets a film and a report, or a sentence that says why not."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("zenoh", reason="the wire is zenoh's (extra ros)")
pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")
pytest.importorskip("mcap", reason="bags are written by mcap (extra ros)")

from fastloop import vehicle_demo
from fastloop.deploy.bags.reading import read_bag


def test_it_leaves_a_film_with_pictures_and_plans(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert vehicle_demo.main(seconds=3.0) == 0
    (folder,) = (tmp_path / "runs" / "demo-vehicle").iterdir()
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["ticks"]["value"] == 31
    assert metrics["rung_0"]["value"] >= 1  # nearly all where the machine is not busy
    film = {sample.topic for sample in read_bag(folder / "run.mcap")}
    assert {"/camera/front/compressed", "/odometry", "/planning/path", "/diagnostics"} <= film
    layout = (folder / "foxglove.json").read_text()
    assert "/camera/front/compressed" in layout
    told = capfd.readouterr().out
    assert "a generated drive, 4 s, in" in told
    assert "for 3 s, beginning with the first /odometry; Ctrl-C ends it" in told


def test_a_replay_that_fails_ends_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    popen = subprocess.Popen

    def broken(command, *args, **named):
        if "fastloop.deploy.bags.replaying" in command:
            command = [sys.executable, "-c", "raise SystemExit(3)"]
        return popen(command, *args, **named)

    monkeypatch.setattr(vehicle_demo.subprocess, "Popen", broken)
    assert vehicle_demo.main(seconds=3.0) == 3
    assert "what replays the drive has failed with code 3" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "demo-vehicle: nowhere does not exist"),
        (["a", "b"], "demo-vehicle: one drive at most, got a, b"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, words, told):
    command = [sys.executable, "-m", "fastloop.vehicle_demo", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr.strip()) == (2, told)
