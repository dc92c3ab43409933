"""A small random model that drives: plans, their proofs, and everything that may go wrong."""

import dataclasses
import json
import math
import re

import pytest
import torch

from fastloop.accel.graph import recording
from fastloop.accel.report import AccelReport
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.driving.whole_plans import WholePlans, plan_action
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.load import load_policy
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, EnvSpec, SpecMismatchError, TensorSpec
from fastloop.policies.vla import policy as module
from fastloop.policies.vla.canvas import vocabulary
from fastloop.policies.vla.checkpoint import save_vlm
from fastloop.policies.vla.decoding import DRIVERS, DecodingConfig
from fastloop.policies.vla.interpolation import interpolate
from fastloop.policies.vla.manifest import Manifest
from fastloop.policies.vla.policy import VisionLanguagePlanner
from fastloop.policies.vla.prompt import load_template
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.tokenizer import MASK, NULL, FileTokenizer, build_tokenizer, token_id

pytest.importorskip("transformers", reason="vision-language models are of transformers (extra vla)")
pytest.importorskip("tokenizers", reason="their tokenizers are of tokenizers (extra vla)")
pytest.importorskip("PIL", reason="their pictures are resized with pillow (extra vla)")

# Few tokens, so that a random model answers soon.
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


@pytest.fixture(scope="module")
def folder(tiny_network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    (folder / "answer.yaml").write_text(SCHEMA)
    template = load_template("short")
    words = [template.text, template.state, *template.commands]
    tokenizer = build_tokenizer([*vocabulary(load_schema(folder / "answer.yaml")), *words])
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    ids = FileTokenizer(folder / "tokenizer.json")
    network = tiny_network(
        torch.float64, vocab=len(ids) + 3, image_token_id=token_id(ids, "<|image_pad|>"),
        video_token_id=token_id(ids, "<|video_pad|>"),
        vision_start_token_id=token_id(ids, "<|vision_start|>"),
        vision_end_token_id=token_id(ids, "<|vision_end|>"),
    )  # fmt: skip
    told = Manifest(
        "causal_context", 7, mask_id=token_id(ids, MASK), null_id=token_id(ids, NULL),
        schema="answer.yaml", prompt="short", cameras=CAMERAS, min_pixels=784, max_pixels=3136,
    )  # fmt: skip
    return save_vlm(folder, network, told, tokenizer=tokenizer, schema=SCHEMA)


def load(folder, **decoding):
    config = DecodingConfig(**decoding)
    return VisionLanguagePlanner.load(folder, ENV, decoding=config, dtype="float64")


def observe(seed):
    random = torch.Generator().manual_seed(seed)
    states = 20 * torch.rand(16, 6, generator=random) - 10
    seen = {"observation.ego_states": states, "observation.intent": torch.tensor(seed % 4)}
    for camera in CAMERAS:
        key = f"observation.images.{camera}"
        shape = ENV.observations[key].shape
        seen[key] = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    return seen


def history(*seeds, **changes):
    episodes = []
    for seed in seeds:
        episode = EpisodeHistory(1)
        episode.observe({**observe(seed), **changes})
        episodes.append(episode)
    return History.stack(episodes, [0])


def rng(*seeds):
    return Rng.for_envs(0, seeds, [0] * len(seeds))


def test_a_plan(folder):
    policy = load(folder)
    plan = policy.plan(history(0, 1, 2), rng=rng(0, 1, 2))
    assert plan.actions.shape == (3, 20, 2)
    assert plan.actions.dtype == torch.float32
    assert plan.dt == 0.25
    assert plan.t0.tolist() == [0, 0, 0]
    assert plan.candidates is None
    for row in range(3):
        answer = json.loads(plan.text[row])
        assert list(answer) == ["flags", "behavior", "trajectory"]
        knots = torch.tensor(json.loads(answer["trajectory"].replace("+", "")), dtype=torch.float64)
        assert torch.equal(plan.actions[row], interpolate(knots, points=10).float())
    assert len(set(plan.text)) > 1  # it looks at what it is shown
    report = plan.report
    assert (report.name, report.exact, report.plans) == ("scaffold_speculation", True, 1)
    assert report.check_engaged() is report
    assert set(report.stage_ms) >= {"prompt", "prefill", "verify"}
    assert policy.digest == policy.model.spec.digest != ""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "driver", ["jump_forward", "self_speculative", "scaffold_speculative", "tidar"]
)
def test_lossless_drivers_write_what_is_written_token_by_token(folder, driver, temperature):
    seen, keys = history(0, 1, 2), rng(0, 1, 2)
    plain = load(folder, driver="ar", temperature=temperature).plan(seen, rng=keys)
    fast = load(folder, driver=driver, temperature=temperature).plan(seen, rng=keys)
    assert fast.text == plain.text
    assert torch.equal(fast.actions, plain.actions)
    assert (plain.report.name, plain.report.exact) == ("none", True)
    assert fast.report.network_evaluations < plain.report.network_evaluations


