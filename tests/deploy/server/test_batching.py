"""The thread that plans for all who wait, by itself."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from fastloop.accel.graph import Graph
from fastloop.deploy.server.batching import Batcher, DeadlineError, Job, PolicyError
from fastloop.deploy.server.protocol import Request
from fastloop.deploy.server.sessions import Row

STATE = "observation.state"


def job(policy, value, *, left_s=None):
    until = None if left_s is None else time.monotonic() + left_s
    return Job(Row(policy.spec, 0), Request({STATE: np.float32([value, 0])}), until)


def newest(policy):
    return [history[STATE][:, -1, 0].tolist() for history in policy.histories]


def test_a_passed_deadline_is_an_error_and_no_plan(echo):
    policy = echo()
    batcher = Batcher(policy, clients=lambda: 1)
    late, early = job(policy, 7, left_s=-0.01), job(policy, 8, left_s=60)
    futures = [batcher.submit(one) for one in (late, early)]
    batcher.start()
    with pytest.raises(DeadlineError, match="before its turn"):
        futures[0].result(20)
    assert futures[1].result(20)["actions"][0, 0] == 8
    batcher.close()
    assert [7.0] not in newest(policy)


def test_the_budget_of_a_batch_is_that_of_the_most_pressed(echo):
    policy = echo()
    batcher = Batcher(policy, clients=lambda: 2, max_wait_s=5.0)
    futures = [batcher.submit(job(policy, n, left_s=left)) for n, left in ((1, 50), (2, 90))]
    batcher.start()
    for future in futures:
        future.result(20)
    batcher.close()
    assert newest(policy)[-1] == [1, 2]
    assert 0 < policy.budgets[-1].deadline_s <= 50


def test_the_end_while_it_waits_for_others_answers_and_ends(echo):
    policy = echo()
    batcher = Batcher(policy, clients=lambda: 2, max_wait_s=60.0)
    batcher.start()
    future = batcher.submit(job(policy, 5))
    batcher.close(20.0)
    assert future.result(0)["actions"][0, 0] == 5
    assert not batcher._thread.is_alive()


def test_nobody_is_waited_for_who_is_not_there(echo):
    policy = echo()
    batcher = Batcher(policy, clients=lambda: 1, max_wait_s=60.0)
    batcher.start()
    assert batcher.submit(job(policy, 5)).result(20)["fastloop"]["batch"] == 1
    batcher.close()


def test_who_no_longer_waits_is_not_planned_for(echo):
    policy = echo()
    batcher = Batcher(policy, clients=lambda: 1)
    gone, there = batcher.submit(job(policy, 7)), batcher.submit(job(policy, 8))
    assert gone.cancel()
    batcher.start()
    assert there.result(20)["actions"][0, 0] == 8
    batcher.close()
    assert [7.0] not in newest(policy)


def test_it_is_busy_only_while_the_policy_plans_even_if_that_fails(echo):
    policy = echo()
    batcher = Batcher(policy, clients=lambda: 1)
    batcher.start()
    batcher.ready.result(20)
    seen = []

    def fail(history):
        time.sleep(0.02)
        seen.append(batcher.busy_s)
        raise RuntimeError("no")

    policy.before = fail
    with pytest.raises(RuntimeError):
        batcher.submit(job(policy, 5)).result(20)
    batcher.close()
    assert seen[0] >= 0.02
    assert batcher.busy_s == 0


def test_a_plan_of_another_shape_harms_nobody_else(echo):
    policy = echo()
    batcher = Batcher(policy, clients=lambda: 1)
    batcher.start()
    batcher.ready.result(20)
    plan = policy.plan
    policy.plan = lambda *args, **kwargs: dataclasses.replace(
        plan(*args, **kwargs), actions=torch.zeros(0, 1, 1)
    )
    with pytest.raises(PolicyError, match="IndexError"):
        batcher.submit(job(policy, 5)).result(20)
    policy.plan = plan
    assert batcher.submit(job(policy, 6)).result(20)["actions"][0, 0] == 6
    batcher.close()


def test_only_warming_up_records(echo, fake_recorder):
    recorder = fake_recorder()
    graph = Graph(lambda state: (state,), recorder)
    policy = echo()
    policy.before = lambda history: graph(history[STATE])
    batcher = Batcher(policy, max_batch=4, max_wait_s=5.0, clients=lambda: 2)
    batcher.start()
    batcher.ready.result(20)
    assert recorder.captured == 2, "one client and the most"
    futures = [batcher.submit(job(policy, n)) for n in (1, 2)]
    assert [future.result(20)["fastloop"]["batch"] for future in futures] == [2, 2]
    batcher.close()
    assert recorder.captured == 2
