import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from fastloop.policies.base import Budget, Policy
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, EnvSpec, SpecMismatchError, TensorSpec
from fastloop.policies.vla.interpolation import interpolate
from fastloop.policies.vla.prompt import load_template
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.serving import EngineClient, Sampling, ServedPlanner

CAMERAS = [f"observation.images.{name}" for name in ("front_left", "front", "front_right")]
WAYPOINT = ActionSpec(2, "waypoint", (-math.inf,) * 2, (math.inf,) * 2, ("x", "y"), "m")
POINTS = [[10.0, 0.5], [20.0, 1.0], [30.0, 2.0], [40.0, 3.5], [50.0, 5.0]]


@pytest.fixture
def env():
    observations = {
        "observation.ego_states": TensorSpec((16, 6)),
        "observation.intent": TensorSpec((), "int64"),
        **{camera: TensorSpec((3, 4, 6), "uint8", 0, 255) for camera in CAMERAS},
    }
    return EnvSpec("Drives", observations, WAYPOINT, 4.0, max_steps=1, horizon=20)


@pytest.fixture
def planner(client, env):
    """A function (**options) -> ServedPlanner."""
    template, schema = load_template("short"), load_schema("fast_ddrive_small")

    def make(**options):
        options = {"client": client(), "env": env, "schema": schema, **options}
        return ServedPlanner(template=template, **options)

    return make


def history(speeds, states=None):
    episodes = []
    for speed in speeds:
        rows = np.zeros((16, 6), np.float32)
        rows[:, 2] = speed
        episode = EpisodeHistory(1)
        pictures = {camera: np.full((3, 4, 6), int(speed), np.uint8) for camera in CAMERAS}
        known = rows if states is None else states
        episode.observe({"observation.ego_states": known, "observation.intent": np.int64(1),
                         **pictures})  # fmt: skip
        episodes.append(episode)
    return History.stack(episodes, [0])


def rng(count, tick=0):
    return Rng.for_envs(0, range(count), [tick] * count)


def answer(points=POINTS):
    section = "[" + ", ".join(f"[ {x:+07.2f}, {y:+07.2f}]" for x, y in points) + "]"
    return json.dumps({"trajectory": section})


def straight(speed):
    times = torch.arange(1, 21) / 4
    return torch.stack([times * speed, torch.zeros(20)], 1)


def test_waypoints_of_the_answer_become_the_plan(engine, planner, reply, answered):
    engine.replies = [reply(answered(answer()))]
    policy = planner()
    assert isinstance(policy, Policy)
    plan = policy.plan(history([8.0]), rng=rng(1))
    expected = interpolate(torch.tensor(POINTS, dtype=torch.float64)).float()
    assert torch.equal(plan.actions, expected[None])
    assert (plan.actions.dtype, plan.dt, plan.t0.tolist()) == (torch.float32, 0.25, [0])
    assert plan.text == (answer(),)
    assert plan.report.stage_ms["engine"] > 0
    (_, _, body) = engine.requests[0]
    parts = body["messages"][0]["content"]
    assert sum(part["type"] == "image_url" for part in parts) == 3
    assert "go straight" in parts[-1]["text"]
    assert "[+8.0, +0.0]" in parts[-1]["text"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"body": b"", "status": 500}, "status: "),
        ({"body": b"<html>", "kind": "text/html"}, "content_type: "),
        ({"body": b"{"}, "not_json: "),
        ({"body": b"{}", "length": 10}, "truncated: "),
        ({"raw": b"\x00\x01\r\n\r\n"}, "protocol: "),
        ({"status": 302}, "redirect: "),
    ],
)
def test_a_server_that_fails_is_outlived(engine, planner, reply, broken, reason):
    engine.replies = [reply(**broken)]
    plan = planner().plan(history([8.0]), rng=rng(1))
    torch.testing.assert_close(plan.actions[0], straight(8.0))
    assert plan.text[0].startswith(f"[constant velocity: {reason}")


