"""A vision-language planner, from a file of drives with pictures to plans on a road."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastloop import cli, load_policy, vla_recipe
from fastloop.datasets import robomimic
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.plans import Plans
from fastloop.policies.driving.whole_plans import WholePlans
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import SpecMismatchError
from fastloop.policies.training import Trainer
from fastloop.sims.toy_road import ToyRoad

pytest.importorskip("transformers", reason="vision-language models are of transformers (extra vla)")
pytest.importorskip("cv2", reason="cameras are painted with OpenCV (extra driving)")

CAMERAS = ("front_left", "front", "front_right")
SIZE = (56, 28)
SIM = ["sim=toy_road", "sim.cameras=[front_left,front,front_right]", "sim.image_size=[56,28]"]
ARCH = [
    "text.hidden_size=32", "text.intermediate_size=48", "text.num_hidden_layers=1",
    "text.num_attention_heads=2", "text.num_key_value_heads=1", "vision.depth=1",
    "vision.hidden_size=16", "vision.intermediate_size=24", "vision.num_heads=2",
    "vision.fullatt_block_indexes=[0]",
]  # fmt: skip
TRAIN = [
    "train", *SIM, "dataset=camera_drives", "network=fast_ddrive_small",
    *(f"network.arch.{size}" for size in ARCH), "train.steps=10", "train.batch_size=2",
    "train.warmup_steps=2", "check_episodes=1", "check_every=5", "save_every=1", "mirror=true",
    "threads=1",
]  # fmt: skip


def road():
    return ToyRoad(cameras=CAMERAS, image_size=SIZE)


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    """Frames of three drives straight on, with the plan to go faster."""
    sim = road()
    plan, step = np.zeros(41, np.float32), np.arange(1, 21)
    plan[1::2] = 2.0 * step + 0.05 * step**2
    made = []
    for seed in range(3):
        frames = [sim.reset(seed=seed)[0], *(sim.step(plan)[0] for _ in range(4))]
        seen = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
        made.append(Demonstration(seen, np.tile(plan, (len(frames), 1)), seed=seed))
    path = tmp_path_factory.mktemp("drives") / "drives.hdf5"
    return robomimic.write(path, made, env_args={"env_name": "ToyRoad"})


def train(drives, folder, *overrides):
    return cli.main([*TRAIN, f"dataset.path={drives}", f"run_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def trained(drives, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    assert train(drives, folder) == 0
    return folder


def test_what_was_trained_plans_and_says_why(trained):
    sim = road()
    policy = load_policy(trained / "policy", env=sim.env_spec)
    assert isinstance(policy, WholePlans)
    episode = EpisodeHistory(1)
    episode.observe(sim.reset(seed=7)[0])
    plan = policy.plan(History.stack([episode], [0]), rng=Rng.for_envs(0, [0], [0]))
    assert plan.actions.shape == (1, 51, 41)
    assert plan.actions.isfinite().all()
    sections = ["critical_objects", "explanation", "future_meta_behavior", "trajectory"]
    answer, _ = json.JSONDecoder().raw_decode(plan.text[0])  # what is wrong with it may follow
    assert list(answer) == sections
    weights = load_file(trained / "policy" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_stages_come_in_their_order_and_are_checked(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    told = [(line["stage"], line["step"]) for line in lines if "loss" in line]
    assert told == [("autoregressive", 6), ("block_diffusion", 1), ("structured", 3)]
    (checked,) = (line for line in lines if "held_out_loss" in line)
    assert checked["stage"] == "autoregressive"
    assert checked["json_validity"] == 1.0, "whatever is in it"
    assert 0 <= checked["schema_validity"] <= 1
    assert checked["ade_5s"] > 0
    assert checked["tokens_per_forward"] > 0.4
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    shares = {"json_validity", "schema_validity"}
    assert {"loss", "held_out_loss", "ade_5s", "tokens_per_forward"} | shares == set(metrics)
    assert all(np.isfinite(metric["value"]) for metric in metrics.values())


def test_the_last_drive_is_kept_from_training_and_comes_along(trained):
    (kept,) = robomimic.read(trained / "policy" / "held_out.hdf5")
    assert kept.seed == 2
    assert len(Plans.cut([kept], list(kept.observations))) == 5
    manifest = json.loads((trained / "policy" / "fastloop.json").read_text())
    assert manifest["training"]["samples"] == 2 * 10, "mirrored"
    assert manifest["cameras"] == list(CAMERAS)
    assert manifest["image_size"] == list(SIZE)


@pytest.mark.parametrize("steps", [3, 7])
def test_a_killed_run_goes_on_to_the_same_weights(drives, trained, tmp_path, monkeypatch, steps):
    advance, done = Trainer.advance, []

    def killed(self):
        if len(done) == steps:
            raise OSError("killed")
        done.append(self)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", killed)
    assert train(drives, tmp_path) == 2
    monkeypatch.setattr(Trainer, "advance", advance)
    assert train(drives, tmp_path) == 0
    ours, theirs = (
        load_file(folder / "policy" / "model.safetensors") for folder in (tmp_path, trained)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_each_stage_goes_on_from_the_average_of_the_one_before(drives, tmp_path, monkeypatch):
    advance, begun = Trainer.advance, []

    def watched(self):
        if self.step == 0:
            begun.append((self, [p.detach().clone() for p in self.model.parameters()]))
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", watched)
    assert train(drives, tmp_path, "check_every=0") == 0
    assert len(begun) == 3
    for (before, _), (_, start) in pairwise(begun):
        averaged = [*before.ema.averaged.parameters()]
        assert all(torch.equal(p, q) for p, q in zip(averaged, start, strict=True))


def test_compiled_layers_train_alike(drives, trained, tmp_path):
    assert train(drives, tmp_path, "network.vla.compile=true", "check_every=0") == 0
    ours, theirs = (
        load_file(folder / "policy" / "model.safetensors") for folder in (tmp_path, trained)
    )
    assert ours.keys() == theirs.keys()
    assert any(not torch.equal(value, theirs[key]) for key, value in ours.items()), "compiled"
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=5e-3, rtol=0.05)


def test_no_compiler_is_said_before_anything_is_trained(drives, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert train(drives, tmp_path, "network.vla.compile=true") == 2
    assert "no no-such-compiler: install one" in " ".join(capsys.readouterr().err.split())


def test_an_answer_that_says_what_was_driven_has_no_error(drives, tmp_path, monkeypatch):
    told = iter([])

    def right(model, prompts, canvas, driver):
        tokens = torch.stack([next(told) for _ in prompts])
        return replace(decode(model, prompts, canvas, driver), tokens=tokens)

    decode, check = vla_recipe.decode, vla_recipe.VLARecipe.check

    def checked(self, name, trainer):
        nonlocal told
        told = iter([self.held_out[i].canvas.tokens for i in range(len(self.held_out))])
        return check(self, name, trainer)

    monkeypatch.setattr(vla_recipe, "decode", right)
    monkeypatch.setattr(vla_recipe.VLARecipe, "check", checked)
    assert train(drives, tmp_path, "check_every=0") == 0
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["ade_5s"]["value"] < 0.2, "of drawing a curve through five points"
    assert metrics["schema_validity"]["value"] == 1.0


def evaluate(trained, folder, *overrides):
    return cli.main(
        ["eval", *SIM, "sim.max_steps=6", f"policy.checkpoint={trained / 'policy'}",
         f"run_dir={folder}", "episodes=1", "num_envs=1", "plan_batch=1", "timed_plans=1",
         "accel=none", "video=none", "policy.threads=1", *overrides]
    )  # fmt: skip


def test_eval_drives_it(trained, tmp_path):
    assert evaluate(trained, tmp_path) == 0


def further(drives, folder, origin, *overrides):
    """Another training of what was trained: to see all of its answer."""
    return train(
        drives, folder, "network=prefix_lm_small", f"init={origin / 'policy'}", "train.steps=2",
        "train.lr=1e-9", "check_every=0", *(f"network.arch.{size}" for size in ARCH), *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def taught_further(drives, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("further") / "run"
    assert further(drives, folder, trained) == 0
    return folder


def test_what_was_trained_is_taught_to_see_all_of_its_answer(taught_further, trained):
    manifest = json.loads((taught_further / "policy" / "fastloop.json").read_text())
    assert manifest["regime"] == "prefix_lm"
    told = [json.loads(line) for line in (taught_further / "metrics.jsonl").open()]
    assert [(line["stage"], line["step"]) for line in told] == [("prefix_lm", 2)]
    ours, theirs = (
        load_file(folder / "policy" / "model.safetensors") for folder in (taught_further, trained)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), "it begins there"
    bold = "policy.decoding.threshold=0.01"  # it is sure of nothing yet
    assert evaluate(taught_further, taught_further.parent / "eval", bold) == 0


def test_the_resumed_run_has_to_start_from_the_same_planner(drives, taught_further, capsys):
    assert further(drives, taught_further, taught_further) == 2
    assert "other settings" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=nowhere"], "no checkpoint at nowhere"),
        (["init=fast_ddrive_small"], "holds another network than the one configured"),
        (["network.vla.prompt=short"], "knows other tokens than those that network.vla.schema"),
        (
            ["network.vla.stages.structured.share=0.5", "network.vla.stages.prefix_lm.share=0.5"],
            "the stage structured does not make a model prefix_lm, only causal_context",
        ),
    ],
)
def test_what_cannot_be_started_from_is_refused(
    drives, trained, tmp_path, capsys, overrides, message
):
    assert further(drives, tmp_path, trained, *overrides) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_other_pictures_are_refused_before_anything_runs(trained, tmp_path, capsys):
    assert evaluate(trained, tmp_path / "run", "sim.image_size=[84,56]") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "pictures of (56, 28) pixels" in said
    assert "say sim.image_size=[56,28]" in said
    assert not (tmp_path / "run").exists()
    env = ToyRoad(cameras=CAMERAS[:2], image_size=SIZE).env_spec
    with pytest.raises(SpecMismatchError, match=r"images\.front_right"):
        load_policy(trained / "policy", env=env)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sim.cameras=[front]"], "shows no observation.images.front_left"),
        (["sim.image_size=[84,56]"], "has shape (3, 28, 56) in the demonstrations, (3, 56, 84)"),
        (["sim.plan_steps=10"], "plans of 20 waypoints at 4 Hz; ToyRoad takes 21"),
        (["network.inputs=[observation.ego_states]"], "reads observation.ego_states, observation."),
        (["check_episodes=3"], "holds 3 drives, of which check_episodes=3"),
        (["network.vla.stages.structured.share=0.5"], "must be 1 in all, got [0.6, 0.1, 0.5]"),
        (["network.arch.text.num_attention_heads=0"], "no Qwen2.5-VL can be built from"),
        (["network.vla.prompt=long"], "no prompt 'long'; have: fast_ddrive, short, small"),
        (["network.vla.schema=long"], "no schema 'long'"),
        (["network.vla.stages.structured.stage=x"], "unknown stage 'x'"),
        (["dataset.keys=[observation.intent]"], "lacks the observations ['observation.ego"),
    ],
)
def test_what_cannot_be_trained_is_refused(drives, tmp_path, capsys, overrides, message):
    assert train(drives, tmp_path, "train.steps=3", *overrides) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_drives_without_pictures_are_refused(tmp_path, capsys):
    sim = ToyRoad()
    seen = {key: value[None].repeat(5, 0) for key, value in sim.reset(seed=0)[0].items()}
    blind = Demonstration(seen, np.zeros((5, 41), np.float32))
    path = robomimic.write(tmp_path / "blind.hdf5", [blind], env_args={})
    assert train(path, tmp_path / "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "lacks observations ['observation.images.front_left'" in said
    assert "sim.cameras=[front_left,front,front_right]" in said
    assert not (tmp_path / "run").exists()
