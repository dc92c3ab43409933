"""A simulator process answers, says how it broke, and dies with its parent."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastloop.sims.config import SimConfig
from fastloop.sims.toy import PointMass
from fastloop.sims.worker import Act, Begin, Open, Worker, WorkerError

TOY = "fastloop.sims.toy.PointMass"
KEYS = ("observation.state",)


@pytest.fixture
def start(tmp_path):
    workers = []

    def start(**timeouts):
        timeouts = {"start_timeout_s": 60.0, "step_timeout_s": 60.0, **timeouts}
        workers.append(Worker(tmp_path / "simulators.log", **timeouts))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()
        assert worker.process.returncode is not None


def begin(seed, state=None, **arguments):
    return Begin(SimConfig(TOY, arguments), seed, state, KEYS, None)


def receive(worker, n):
    ticks = []
    while len(ticks) < n:
        ticks += worker.receive()
    return ticks


def actions(n, value=0.5):
    return Act(np.full((n, 2), value, np.float32), ())


def test_one_process_runs_several_episodes_like_the_simulator_itself(start):
    worker, sim = start(), PointMass()
    worker.send(Open(SimConfig(TOY)))
    assert worker.receive() == sim.env_spec
    for seed in (3, 4):
        worker.send(begin(seed))
        expected, _ = sim.reset(seed=seed)
        (tick,) = worker.receive()
        assert tick.observation.keys() == set(KEYS)
        assert (tick.observation["observation.state"] == expected["observation.state"]).all()
        worker.send(actions(5))
        for tick in receive(worker, 5):
            expected, reward, *_ = sim.step(np.full(2, 0.5, np.float32))
            assert (tick.observation["observation.state"] == expected["observation.state"]).all()
            assert tick.reward == reward
            assert tick.sim_s > 0
    worker.close(grace_s=10)
    assert worker.process.returncode == 0


@pytest.mark.parametrize(
    ("max_steps", "value", "outcome"), [(7, 0.0, "timeout"), (60, 1.0, "failure")]
)
def test_an_episode_that_ends_drops_the_actions_left(start, max_steps, value, outcome):
    worker = start()
    worker.send(begin(0, max_steps=max_steps))
    worker.receive()
    worker.send(actions(100, value))
    ticks = worker.receive()
    while not ticks[-1].outcome:
        ticks += worker.receive()
    assert ticks[-1].outcome == outcome
    assert len(ticks) <= max_steps
    worker.send(begin(1))  # the next answer belongs to the next episode
    first = PointMass().reset(seed=1)[0]["observation.state"]
    assert (worker.receive()[0].observation["observation.state"] == first).all()


def test_an_initial_state_is_restored(start):
    sim = PointMass()
    sim.reset(seed=5)
    moved, *_ = sim.step(np.ones(2))
    worker = start()
    worker.send(begin(0, sim.save()))
    (tick,) = worker.receive()
    assert (tick.observation["observation.state"] == moved["observation.state"]).all()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "RuntimeError: the solver diverged"),
        ("segfault", "killed by SIGSEGV"),
        ("exit", "exited with status 3"),
        ("hang", r"did not answer within 0\.5 s"),
    ],
)
def test_every_way_to_break_is_told_apart(start, fault, reason):
    worker = start(step_timeout_s=0.5)
    worker.send(begin(7, faults={7: fault}))
    worker.receive()
    worker.send(actions(2))
    assert len(receive(worker, 2)) == 2
    worker.send(actions(8))
    with pytest.raises(WorkerError, match=reason):
        worker.receive()


def test_a_simulator_that_cannot_be_built_says_why(start):
    for config, reason in [
        (SimConfig("fastloop.sims.toy.Nothing"), "is no simulator"),
        (SimConfig("fastloop.sims.worker.Worker"), "is no simulator"),
        (SimConfig(TOY, {"colour": 1}), "unexpected keyword argument 'colour'"),
    ]:
        worker = start()
        worker.send(Open(config))
        with pytest.raises(WorkerError, match=reason):
            worker.receive()


def test_nothing_outside_of_the_package_is_built():
    with pytest.raises(ValueError, match=r"inside fastloop.*'os\.system'"):
        SimConfig.from_config({"_target_": "os.system", "command": "true"})
    with pytest.raises(ValueError, match="_target_"):
        SimConfig.from_config({"task": "Lift"})
    config = SimConfig.from_config({"_target_": TOY, "max_steps": 3})
    assert config.build().env_spec.max_steps == 3


PARENT = """
import sys, time, numpy as np
from pathlib import Path
from fastloop.sims.config import SimConfig
from fastloop.sims.worker import Act, Begin, Worker
worker = Worker(Path(sys.argv[1]), start_timeout_s=60, step_timeout_s=60)
config = SimConfig("fastloop.sims.toy.PointMass", {"faults": {0: "hang"}})
worker.send(Begin(config, 0, None, (), None))
worker.receive()
if sys.argv[2] == "hanging":
    worker.send(Act(np.zeros((3, 2), np.float32), ()))
    time.sleep(0.5)
print(worker.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["idle", "hanging"])
def test_it_dies_with_a_parent_that_is_killed(tmp_path, state):
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < deadline, "the simulator outlived its parent"
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
