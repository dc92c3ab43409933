"""The server over loopback: what clients get, and what one client can do to another."""

import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from fastloop.deploy.server.codec import pack, unpack
from fastloop.deploy.server.server import PolicyServer, ServerConfig, running

STATE = "observation.state"


class Raw:
    """The bytes of openpi-client 0.1.2, without its numpy."""

    def __init__(self, url, **options):
        self.stack = ExitStack()
        connecting = connect(url, compression=None, max_size=None, proxy=None, **options)
        self.socket = self.stack.enter_context(connecting)
        self.metadata = unpack(self.socket.recv())

    def infer(self, observation):
        self.socket.send(pack(observation))
        told = self.socket.recv(timeout=20)
        if isinstance(told, str):
            raise RuntimeError(f"Error in inference server:\n{told}")
        return unpack(told)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stack.close()


def get(url, path):
    try:
        with urllib.request.urlopen(url.replace("ws://", "http://") + path, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def errors(server, kind, at_least=1):
    """Wait until so many errors of that kind are counted."""
    until = time.monotonic() + 10
    while server.metrics.errors[kind] < at_least and time.monotonic() < until:
        time.sleep(0.01)
    return server.metrics.errors[kind]


def test_an_openpi_client_is_served(serve, echo):
    with serve(echo()) as (url, _), Raw(url) as client:
        assert client.metadata["fastloop"]["policy"] == "echo"
        first = client.infer({"observation/state": np.array([4.0, 0]), "prompt": "go"})
        assert first["actions"].shape == (5, 3)
        assert first["actions"].dtype == np.float32
        assert first["actions"][:, 0].tolist() == [4] * 5
        assert set(first["server_timing"]) == {"infer_ms"}
        again = client.infer({"observation/state": np.array([5.0, 0])})
        assert set(again["server_timing"]) == {"infer_ms", "prev_total_ms"}
        assert again["actions"][0, 1] == 5, "without ticks nothing is remembered"
        assert again["actions"][0, 2] != first["actions"][0, 2]


def test_ticks_make_a_history_and_reset_forgets_it(serve, echo):
    with serve(echo()) as (url, _), Raw(url) as client:
        seen = [
            client.infer({STATE: np.float32([t, 0]), "fastloop": {"tick": t}})["actions"][0, 1]
            for t in range(3)
        ]
        assert seen == [0, 0, 1]
        assert client.infer({"fastloop": {"reset": True}}) == {
            "fastloop": {"reset": True, "episode": 1}
        }
        told = client.infer({STATE: np.float32([9, 0]), "fastloop": {"tick": 0, "reset": True}})
        assert told["fastloop"]["episode"] == 2
        assert told["actions"][0, 1] == 9


def test_the_plan_under_way_and_how_late_it_came_reach_the_policy(serve, echo):
    policy, state = echo(), np.zeros(2, np.float32)
    with serve(policy) as (url, _), Raw(url) as client:
        for tick, late in ((0, 0), (3, 1), (6, 2), (9, 4)):
            answer = client.infer({STATE: state + tick, "fastloop": {"tick": tick, "late": late}})
            assert answer["fastloop"]["tick"] == tick
        plan = policy.histories[-1].underway[0]
    assert (plan.tick, plan.delays) == (6, (2, 4))
    assert plan.actions[0, 0] == 6


def test_clients_do_not_share_a_history(serve, echo):
    with serve(echo()) as (url, _), Raw(url) as one, Raw(url) as other:
        for tick in range(3):
            for base, client in ((0, one), (100, other)):
                told = {STATE: np.float32([base + tick, 0]), "fastloop": {"tick": tick}}
                assert client.infer(told)["actions"][0, 1] == base + max(tick - 1, 0)


def test_planning_happens_in_one_thread_that_is_not_the_event_loop(serve, echo):
    policy = echo()
    with serve(policy) as (url, _), Raw(url) as one, Raw(url) as other:
        one.infer({STATE: np.zeros(2)})
        other.infer({STATE: np.zeros(2)})
    assert policy.threads == {"fastloop-plans"}


def test_health_is_told_while_a_plan_is_made(serve, echo):
    policy, held, inside = echo(), threading.Event(), threading.Event()
    with serve(policy, stall_s=0.2) as (url, _), Raw(url) as client:
        assert get(url, "/healthz") == (200, "OK\n")

        def block(history):
            inside.set()
            held.wait(10)

        policy.before = block
        asking = threading.Thread(target=client.infer, args=({STATE: np.zeros(2)},))
        asking.start()
        assert inside.wait(10)
        assert get(url, "/healthz")[0] == 200
        time.sleep(0.3)
        status, told = get(url, "/healthz")
        assert status == 503
        assert "has been planning for" in told
        held.set()
        asking.join()
        assert get(url, "/healthz")[0] == 200


def test_the_port_opens_after_the_policy_is_warm(echo):
    policy, seen = echo(), []
    server = PolicyServer(policy, ServerConfig(port=0, max_batch=4))
    with running(server):
        seen = [len(history) for history in policy.histories]
    assert seen == [1, 1, 4, 4]


def test_a_policy_that_cannot_plan_opens_no_port(echo):
    policy = echo()

    def broken(history):
        raise RuntimeError("no such kernel")

    policy.before = broken
    with (
        pytest.raises(RuntimeError, match="no such kernel"),
        running(PolicyServer(policy, ServerConfig(port=0))),
    ):
        pass


def test_a_port_that_is_taken_is_an_error(serve, echo):
    with serve(echo()) as (url, _):
        port = int(url.rpartition(":")[2])
        other = PolicyServer(echo(), ServerConfig(port=port))
        with pytest.raises(OSError, match="address already in use"), running(other):
            pass


def test_requests_that_wait_are_planned_together(serve, echo):
    policy, held = echo(), threading.Event()
    with serve(policy) as (url, _):
        clients = [Raw(url) for _ in range(5)]
        policy.before = lambda history: held.wait(10)
        answers = {}

        def ask(n):
            answers[n] = clients[n].infer({STATE: np.float32([n, 0])})

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        held.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.socket.close()
    assert {n: answer["actions"][0, 0] for n, answer in answers.items()} == {n: n for n in range(5)}
    assert sorted(answer["fastloop"]["batch"] for answer in answers.values()) == [1, 4, 4, 4, 4]


def test_with_a_plan_batch_every_call_has_as_many_rows(serve, echo):
    policy = echo()
    with serve(policy, plan_batch=4) as (url, _), Raw(url) as client:
        client.infer({STATE: np.float32([2, 0])})
    assert {len(history) for history in policy.histories} == {4}


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"x": 1}, "the policy reads 'observation.state'"),
        ({STATE: np.float32([np.nan, 0])}, "not all numbers are finite"),
        ({STATE: np.zeros(2), "fastloop": {"tick": -1}}, "tick is at least 0"),
    ],
)
def test_after_a_bad_request_the_client_may_ask_again(serve, echo, request_, reason):
    with serve(echo()) as (url, server), Raw(url) as client:
        with pytest.raises(RuntimeError, match=reason):
            client.infer(request_)
        assert client.infer({STATE: np.zeros(2)})["actions"].shape == (5, 3)
        assert server.metrics.errors["request"] == 1


