"""`fastloop run`: a node over a recorded drive, from the command line."""

import json

import pytest

from fastloop.cli import main

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")
pytest.importorskip("mcap", reason="bags are written by mcap (extra ros)")


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """A generated drive of six seconds."""
    from fastloop.deploy.bags.from_drive import bag_of_drive
    from fastloop.deploy.messages import Messages

    path = tmp_path_factory.mktemp("bag") / "drive.mcap"
    bag_of_drive(path, Messages(), seconds=6.0)
    return path


def run(*words):
    return main(["run", "deploy=replay", "deploy.recorder_s=0", *map(str, words)])


@pytest.mark.parametrize("policy", ["constant_velocity", "constant_turn_rate", "stand_still"])
def test_a_drive_is_replayed_in_virtual_time(bag, tmp_path, policy):
    out = tmp_path / "run"
    words = (f"bag={bag}", f"policy={policy}", "film=true", "deploy.replay.latency_ms=10")
    assert run(*words, f"run_dir={out}") == 0
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    assert metrics["ticks"]["value"] >= 50
    if policy != "stand_still":  # whose plans begin at another speed
        assert metrics["rung_0"]["value"] >= 45
    from fastloop.deploy.bags.reading import read_bag

    film = list(read_bag(out / "run.mcap"))
    plans = [one for one in film if one.topic == "/planning/trajectory"]
    assert len(plans) == metrics["ticks"]["value"]
    assert {"/odometry", "/planning/path", "/diagnostics"} <= {one.topic for one in film}


@pytest.mark.parametrize("said", ["deploy.replay.latency_ms=300", "params={}/params.yaml"])
def test_a_slow_policy_falls_to_lower_rungs_and_says_so(bag, tmp_path, said):
    told = "/**: {ros__parameters: {replay: {latency_ms: 300}}}"
    (tmp_path / "params.yaml").write_text(told)
    words = (f"bag={bag}", "deploy.replay.latency_ms=10", said.format(tmp_path))
    assert run(*words, f"run_dir={tmp_path}") == 0
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["rung_1"]["value"] > 0
    assert metrics["count_ran_into_the_next_tick"]["value"] > 0


def test_the_rate_of_a_parameter_file_is_that_of_a_duration(bag, tmp_path):
    (tmp_path / "params.yaml").write_text("/**: {ros__parameters: {hz: 20, deadline_ms: 40}}")
    words = (f"bag={bag}", "duration_s=1", f"params={tmp_path}/params.yaml")
    assert run(*words, f"run_dir={tmp_path}") == 0
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["ticks"]["value"] == 21


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bag=none.mcap"], "none.mcap"),
        (["deploy.state.topic=/nowhere"], "no message on /nowhere"),
        (["deploy.body=boat"], "have: vehicle, arm"),
        (["+deploy.variants.quick.speed=2"], "variants say checkpoint"),
        (["params=none.yaml"], "none.yaml"),
        (["duration_s=-1"], "positive seconds"),
        (["deploy.replay.pace=slow"], "have: virtual, real"),
        (["+deploy.zenoh.conect=1", "deploy=vehicle"], "unknown zenoh settings"),
    ],
)
def test_mistakes_are_said_in_words(bag, tmp_path, capsys, words, told):
    given = (
        []
        if any(word.startswith("bag=") or word == "deploy=vehicle" for word in words)
        else [f"bag={bag}"]
    )
    rest = [word for word in words if word != "deploy=vehicle"]
    group = "deploy=vehicle" if "deploy=vehicle" in words else "deploy=replay"
    assert main(["run", group, *given, *rest, f"run_dir={tmp_path}"]) == 2
    assert told in capsys.readouterr().err


def test_a_drive_of_which_nothing_can_be_used_says_why(bag, tmp_path, capsys):
    words = (f"bag={bag}", "policy=constant_velocity", "deploy.frame=map", f"run_dir={tmp_path}")
    assert run(*words) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "nothing was planned: no message on" in told
    assert "say deploy.frame=odom" in told


def test_a_policy_that_cannot_be_loaded_is_exit_code_1(bag, tmp_path, capsys):
    assert run(f"bag={bag}", "policy.checkpoint=nobody", f"run_dir={tmp_path}") == 1
    assert "no policy of that name" in capsys.readouterr().out