@pytest.mark.parametrize(
    "text",
    ["", "turn left", "{}", '{"trajectory": 5}', answer([[1.0, math.nan]] * 5), "[[[[" * 9999,
     answer([[9e9, 0.0]] * 5), "\ud800"],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_outlived(engine, planner, reply, answered, text):
    engine.replies = [reply(answered(text))]
    plan = planner().plan(history([8.0]), rng=rng(1))
    torch.testing.assert_close(plan.actions[0], straight(8.0))
    assert "[constant velocity: " in plan.text[0]


def test_a_slow_server_is_outlived_within_the_budget(engine, planner, reply, elapsed):
    engine.replies = [reply(pause_s=30.0)]
    plans = []
    seconds, error = elapsed(
        lambda: plans.append(
            planner().plan(history([8.0, 3.0]), rng=rng(2), budget=Budget(deadline_s=0.3))
        )
    )
    assert error is None
    assert seconds < 5
    for b, speed in enumerate([8.0, 3.0]):
        torch.testing.assert_close(plans[0].actions[b], straight(speed))
        assert plans[0].text[b].startswith("[constant velocity: timeout: ")


def test_states_that_are_no_numbers_are_outlived_without_asking(engine, planner):
    states = np.full((16, 6), np.nan, np.float32)
    plan = planner().plan(history([8.0], states), rng=rng(1))
    assert (plan.actions == 0).all()
    assert "observation.ego_states is nan" in plan.text[0]
    assert engine.requests == []


def test_each_row_has_its_own_answer_whatever_comes_first(engine, planner, reply, answered):
    def by_speed(request):
        text = request[2]["messages"][0]["content"][-1]["text"]
        speed = float(text.split("v [")[-1].split(",")[0])
        if speed == 5:
            return reply(b"", 400)
        return reply(answered(answer([[speed, 0.0]] * 5)), pause_s=0.02 * (20 - speed) / 20)

    engine.replies = [by_speed]
    speeds = list(range(1, 20))
    plan = planner().plan(history(speeds), rng=rng(19))
    for b, speed in enumerate(speeds):
        assert ("[constant velocity" in plan.text[b]) == (speed == 5)
        if speed != 5:
            torch.testing.assert_close(plan.actions[b, -1], torch.tensor([float(speed), 0.0]))


def test_seeds_belong_to_an_environment_and_its_tick(engine, planner, reply, answered):
    engine.replies = [reply(answered(answer()))]
    policy = planner(sampling=Sampling(temperature=0.5))

    def seeds(count, tick):
        engine.requests.clear()
        policy.plan(history([8.0] * count), rng=rng(count, tick))
        return {request[2]["seed"] for request in engine.requests}

    (alone,) = seeds(1, 0)
    together = seeds(3, 0)
    assert len(together) == 3
    assert alone in together
    assert seeds(1, 1).isdisjoint(together)
    planner(sampling=Sampling()).plan(history([8.0]), rng=rng(1))
    assert "seed" not in engine.requests[-1][2]


def test_environments_that_do_not_fit(planner, env):
    lacking = {key: spec for key, spec in env.observations.items() if "front_left" not in key}
    for wrong, said in (
        ({"horizon": None}, "one a tick"),
        ({"horizon": 21}, "wants 21 at 4.0 Hz"),
        ({"control_hz": 2.5}, "at 2.5 Hz"),
        ({"observations": lacking}, "front_left"),
        ({"action": dataclasses.replace(WAYPOINT, kind="delta_pose")}, "delta_pose"),
    ):
        with pytest.raises(SpecMismatchError, match=said):
            planner(env=dataclasses.replace(env, **wrong))


def test_a_schema_without_waypoints_is_refused(planner):
    schema = load_schema("fast_ddrive_small")
    short = dataclasses.replace(schema, sections=schema.sections[:2])
    with pytest.raises(ValueError, match="one field of several waypoints"):
        planner(schema=short)


def test_fewer_ticks_than_the_answer_reaches(engine, planner, env, reply, answered):
    engine.replies = [reply(answered(answer()))]
    policy = planner(env=dataclasses.replace(env, horizon=12))
    plan = policy.plan(history([8.0]), rng=rng(1))
    assert plan.actions.shape == (1, 12, 2)
    torch.testing.assert_close(plan.actions[0, 3::4], torch.tensor(POINTS[:3]))


def test_nobody_there(planner):
    gone = EngineClient("http://127.0.0.1:9", "small", attempts=1)
    plan = planner(client=gone).plan(history([8.0]), rng=rng(1))
    assert plan.text[0].startswith("[constant velocity: unreachable: ")