def test_denoising_is_its_own(folder):
    plan = load(folder, driver="denoise", threshold=0.5).plan(history(0, 1), rng=rng(0, 1))
    assert plan.actions.shape == (2, 20, 2)
    assert not plan.report.exact


WAYS = {"denoise", "hierarchical", "flash_block", "ar", "jump_forward", "tidar", "layer_skip",
        "self_speculative", "scaffold_speculative"}  # fmt: skip


@pytest.mark.parametrize("driver", sorted(WAYS))
@pytest.mark.parametrize("commit", ["confidence", "credit"])
def test_every_way_of_writing_writes(folder, driver, commit):
    plan = load(folder, driver=driver, commit=commit).plan(history(0, 1), rng=rng(0, 1))
    assert plan.actions.isfinite().all()
    assert all(list(json.loads(text)) for text in plan.text), "read, not fallen back from"


@pytest.mark.parametrize("driver", sorted(set(DRIVERS) - WAYS))
def test_every_other_way_says_why_not(folder, driver):
    with pytest.raises(ValueError, match="cannot be right on a causal_context model: "):
        load(folder, driver=driver)


def test_an_environment_does_not_depend_on_the_others(folder):
    policy = load(folder, temperature=1.0)
    together = policy.plan(history(0, 1, 2), rng=rng(0, 1, 2))
    for row in range(3):
        alone = policy.plan(history(row), rng=rng(row))
        assert together.text[row] == alone.text[0]
        assert torch.equal(together.actions[row], alone.actions[0])


def test_rollouts(folder):
    policy = load(folder, rollouts=3, temperature=1.0)
    plan = policy.plan(history(0, 1), rng=rng(0, 1))
    assert plan.candidates.shape == (2, 3, 20, 2)
    assert torch.allclose(plan.actions, plan.candidates.mean(1))
    assert plan.report.plans == 1
    assert plan.report.forked == 6
    assert not torch.equal(plan.candidates[0, 0], plan.candidates[0, 1])
    again = policy.plan(history(1), rng=rng(1))
    assert torch.equal(again.candidates[0], plan.candidates[1])
    other = policy.plan(history(1), rng=rng(5))
    assert not torch.equal(other.candidates[0], plan.candidates[1])
    medoid = load(folder, rollouts=3, temperature=1.0, selector="medoid")
    chosen = medoid.plan(history(0, 1), rng=rng(0, 1))
    for row in range(2):
        assert any(torch.equal(chosen.actions[row], one) for one in plan.candidates[row])


def spoil(policy, monkeypatch, rows, path="trajectory"):
    """As if the model had written "yes" where the first waypoint's sign belongs, or `path`."""
    write = policy._write

    def spoiled(prompts, rng):
        tokens, report = write(prompts, rng)
        slot = policy.layout.slots[path][0]
        tokens[:, rows, slot] = policy.layout.tokenizer.encode("yes")[0]
        return tokens, report

    monkeypatch.setattr(policy, "_write", spoiled)


@pytest.mark.parametrize("rollouts", [1, 3])
def test_recorded_passes_write_the_same(folder, fake_recorder, rollouts):
    how = {"rollouts": rollouts, "temperature": 0.5}
    plain, captured = load(folder, **how), load(folder, captured=True, **how)
    captured.writer.recorder = fake_recorder()
    expected = plain.plan(history(0), rng=rng(0))
    unprepared = captured.plan(history(0), rng=rng(0))
    with recording():
        captured.plan(history(0), rng=rng(0))
    plan = captured.plan(history(0), rng=rng(0))
    assert plan.text == unprepared.text == expected.text
    assert (plan.report.replayed, plan.report.not_replayed) == (1, {})
    assert unprepared.report.replayed == 0
    assert any("no CUDA graph was prepared" in why for why in unprepared.report.not_replayed)
    several = captured.plan(history(0, 1), rng=rng(0, 1)).report
    assert several.replayed == (rollouts > 1)  # one after the other, or one batch


