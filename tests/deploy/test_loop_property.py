"""Random sequences of faults: a valid message in every tick, whatever goes wrong."""

import math
import random

import numpy as np
import pytest

from fastloop.deploy.motion import ACCELERATION, SPEED

TICKS = 5_000  # times 20 sequences: 100,000


def disturb(machine, chance):
    """Something breaks, or heals."""
    kind = chance.randrange(14)
    if kind == 0:
        machine.deaf = not machine.deaf
    elif kind == 1:
        machine.silent = {chance.choice(["/state", "/camera"])} if not machine.silent else set()
    elif kind == 2:
        machine.delay_s[chance.choice(["/state", "/camera"])] = chance.choice(
            [0.0, 0.0, 0.05, 0.25, 0.5, -0.02, -1.0]
        )
    elif kind == 3:
        machine.garbage = {chance.choice(["/state", "/camera"])} if not machine.garbage else set()
    elif kind == 4:
        machine.latency = chance.choice([0.001, 0.01, 0.05, 0.069, 0.12, 0.4, 1.0, math.inf])
    elif kind == 5:
        machine.error = chance.choice(
            [None, None, RuntimeError("out of memory"), MemoryError(), KeyboardInterrupt()]
        )
    elif kind == 6:
        machine.answer = chance.choice(ANSWERS)
    elif kind == 7:
        machine.clock.set_wall(chance.choice([3600.0, -3600.0, 0.3, -0.3, 0.01]))
    elif kind == 8:
        machine.stall_s = chance.choice([0.02, 0.09, 0.2, 1.5, 30.0])
    elif kind == 9:
        machine.pushed = chance.choice([0.2, 3.0])
    elif kind == 10:
        machine.send(chance.choice(["/state", "/camera"]))  # a message out of step
    elif kind == 11:
        machine.send("/state", stamp_ns=machine.clock.wall_ns() - chance.randrange(10**10))
    else:
        heal(machine)


def heal(machine):
    """All is well again."""
    machine.deaf, machine.silent, machine.garbage = False, set(), set()
    machine.delay_s = {"/state": 0.0, "/camera": 0.0}
    machine.latency, machine.error, machine.answer, machine.pushed = 0.01, None, None, 0.0
    machine.stall_s = 0.0


ANSWERS = [
    None,
    None,
    lambda a: a * math.nan,
    lambda a: a[:0],
    lambda a: a[:, :3],
    lambda a: a[0],
    lambda a: a + 2.0,
    lambda a: a[: len(a) // 2 + 1],
    lambda a: a + np.random.default_rng(0).normal(size=a.shape),
    lambda a: a * 0.0,
    lambda a: "no array",
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_every_tick_has_a_valid_message(rig, seed):
    chance = random.Random(seed)
    machine = rig(
        arm=seed % 2 == 1,
        variants={"full": 0.05, "small": 0.01},
        plan_every=chance.choice([1, 1, 2, 4]),
        budget_s=chance.choice([0.0, 0.3]),
        restarts=10**9,
    )
    last, slot = None, -1
    for _ in range(TICKS):
        if chance.random() < 0.1:
            disturb(machine, chance)
        published = machine.tick()  # the rig checks the message
        assert published.tick > slot
        slot = published.tick
        if last is not None and not machine.arm:
            gentle(last, published)
        last = published
        assert len(machine.loop._events) <= 1024
    assert machine.loop.counts["internal errors"] == 0
    assert machine.loop.rungs.total() == TICKS
    assert {0, 1, 2} <= set(machine.loop.rungs)


def gentle(last, now):
    """A comfort stop that begins brakes no harder than the hard stop may."""
    if last.rung < 2 <= now.rung == 2:
        assert now.actions[1:, ACCELERATION].min() >= -8.0
        assert now.actions[:, SPEED].max() <= last.actions[:, SPEED].max() + 2.0


def test_a_healthy_world_heals_everything(rig):
    """After any sequence of faults, a world in which all is well gets fresh plans again."""
    for seed in range(6):
        chance = random.Random(1000 + seed)
        machine = rig(arm=seed % 2 == 1, restarts=10**9)
        for _ in range(200):
            if chance.random() < 0.3:
                disturb(machine, chance)
            machine.tick()
        heal(machine)
        healed = machine.ticks(60)
        assert [one.rung for one in healed[-10:]] == [0] * 10, healed[-1].reason
