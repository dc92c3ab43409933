"""What is refused before anything runs: numbers that cannot be, and things that do not fit."""

from types import SimpleNamespace

import pytest

from fastloop import cli
from fastloop.config.ranges import at_least


def test_the_first_that_is_too_small_is_named():
    config = SimpleNamespace(rows=1, train=SimpleNamespace(steps=0))
    at_least(config, 1, "rows")
    at_least(config, 0, "rows", "train.steps")
    with pytest.raises(ValueError, match=r"train.steps must be at least 1, got 0"):
        at_least(config, 1, "rows", "train.steps")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval", "first_seed=-5"], "first_seed must be at least 0, got -5"),
        (["eval", "seed=-1"], "seed must be at least 0, got -1"),
        (["eval", "episodes=0"], "episodes must be at least 1, got 0"),
        (["eval", "timed_plans=-4"], "timed_plans must be at least 0, got -4"),
        (["eval", "calibration_observations=0"], "calibration_observations must be at least 1"),
        (["eval", "video_count=-2"], "video_count must be at least 0"),
        (["eval", "margin=5"], "margin is a fraction between 0 and 1 (0.05 = 5 points), got 5"),
        (["eval", "step_timeout_s=-1"], "step_timeout_s must be above 0, got 120 and -1"),
        (["eval", "sim=toy", "sim.max_steps=-3"], "control_hz and max_steps must be positive"),
        (["eval", "sim=toy_road", "sim.plan_hz=0"], "waypoints at a rate, got 20 at 0 Hz"),
        (["eval", "sim=gymnasium", "sim.id=Foo-v0"], "gymnasium cannot make 'Foo-v0'"),
        (["calibrate", "observations=0"], "observations must be at least 1, got 0"),
        (["calibrate", "first_seed=-1"], "first_seed must be at least 0, got -1"),
        (["record", "out=x", "first_seed=-5"], "first_seed must be at least 0, got -5"),
        (["record", "out=x", "disturb=3"], "disturb is a probability, 0 to 1, got 3"),
        (["record", "out=x", "noise=-1"], "noise must be at least 0, got -1"),
        (["train", "dataset.path=x", "train.steps=0"], "train.steps must be at least 1, got 0"),
        (["train", "dataset.path=x", "network.horizon=0"], "network.horizon must be at least 1"),
        (["run", "deploy.hz=0"], "must be above 0, got 0 and 4"),
        (["run", "deploy.plan_hz=0"], "must be above 0, got 10 and 0"),
        (["eval", "policy=dp_lift"], "dp_lift was trained in robosuite Lift: say sim="),
        (["serve", "policy=idm"], "or sim= on the command line"),
        (["serve", "api_key_file=nope"], "fastloop serve: api_key_file=nope: No such file"),
        (["bench", "decode", "policy.decoding.driver=ar"], "say arms.NAME.driver=..."),
    ],
)
def test_what_cannot_be_is_refused_at_once(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert told in " ".join(capsys.readouterr().err.split())