def test_an_answer_without_waypoints_goes_straight_on(folder, monkeypatch):
    policy = load(folder)
    spoil(policy, monkeypatch, [0])
    plan = policy.plan(history(3), rng=rng(3))
    velocity = observe(3)["observation.ego_states"][-1, 2:4]
    times = 0.25 * torch.arange(1, 21)
    assert torch.allclose(plan.actions[0], times[:, None] * velocity, atol=1e-5)
    assert "[constant velocity: trajectory, token 0 of 16 (slot" in plan.text[0]
    assert plan.text[0].endswith("in place of a sign]")


def test_rollouts_that_cannot_be_read_are_left_out(folder, monkeypatch):
    policy = load(folder, rollouts=3, temperature=1.0)
    whole = policy.plan(history(3), rng=rng(3))
    spoil(policy, monkeypatch, [0], path="behavior")  # of less weight than what follows
    spoil(policy, monkeypatch, [1])
    plan = policy.plan(history(3), rng=rng(3))
    assert torch.allclose(plan.actions[0], whole.candidates[0, [0, 2]].mean(0))
    assert "[1 of 3 rollouts left out: trajectory" in plan.text[0]
    spoil(policy, monkeypatch, [0, 1, 2])
    plan = policy.plan(history(3), rng=rng(3))
    assert torch.equal(plan.actions[0], plan.candidates[0, 0])
    assert "[constant velocity: behavior, token 0" in plan.text[0]
    assert "; trajectory, token 0 of 16" in plan.text[0]


def test_a_fault_elsewhere_is_told_and_the_plan_followed(folder, monkeypatch):
    policy = load(folder)
    whole = policy.plan(history(0), rng=rng(0))
    spoil(policy, monkeypatch, [0], path="behavior")
    plan = policy.plan(history(0), rng=rng(0))
    assert torch.equal(plan.actions, whole.actions)
    assert "} [behavior, token 0 of 2 (slot" in plan.text[0]


def test_off_is_token_by_token(folder, monkeypatch):
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert load(folder).plan(history(0), rng=rng(0)).report.name == "none"


def test_through_load_policy(folder):
    policy = load_policy(folder, env=ENV, sampler={"driver": "ar"}, n_action_steps=4)
    assert isinstance(policy, VisionLanguagePlanner)
    assert policy.spec.n_action_steps == 4
    assert policy.decoding.driver == "ar"
    whole = dataclasses.replace(ENV, action=plan_action(20, 4.0), control_hz=10.0, horizon=None)
    wrapped = load_policy(folder, env=whole, sampler={"rollouts": 2, "temperature": 0.5})
    assert isinstance(wrapped, WholePlans)
    plan = wrapped.plan(history(0), rng=rng(0))
    assert plan.actions.shape == (1, 51, 41)
    assert plan.candidates.shape == (1, 2, 51, 41)
    with pytest.raises(
        ValueError, match=r"unknown decoding fields \['steps'\]; have \['captured', 'commit'"
    ):
        load_policy(folder, env=ENV, sampler={"steps": 3})
    with pytest.raises(ValueError, match="give env="):
        load_policy(folder)
    with pytest.raises(ValueError, match="cannot be put on device 'abacus'"):
        load_policy(folder, env=ENV, device="abacus")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"driver": "guess"}, "unknown driver 'guess'; have: ar, jump_forward, denoise"),
        ({"selector": "best"}, "unknown selector 'best'; have: mean, medoid, feasible"),
        ({"rollouts": 0}, "rollouts must be at least 1"),
        ({"temperature": -1.0}, "temperature at least 0"),
        ({"temperature": math.nan}, "temperature at least 0"),
        ({"rollouts": 2}, "2 rollouts at temperature 0 are all the same"),
        ({"captured": True, "prune": "early"}, "no two alike, so none is recorded"),
    ],
)
def test_impossible_decoding(changes, told):
    with pytest.raises(ValueError, match=told):
        DecodingConfig(**changes)