@pytest.mark.parametrize("data", [b"\xc1garbage", "text", b"", b"\x91" * 3000])
def test_garbage_is_answered_and_cut_off(serve, echo, data):
    with serve(echo()) as (url, server), Raw(url) as other, Raw(url) as client:
        client.socket.send(data)
        assert isinstance(client.socket.recv(timeout=10), str)
        with pytest.raises(ConnectionClosed):
            client.socket.recv(timeout=10)
        assert client.socket.close_code == 1007
        assert errors(server, "garbage") == 1
        assert other.infer({STATE: np.zeros(2)})["actions"].shape == (5, 3)


def test_bytes_that_are_no_http_harm_nobody(serve, echo):
    with serve(echo()) as (url, _), Raw(url) as client:
        port = int(url.rpartition(":")[2])
        for junk in (b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"A" * 70000):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(junk)
        assert client.infer({STATE: np.zeros(2)})["actions"].shape == (5, 3)


def test_a_message_that_is_too_long_is_not_read(serve, echo):
    with serve(echo(), max_message_mb=0.01) as (url, _), Raw(url) as other, Raw(url) as client:
        client.socket.send(bytes(20_000))
        with pytest.raises(ConnectionClosed):
            client.socket.recv(timeout=10)
        assert client.socket.close_code == 1009
        assert other.infer({STATE: np.zeros(2)})["actions"].shape == (5, 3)


