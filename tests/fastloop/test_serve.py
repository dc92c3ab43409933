"""`fastloop serve`, and the policy that is served as one of ours."""

import json
import os
import signal
import socket
import threading
import time

import pytest
import torch

from fastloop import cli
from fastloop.config import PolicyConfig, SamplerOverrides, ServeConfig
from fastloop.deploy.server.client import RemoteError
from fastloop.policies.prepare import example_history
from fastloop.policies.rng import Rng
from fastloop.setup import load
from fastloop.verbs.serve import make_server

pytest.importorskip("websockets", reason="the server speaks websockets (extra serve)")
QUICK = SamplerOverrides(kind="ddim", num_inference_steps=2)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_served_policy_plans_what_it_plans_here_until_sigterm(tmp_path, port, capsys):
    found = {}

    def ask():
        remote = PolicyConfig(checkpoint=f"ws://127.0.0.1:{port}")
        try:
            for _ in range(600):
                try:
                    policy = load(remote, None, SamplerOverrides())
                    break
                except RemoteError:
                    time.sleep(0.1)
            history, rng = example_history(policy.spec), Rng.for_envs(3, [4], [0])
            found["remote"] = policy.plan(history, rng=rng).actions
            found["spec"] = policy.spec
            policy.close()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    argv = ["serve", f"port={port}", "policy.sampler.kind=ddim", f"run_dir={tmp_path}"]
    argv += ["policy.sampler.num_inference_steps=2", "policy.threads=1", "max_batch=1"]
    assert cli.main(argv) == 0
    asking.join()
    local = load(PolicyConfig(checkpoint="dp_pusht"), None, QUICK)
    assert found["spec"] == local.spec
    history, rng = example_history(local.spec), Rng.for_envs(3, [4], [0])
    assert torch.equal(found["remote"], local.plan(history, rng=rng).actions)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["answers"]["value"] == 1
    assert f"serving dp_pusht at ws://127.0.0.1:{port}" in capsys.readouterr().out


def test_a_key_is_read_from_its_file(tmp_path):
    (tmp_path / "key").write_text("secret\n")
    policy = PolicyConfig(checkpoint="dp_pusht", sampler=QUICK, threads=1)
    server = make_server(ServeConfig(policy=policy, api_key_file=str(tmp_path / "key")))
    assert server.config.api_key == "secret"
    assert "secret" not in repr(server.config)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["max_clients=0"], "max_clients must be at least 1"),
        (["stall_s=0"], "stall_s must be above 0"),
        (["+names={observation.stat: x}"], "the policy does not read"),
        (["accel=bac"], "observations"),
        (["policy.checkpoint=stand_still"], "sampler"),
        (["api_key_file=nowhere"], "nowhere"),
        (["api_key_file=blank", "host=0.0.0.0"], "blank holds no key"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path, settings, told, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank").write_text(" \n")
    argv = ["serve", "policy.threads=1", f"run_dir={tmp_path}", "policy.sampler.kind=ddim"]
    assert cli.main([*argv, "policy.sampler.num_inference_steps=2", *settings]) == 2
    assert told in capsys.readouterr().err


def test_an_address_without_a_server_is_named(tmp_path, capsys):
    argv = ["serve", "policy=openpi", "policy.checkpoint=ws://127.0.0.1:9", f"run_dir={tmp_path}"]
    assert cli.main(argv) == 2
    assert "ws://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
