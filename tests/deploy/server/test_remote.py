"""A policy that lives in a server plans what it would plan here."""

import threading
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve as serve_sync

from fastloop.deploy.server.client import Client, RemoteError
from fastloop.deploy.server.codec import pack, unpack
from fastloop.deploy.server.remote import RemotePolicy
from fastloop.policies.base import Budget
from fastloop.policies.prepare import example_history
from fastloop.policies.rng import Rng
from fastloop.policies.session import Session
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec, check_specs

STATE, TOP = "observation.state", "observation.images.top"


def env():
    shown = {STATE: TensorSpec((2,), low=-1, high=1), TOP: TensorSpec((3, 4, 5), "uint8", 0, 255)}
    action = ActionSpec(3, "absolute_position", (-9.0,) * 3, (9.0,) * 3)
    return EnvSpec("somewhere", shown, action, 10.0, 100)


@contextmanager
def openpi(infer, metadata=None):
    """A server as openpi's is: it answers `infer(observation)`; what it was sent is kept."""
    seen = []

    def handle(connection):
        connection.send(pack(metadata or {}))
        for data in connection:
            seen.append(unpack(data))
            told = infer(seen[-1])
            if told is None:
                connection.close()
                return
            with suppress(ConnectionClosed):  # nobody waits for it any more
                connection.send(told if isinstance(told, str | bytes) else pack(told))

    with serve_sync(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", seen
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("lags", [(1, 0), (5, 0)])
def test_a_served_policy_drives_as_it_would_here(serve, echo, lags):
    local, random = echo(images=True, lags=lags), torch.Generator().manual_seed(0)
    with serve(echo(images=True, lags=lags)) as (url, _):
        remote = RemotePolicy(url)
        assert remote.spec == local.spec
        sessions = [Session(policy, num_envs=3, seed=5) for policy in (local, remote)]
        for _ in range(8):
            batch = {
                STATE: torch.randn(3, 2, generator=random),
                TOP: torch.randint(256, (3, 3, 4, 5), generator=random, dtype=torch.uint8),
            }
            here, there = (session.select_action(batch) for session in sessions)
            assert torch.equal(here, there)
        remote.close()


def test_environments_ask_over_connections_of_their_own(serve, echo, monkeypatch):
    asked, infer = [], Client.infer

    def noted(client, message, **options):
        asked.append(client)
        return infer(client, message, **options)

    monkeypatch.setattr(Client, "infer", noted)
    with serve(echo()) as (url, _):
        remote = RemotePolicy(url)
        history = example_history(remote.spec, 3)
        remote.plan(history, rng=Rng.for_envs(0, [0, 1, 2], [0] * 3))
        remote.close()
    assert len({id(client) for client in asked}) == 3


def test_fewer_actions_are_executed_where_that_is_asked_for(serve, echo):
    with serve(echo(images=True)) as (url, _):
        remote = RemotePolicy(url, n_action_steps=2)
        check_specs(remote.spec, env())
        assert remote.spec.n_action_steps == 2
        remote.close()


def test_an_openpi_server_drives(echo):
    with openpi(lambda observation: {"actions": np.full((4, 3), observation["state"][0])}) as (
        url,
        seen,
    ):
        names = {STATE: "state", TOP: "observation/image"}
        remote = RemotePolicy(url, env=env(), names=names, constants={"prompt": "go"})
        check_specs(remote.spec, env())
        assert (remote.spec.horizon, remote.spec.n_action_steps) == (4, 4)
        session = Session(remote)
        action = session.select_action(
            {STATE: torch.ones(1, 2), TOP: torch.zeros(1, 3, 4, 5, dtype=torch.uint8)}
        )
        assert action.tolist() == [[1, 1, 1]]
        assert set(seen[-1]) == {"state", "observation/image", "prompt"}
        assert seen[-1]["observation/image"].shape == (4, 5, 3)
        remote.close()


def test_an_openpi_server_needs_to_know_what_it_drives():
    with openpi(lambda observation: {}) as (url, _):
        with pytest.raises(ValueError, match="say what it will drive"):
            RemotePolicy(url)
        with pytest.raises(ValueError, match=r"does not show .*joints"):
            RemotePolicy(url, env=env(), names={"joints": "state"})


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"actions": np.zeros((5, 3))}, r"planned \(5, 3\), expected \(4, 3\)"),
        ({"actions": np.full((4, 3), np.nan)}, "not finite"),
        ({"action": 1}, r"without actions \(T, A\)"),
        ("Traceback: out of memory", "answered with an error:\nTraceback: out of memory"),
        (b"\xc1", "no msgpack"),
        (b"\x01", "answered with a int"),
        (None, "broke off"),
    ],
)
def test_what_is_no_plan_is_an_error_and_the_next_plan_is_right(told, reason):
    good = {"actions": np.zeros((4, 3))}
    answers = [good, told, good]
    with openpi(lambda observation: answers.pop(0)) as (url, _):
        remote = RemotePolicy(url, env=env())
        history = example_history(remote.spec)
        rng = Rng.for_envs(0, [0], [0])
        with pytest.raises(RemoteError, match=reason):
            remote.plan(history, rng=rng)
        assert remote.plan(history, rng=rng).actions.shape == (1, 4, 3)
        remote.close()


def test_a_late_answer_is_never_taken_for_the_next_one():
    held, count = threading.Event(), [0.0]

    def slow(observation):
        count[0] += 1
        if count[0] == 2:
            held.wait(10)
        return {"actions": np.full((4, 3), count[0])}

    with openpi(slow) as (url, _):
        remote = RemotePolicy(url, env=env())
        history, rng = example_history(remote.spec), Rng.for_envs(0, [0], [0])
        with pytest.raises(RemoteError, match=r"did not answer within 0\.\d+ s"):
            remote.plan(history, rng=rng, budget=Budget(0.1))
        held.set()
        assert remote.plan(history, rng=rng).actions[0, 0, 0] == 3
        remote.close()


def test_a_server_of_ours_is_told_the_deadline(serve, echo):
    policy = echo()
    with serve(policy) as (url, _):
        remote = RemotePolicy(url)
        history, rng = example_history(remote.spec), Rng.for_envs(0, [0], [0])
        remote.plan(history, rng=rng, budget=Budget(5.0))
        remote.close()
    assert 0 < policy.budgets[-1].deadline_s <= 5


def test_an_unreachable_server_is_named():
    with pytest.raises(
        RemoteError, match=r"ws://127\.0\.0\.1:9 cannot be reached as a policy server"
    ):
        Client("ws://127.0.0.1:9")
    with pytest.raises(ValueError, match="begins with ws://"):
        Client("http://127.0.0.1:9")


@pytest.mark.parametrize("metadata", ["text", 3])
def test_a_server_that_does_not_describe_itself_is_none(metadata):
    def handle(connection):
        connection.send(metadata if isinstance(metadata, str) else pack(metadata))

    with serve_sync(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(RemoteError, match="does not describe itself"):
            Client(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("told", [{"inputs": {}}, {"inputs": 3}])
def test_a_description_that_is_not_understood_is_an_error(told):
    with (
        openpi(lambda observation: {}, {"fastloop": told}) as (url, _),
        pytest.raises(RemoteError, match="in a way unknown here"),
    ):
        RemotePolicy(url)