def test_a_client_that_takes_no_answers_is_cut_off_and_holds_nobody_up(serve, echo, monkeypatch):
    connections, answer_all = [], PolicyServer._answer_all

    def seen(server, connection):
        connections.append(connection)
        return answer_all(server, connection)

    monkeypatch.setattr(PolicyServer, "_answer_all", seen)
    policy = echo(horizon=60_000)  # an answer fills every buffer on the way
    with serve(policy, send_timeout_s=0.5) as (url, server), Raw(url) as other:
        port = int(url.rpartition(":")[2])
        stalling = socket.socket()
        stalling.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalling.connect(("127.0.0.1", port))
        client = Raw(url, sock=stalling, max_queue=1, ping_interval=None)
        for _ in range(20):
            try:
                client.socket.send(pack({STATE: np.zeros(2)}))
            except ConnectionClosed:
                break
            assert other.infer({STATE: np.float32([3, 0])})["actions"][0, 0] == 3
        assert errors(server, "slow") == 1
        until = time.monotonic() + 4  # a farewell that nobody reads is waited for longer
        while not connections[1].transport.is_closing():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert other.infer({STATE: np.float32([3, 0])})["actions"][0, 0] == 3


def test_an_answer_after_the_deadline_is_an_error_and_the_next_one_is_right(serve, echo):
    policy, held = echo(), threading.Event()
    with serve(policy) as (url, server), Raw(url) as client:
        policy.before = lambda history: held.wait(10)
        with pytest.raises(RuntimeError, match="no plan within 50 ms"):
            client.infer({STATE: np.float32([1, 0]), "fastloop": {"deadline_ms": 50}})
        held.set()
        assert client.infer({STATE: np.float32([2, 0])})["actions"][0, 0] == 2
        assert server.metrics.errors["deadline"] == 1
    assert policy.budgets[-2].deadline_s <= 0.05
    assert policy.budgets[-1] is None


def test_what_is_late_before_its_turn_is_not_planned_at_all(serve, echo):
    policy, held, inside = echo(), threading.Event(), threading.Event()
    with serve(policy, deadline_ms=100) as (url, _), Raw(url) as one, Raw(url) as other:

        def block(history):
            inside.set()
            held.wait(10)

        policy.before = block
        told = {STATE: np.float32([1, 0]), "fastloop": {"deadline_ms": 20_000}}
        answers = []
        asking = threading.Thread(target=lambda: answers.append(one.infer(told)))
        asking.start()
        assert inside.wait(10)
        with pytest.raises(RuntimeError, match="no plan within 100 ms"):
            other.infer({STATE: np.float32([7, 0])})
        held.set()
        asking.join()
        assert len(answers) == 1, "its own deadline counts, not the server's"
        assert other.infer({STATE: np.float32([8, 0])})["actions"][0, 0] == 8
    newest = [history[STATE][:, -1, 0].tolist() for history in policy.histories]
    assert [7.0] not in newest


def test_a_policy_that_raises_tells_how_and_only_its_client_is_cut_off(serve, echo):
    policy, held = echo(), threading.Event()
    with serve(policy) as (url, server), Raw(url) as blocking:
        good, bad = Raw(url), Raw(url)

        def trip(history):
            held.wait(10)
            if (history[STATE] == 13).any():
                raise ZeroDivisionError("thirteen")

        policy.before = trip
        answers = {}

        def ask(client, value):
            try:
                answers[value] = client.infer({STATE: np.float32([value, 0])})["actions"][0, 0]
            except RuntimeError as error:
                answers[value] = str(error)

        asking = [
            threading.Thread(target=ask, args=pair)
            for pair in ((blocking, 1), (good, 2), (bad, 13))
        ]
        for thread in asking:
            thread.start()
            time.sleep(0.1)
        held.set()  # the last two are planned together
        for thread in asking:
            thread.join()
        assert (answers[1], answers[2]) == (1, 2)
        assert "ZeroDivisionError: thirteen" in answers[13]
        assert errors(server, "policy") == 1
        with pytest.raises(ConnectionClosed):
            bad.socket.recv(timeout=10)
        assert good.infer({STATE: np.zeros(2)})["actions"].shape == (5, 3)
        good.socket.close()


def test_a_plan_that_is_not_finite_is_not_sent(serve, echo):
    policy = echo()
    plan = policy.plan

    def spoiled(history, **kwargs):
        made = plan(history, **kwargs)
        if (history[STATE][:, -1, 0] == 5).any():
            made.actions[0, 2, 1] = torch.nan
        return made

    policy.plan = spoiled
    with (
        serve(policy) as (url, _),
        Raw(url) as client,
        pytest.raises(RuntimeError, match="not finite"),
    ):
        client.infer({STATE: np.float32([5, 0])})