def change_manifest(folder, tmp_path, **changes):
    """Another folder of the same files."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    told = json.loads((folder / "fastloop.json").read_text()) | changes
    (tmp_path / "fastloop.json").write_text(json.dumps(told))
    return tmp_path


def test_a_model_that_was_not_taught_to_draft(folder, tmp_path):
    causal = change_manifest(folder, tmp_path, regime="causal")
    assert load(causal).plan(history(0), rng=rng(0)).report.name == "jump_forward"
    with pytest.raises(ValueError, match="section_diffusion cannot be right on a causal model"):
        load(causal, driver="denoise")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema": None}, "name its schema and its prompt"),
        ({"prompt": None}, "name its schema and its prompt"),
        ({"schema": "nothing"}, "no schema 'nothing'"),
        ({"prompt": "nothing"}, "there is no prompt 'nothing'; have: fast_ddrive, short"),
        ({"mask_id": 3}, "is [0-9]+ of its tokenizer, not 3"),
    ],
)
def test_a_model_that_was_not_taught_to_drive(folder, tmp_path, changes, told):
    with pytest.raises(CheckpointError, match=told):
        load(change_manifest(folder, tmp_path, **changes))


@pytest.mark.parametrize("tokenizer", ["{}", None])
def test_no_tokenizer(folder, tmp_path, tokenizer):
    other = change_manifest(folder, tmp_path)
    (other / "tokenizer.json").unlink()
    if tokenizer:
        (other / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read as a tokenizer"):
        load(other)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"horizon": None}, "one a tick"),
        ({"action": dataclasses.replace(WAYPOINT, kind="velocity")}, "2 elements of kind velocity"),
        ({"horizon": 21}, "2 waypoints 2.5 s apart; a road wants 21 at 4.0 Hz"),
        ({"control_hz": 4.5}, "wants 20 at 4.5 Hz"),
        ({"observations": {}}, "the model reads .*front_left.* a road offers nothing"),
    ],
)
def test_environments_that_it_cannot_drive(folder, env, told):
    with pytest.raises(SpecMismatchError, match=told):
        VisionLanguagePlanner.load(folder, dataclasses.replace(ENV, **env))


def test_an_environment_with_a_shorter_horizon(folder):
    short = dataclasses.replace(ENV, horizon=6, control_hz=2.0)
    policy = VisionLanguagePlanner.load(folder, short)
    plan = policy.plan(history(0), rng=rng(0))
    assert plan.actions.shape == (1, 6, 2)
    assert plan.dt == 0.5


def test_bad_observations_are_named(folder):
    policy = load(folder)
    nan = torch.full((16, 6), torch.nan)
    gray = torch.zeros(1, 28, 56, dtype=torch.uint8)
    for key, value, told in (
        ("observation.ego_states", nan, "observation.ego_states is nan at x"),
        ("observation.intent", torch.tensor(7), "observation.intent is 7"),
        ("observation.images.front_left", gray, "picture 0 is (1, 28, 56)"),
    ):
        bad = history(0, **{key: value})
        with pytest.raises(ValueError, match=re.escape(f"environment 0: {told}")):
            policy.prompts(bad)
        plan = policy.plan(bad, rng=rng(0))
        assert plan.text[0].startswith(f"[constant velocity: {told}")
        assert plan.actions.isfinite().all()
    blind = history(0)
    del blind.frames[0][0].values["observation.images.front"]
    with pytest.raises(KeyError, match=r"no observation 'observation.images.front'"):
        policy.plan(blind, rng=rng(0))


@pytest.mark.parametrize("rollouts", [1, 2])
def test_one_environment_without_a_past_stops_no_other(folder, rollouts):
    policy = load(folder, rollouts=rollouts, temperature=0.5)
    alone = policy.plan(history(1), rng=rng(1))
    both = history(0, 1)
    both.frames[0][-1].values["observation.ego_states"].fill_(torch.nan)
    plan = policy.plan(both, rng=rng(0, 1))
    assert torch.equal(plan.actions[1], alone.actions[0])
    assert plan.text[1] == alone.text[0]
    assert (plan.actions[0] == 0).all()  # nothing is known, not even a speed
    assert plan.candidates is None or plan.candidates.shape[:2] == (2, rollouts)


@pytest.mark.parametrize("driver", ["scaffold_speculative", "denoise"])
@pytest.mark.parametrize("rollouts", [1, 2])
def test_plans_without_an_answer_are_counted_with_the_others(folder, driver, rollouts):
    policy = load(folder, driver=driver, rollouts=rollouts, temperature=0.5 * (rollouts > 1))
    nan = history(0, **{"observation.ego_states": torch.full((16, 6), torch.nan)})
    reports = [policy.plan(seen, rng=rng(0)).report for seen in (nan, history(0))]
    assert reports[0].network_evaluations == 0
    assert AccelReport.total(reports).plans == 2


def test_pictures_that_do_not_fit_the_model(folder, tmp_path):
    policy = load(change_manifest(folder, tmp_path, min_pixels=10**6, max_pixels=2 * 10**6))
    with pytest.raises(ValueError, match=r"tokens and an answer of .* 1 to 2048 in all"):
        policy.plan(history(0), rng=rng(0))


def test_the_module_imports_without_transformers():
    assert "transformers" not in vars(module)
