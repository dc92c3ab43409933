"""`fastloop bench server`, for a second or two; how fast it is is not asked."""

import json

import pytest

from fastloop import cli
from fastloop.bench.server.clients import Asked, example
from fastloop.bench.server.config import ServerBenchConfig
from fastloop.bench.server.run import run
from fastloop.bench.server.served import serving
from fastloop.config import PolicyConfig

pytest.importorskip("websockets", reason="the server speaks websockets (extra serve)")


def test_clients_are_answered_beside_bad_ones(tmp_path, capsys):
    argv = ["bench", "server", "clients=3", "hz=4", "seconds=3", "plan_ms=1"]
    assert cli.main([*argv, f"run_dir={tmp_path}"]) in (0, 1)  # 1 on a computer that is too busy
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    for name in ("alone", "beside_bad_clients"):
        assert metrics[f"drops/{name}"]["n"] >= 3 * 4 * 2
        assert metrics[f"latency_p50/{name}"]["n"] > 0
    out = capsys.readouterr().out
    assert "policy server" in out
    assert "error:" not in out


def test_a_drop_is_a_tick_without_an_answer_in_time():
    assert Asked(ticks=10, answered=7, late=1).drops == 3


def test_the_example_is_what_the_server_asks_for():
    inputs = {"a": {"shape": [2, 3], "dtype": "uint8"}}
    found = example({"fastloop": {"inputs": inputs}})
    assert (found["a"].shape, found["a"].dtype) == ((2, 3), "uint8")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"clients": 0}, "clients must be at least 1"),
        ({"garbage": -1}, "garbage 0 or more"),
        ({"hz": 0.0}, "hz must be above 0"),
        ({"seconds": 1.0}, "seconds above 1"),
        ({"plan_ms": -1.0}, "plan_ms must be 0"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        run(ServerBenchConfig(**settings))


def test_a_server_that_does_not_start_says_why():
    config = ServerBenchConfig(policy=PolicyConfig(checkpoint="nowhere"))
    with pytest.raises(RuntimeError, match="no checkpoint at nowhere"), serving(config):
        pass
