"""LaViDa drives: the canvas that Fast-dDrive writes, filled under its own mask, in a session."""

import json
import math

import pytest
import torch

from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.session import Session
from fastloop.policies.spec import ActionSpec, EnvSpec, TensorSpec
from fastloop.policies.vla.decoding import DecodingConfig
from fastloop.policies.vla.interpolation import interpolate
from fastloop.policies.vla.policy import VisionLanguagePlanner

pytest.importorskip("transformers", reason="language models are those of transformers (extra vla)")
pytest.importorskip("tokenizers", reason="their tokenizers are of tokenizers (extra vla)")
pytest.importorskip("PIL", reason="their pictures are resized with pillow (extra vla)")

SCHEMA = """
name: tiny
block_size: 7
sections:
  flags: {pedestrian: {kind: flag}, cyclist: {kind: flag}}
  behavior: {kind: choice, tokens: 2, words: [keep speed, keep lane, stop speed, stop lane]}
  trajectory: {kind: waypoints, count: 2, step_s: 2.5, digits: 1, decimals: 1}
"""
CAMERAS = ("front_left", "front")
WAYPOINT = ActionSpec(2, "waypoint", (-math.inf,) * 2, (math.inf,) * 2, ("x", "y"), "m")
ENV = EnvSpec(
    "a road",
    {
        "observation.ego_states": TensorSpec((16, 6)),
        "observation.intent": TensorSpec((), "int64", low=0, high=3),
        "observation.images.front_left": TensorSpec((3, 28, 56), "uint8", 0, 255),
        "observation.images.front": TensorSpec((3, 56, 56), "uint8", 0, 255),
    },
    WAYPOINT, control_hz=4.0, max_steps=10, horizon=20,
)  # fmt: skip
DENOISE = DecodingConfig(driver="denoise", threshold=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_lavida):
    return random_lavida(tmp_path_factory.mktemp("lavida") / "model", SCHEMA, cameras=CAMERAS)


@pytest.fixture(scope="module")
def policy(folder):
    return VisionLanguagePlanner.load(folder, ENV, decoding=DENOISE, dtype="float64")


def observed(*seeds):
    seen = {key: [] for key in ENV.observations}
    for seed in seeds:
        random = torch.Generator().manual_seed(seed)
        seen["observation.ego_states"].append(20 * torch.rand(16, 6, generator=random) - 10)
        seen["observation.intent"].append(torch.tensor(seed % 4))
        for camera in CAMERAS:
            key = f"observation.images.{camera}"
            shape = ENV.observations[key].shape
            picture = torch.randint(256, shape, generator=random, dtype=torch.uint8)
            seen[key].append(picture)
    return {key: torch.stack(rows) for key, rows in seen.items()}


def now(session):
    return History.stack(session.histories, [0])


def test_a_session(policy):
    """Driven as any policy is: three environments, an action of one waypoint each."""
    session = Session(policy, num_envs=3, plan_batch=3)
    action = session.select_action(observed(0, 1, 2))
    assert action.shape == (3, 2)
    assert action.isfinite().all()
    again = Session(policy, num_envs=3, plan_batch=3).select_action(observed(0, 1, 2))
    assert torch.equal(action, again)


def test_the_answer_is_the_canvas(policy):
    session = Session(policy, num_envs=3)
    session.select_action(observed(0, 1, 2))
    canvas = policy.layout.canvas
    prompts = policy.prompts(now(session))
    answers, report = policy._write(prompts, Rng.for_envs(0, [0, 1, 2], [0] * 3).keys)
    assert torch.equal(answers[:, 0][:, canvas.given], canvas.tokens[canvas.given].expand(3, -1))
    allowed = canvas.allowed[canvas.kind[~canvas.given]]
    for row in answers[:, 0]:
        assert allowed.gather(1, row[~canvas.given][:, None]).all()
    assert len({tuple(row.tolist()) for row in answers[:, 0]}) > 1  # it looks at what it is shown
    assert report.name == "section_diffusion"


def test_a_plan_is_what_was_written(policy):
    session = Session(policy, num_envs=2)
    session.select_action(observed(3, 4))
    plan = policy.plan(now(session), rng=Rng.for_envs(0, [0, 1], [0] * 2))
    assert plan.actions.shape == (2, 20, 2)
    for row in range(2):
        answer = json.loads(plan.text[row])
        assert list(answer) == ["flags", "behavior", "trajectory"]
        knots = torch.tensor(json.loads(answer["trajectory"].replace("+", "")), dtype=torch.float64)
        assert torch.equal(plan.actions[row], interpolate(knots, points=10).float())


def test_prompts_hold_views(policy):
    """A picture is as many places as its views take up, after the words of the template."""
    session = Session(policy, num_envs=1)
    session.select_action(observed(0))
    prompt = policy.prompts(now(session))[0]
    # Both pictures: the whole is one token; parts and ends of lines of 1 x 2 and 2 x 2.
    assert prompt.grid.tolist() == [[1, 2, 28, 56], [2, 2, 56, 56]]
    assert int((prompt.ids == -200).sum()) == (1 + 3) + (1 + 6)
    assert prompt.pixels.shape == (3 + 5, 3, 28, 28)


def test_one_that_fits_no_driver(folder):
    with pytest.raises(ValueError, match="prefix_lm"):
        VisionLanguagePlanner.load(
            folder, ENV, decoding=DecodingConfig(driver="scaffold_speculative")
        )


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"schema": None}, "does not say what the model was taught"),
        ({"prompt": None}, "does not say what the model was taught"),
        ({"null_id": 100000}, "null_id 100000 is not of a vocabulary"),
        ({"prompt": "nothing"}, "there is no prompt 'nothing'"),
    ],
)
def test_a_model_that_cannot_drive(tmp_path, random_lavida, told, reason):
    folder = random_lavida(tmp_path / "model", SCHEMA, cameras=CAMERAS, **told)
    with pytest.raises(CheckpointError, match=reason):
        VisionLanguagePlanner.load(folder, ENV, decoding=DENOISE)