def test_only_so_many_clients_are_served(serve, echo):
    with serve(echo(), max_clients=1) as (url, server):
        with Raw(url):
            with pytest.raises(InvalidStatus, match="503"):
                Raw(url)
            assert get(url, "/healthz")[0] == 200
        until = time.monotonic() + 10
        while server.metrics.clients and time.monotonic() < until:
            time.sleep(0.01)
        with Raw(url) as next_one:
            assert next_one.infer({STATE: np.zeros(2)})["actions"].shape == (5, 3)


def test_clients_that_come_at_the_same_moment_are_counted_too(echo, monkeypatch):
    """Each was let in before the other was counted."""
    monkeypatch.setattr(PolicyServer, "_process", lambda *_: None)
    server = PolicyServer(echo(), ServerConfig(port=0, max_clients=1))
    with running(server) as port, Raw(f"ws://127.0.0.1:{port}") as first:
        with (
            pytest.raises(ConnectionClosed),
            connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as second,
        ):
            second.recv(timeout=10)
        assert second.close_code == 1013
        assert server.metrics.errors["full"] == 1
        assert first.infer({STATE: np.zeros(2)})["actions"].shape == (5, 3)


def test_who_asks_too_often_is_told_and_others_are_not(serve, echo):
    with serve(echo(), max_hz=5) as (url, server), Raw(url) as greedy, Raw(url) as modest:
        told = []
        for n in range(20):
            try:
                greedy.infer({STATE: np.float32([n, 0])})
            except RuntimeError as error:
                told.append(str(error))
        assert told
        assert all("at most 5 requests a second" in one for one in told)
        assert modest.infer({STATE: np.float32([3, 0])})["actions"][0, 0] == 3
        assert server.metrics.errors["rate"] == len(told)
        assert not server.metrics.errors["request"]
        time.sleep(0.3)
        assert greedy.infer({STATE: np.float32([4, 0])})["actions"][0, 0] == 4


def test_pages_in_a_browser_may_not_connect(serve, echo):
    with serve(echo()) as (url, _), pytest.raises(InvalidStatus, match="403"):
        Raw(url, origin="http://example.com")


def test_a_server_with_a_key_asks_for_it(serve, echo):
    with serve(echo(), api_key="secret") as (url, _):
        with pytest.raises(InvalidStatus, match="401"):
            Raw(url)
        with pytest.raises(InvalidStatus, match="401"):
            Raw(url, additional_headers={"Authorization": "Api-Key wrong"})
        assert get(url, "/metrics")[0] == 401
        assert get(url, "/healthz")[0] == 200
        with Raw(url, additional_headers={"Authorization": "Api-Key secret"}) as client:
            assert client.infer({STATE: np.zeros(2)})["actions"].shape == (5, 3)


def test_metrics_count_answers_and_errors(serve, echo):
    with serve(echo()) as (url, _), Raw(url) as client:
        client.infer({STATE: np.zeros(2)})
        with pytest.raises(RuntimeError):
            client.infer({})
        status, told = get(url, "/metrics")
    assert status == 200
    assert "fastloop_server_clients 1" in told
    assert "fastloop_server_answer_seconds_count 1" in told
    assert 'fastloop_server_errors_total{kind="request"} 1' in told


def test_a_client_that_goes_away_in_the_middle_of_its_plan_leaves_nothing(serve, echo):
    policy, held, inside = echo(), threading.Event(), threading.Event()
    with serve(policy) as (url, server), Raw(url) as other:

        def block(history):
            inside.set()
            held.wait(10)

        policy.before = block
        client = Raw(url)
        client.socket.send(pack({STATE: np.zeros(2)}))
        assert inside.wait(10)
        client.socket.socket.shutdown(socket.SHUT_RDWR)
        held.set()
        assert other.infer({STATE: np.float32([3, 0])})["actions"][0, 0] == 3
        until = time.monotonic() + 10
        while server.metrics.clients > 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert server.metrics.clients == 1


@pytest.mark.parametrize(
    "given", [{"max_clients": 0}, {"port": 70000}, {"send_timeout_s": 0}, {"max_wait_ms": -1}]
)
def test_settings_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        ServerConfig(**given)


def test_names_of_what_is_not_read_are_refused(echo):
    with pytest.raises(ValueError, match="it reads observation"):
        PolicyServer(echo(), ServerConfig(names={"observation.stat": "x"}))
