"""Every verb on the toy simulator, through the command line, from demonstrations to a verdict."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import pytest
import torch

from fastloop import cli, load_policy, run_folder
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.datasets import robomimic
from fastloop.policies.checkpoints import load_checkpoint
from fastloop.policies.training import Trainer
from fastloop.sims.toy import PointMass

SIM = "sim=toy"
NETWORK = [
    "network.horizon=8", "network.n_action_steps=4",
    "network.inputs=[observation.state,observation.environment_state]",
    "network.arch.n_layer=2", "network.arch.n_head=2", "network.arch.n_emb=16",
]  # fmt: skip
TRAIN = [
    SIM, *NETWORK, "train.steps=40", "train.batch_size=16", "train.warmup_steps=5", "train.lr=1e-3",
    "sampler.num_train_timesteps=20", "sampler.num_inference_steps=20", "save_every=10",
    "threads=1",
]  # fmt: skip
QUICK = ["policy.sampler.num_inference_steps=10", "accel.budget=3", "accel.union=1"]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """Recorded once."""
    folder = tmp_path_factory.mktemp("record")
    out = folder / "demos.hdf5"
    assert cli.main(
        ["record", SIM, "expert=toy", "episodes=8", "num_workers=1", f"out={out}",
         f"run_dir={folder / 'run'}"]
    ) == 0  # fmt: skip
    return out


@pytest.fixture(scope="module")
def trained(demonstrations, tmp_path_factory):
    """The run folder of a policy of debug size, trained for a moment."""
    folder = tmp_path_factory.mktemp("train") / "run"
    assert cli.main(["train", *TRAIN, f"dataset.path={demonstrations}", f"run_dir={folder}"]) == 0
    return folder


def result(folder):
    """``result.json``, which every verb writes."""
    found = json.loads((folder / "result.json").read_text())
    assert found["schema"] == 1
    assert {"verb", "config", "provenance", "metrics", "coverage"} <= set(found)
    for metric in found["metrics"].values():
        assert {"value", "unit", "n", "low", "high"} <= set(metric)
    return found


def evaluate(trained, folder, *overrides):
    """`fastloop eval` of two episodes."""
    return cli.main(
        ["eval", SIM, f"policy.checkpoint={trained / 'policy'}", f"run_dir={folder}", "episodes=2",
         "num_envs=2", "plan_batch=2", "timed_plans=3", "calibration_observations=2", "video=none",
         "policy.threads=1",
         *overrides]
    )  # fmt: skip


def test_record(demonstrations, tmp_path, capsys):
    found = result(demonstrations.parent / "run")
    success = found["metrics"]["expert_success"]
    assert success["low"] <= success["value"] <= success["high"]
    before = demonstrations.read_bytes()
    again = ["record", SIM, "expert=toy", "episodes=8", f"out={demonstrations}"]
    assert cli.main(again) == 2
    assert "exists already" in capsys.readouterr().err
    assert demonstrations.read_bytes() == before


def test_a_recording_of_another_recipe_is_not_mixed_in(tmp_path, capsys):
    out = tmp_path / "demos.hdf5"
    parts = tmp_path / "demos.hdf5.parts"
    run_folder.claim(parts, "another", "it is new")
    (parts / "0.hdf5").touch()
    command = ["record", SIM, "expert=toy", "episodes=1", f"out={out}", f"run_dir={tmp_path}"]
    assert cli.main(command) == 2
    assert "episodes of another recipe" in capsys.readouterr().err
    (parts / "0.hdf5").unlink()
    assert cli.main(command) == 0, "the other one recorded nothing"


def test_train(trained):
    found = result(trained)
    assert found["verb"] == "train"
    assert math.isfinite(found["metrics"]["loss"]["value"])
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 40
    policy = load_policy(trained / "policy", env=PointMass().env_spec)
    assert policy.spec.n_action_steps == 4
    assert list(policy.spec.inputs) == ["observation.state", "observation.environment_state"]
    assert load_checkpoint(trained / "policy").training["steps"] == 40


def test_a_finished_training_run_again_changes_nothing(trained, demonstrations):
    weights = (trained / "policy/model.safetensors").read_bytes()
    assert cli.main(["train", *TRAIN, f"dataset.path={demonstrations}", f"run_dir={trained}"]) == 0
    assert (trained / "policy/model.safetensors").read_bytes() == weights


def test_training_goes_on_after_ctrl_c_as_if_nothing_had_been(
    trained, demonstrations, tmp_path, monkeypatch, capfd
):
    command = ["train", *TRAIN, f"dataset.path={demonstrations}", f"run_dir={tmp_path / 'run'}"]
    advance = Trainer.advance

    def interrupted(trainer):
        if trainer.step == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(trainer)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    assert cli.main(command) == 130
    assert f"run_dir={tmp_path / 'run'}" in capfd.readouterr().out
    assert not (tmp_path / "run/policy").exists()
    monkeypatch.undo()
    assert cli.main(command) == 0
    ours, theirs = (folder / "policy/model.safetensors" for folder in (tmp_path / "run", trained))
    assert ours.read_bytes() == theirs.read_bytes()


def test_training_goes_on_after_a_kill_as_if_nothing_had_been(trained, demonstrations, tmp_path):
    command = ["train", *TRAIN, f"dataset.path={demonstrations}", f"run_dir={tmp_path / 'run'}"]
    state = tmp_path / "run/trainer.pt"
    process = subprocess.Popen([sys.executable, "-m", "fastloop.cli", *command])
    try:
        end = time.monotonic() + 60
        while not state.exists():
            assert time.monotonic() < end
            assert process.poll() in (None, 0)
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert cli.main(command) == 0
    ours, theirs = (folder / "policy/model.safetensors" for folder in (tmp_path / "run", trained))
    assert ours.read_bytes() == theirs.read_bytes()


def test_lines_of_undone_training_are_forgotten(trained, demonstrations, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    log = folder / "metrics.jsonl"
    before = log.read_text()
    log.write_text(before + '{"stage": "trainer", "step": 1000000, "loss": 1.0}\n{"stage": "tr')
    command = ["train", *TRAIN, f"dataset.path={demonstrations}", f"run_dir={folder}"]
    assert cli.main(command) == 0
    assert log.read_text() == before


@pytest.mark.parametrize(
    "change", ["sampler.prediction_type=sample", "network.arch.n_layer=1", "train.seed=5"]
)
def test_another_training_is_not_resumed(trained, demonstrations, tmp_path, capsys, change):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = (folder / "trainer.pt").read_bytes()
    command = ["train", *TRAIN, f"dataset.path={demonstrations}", f"run_dir={folder}", change]
    assert cli.main(command) == 2
    assert "other settings" in capsys.readouterr().err
    assert (folder / "trainer.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.arch.n_emb=15"], "no transformer can be built"),
        (["+network.arch.layers=3"], "layers"),
        (["+network.arch.n_cond_layers=x"], "no transformer can be built"),
        (["network.n_action_steps=9"], "n_action_steps"),
        (["sampler.kind=euler"], "choose one of ddpm, ddim, dpm_solver, flow"),
        (["sim=pusht"], "PushT"),
        (["device=tpu"], "cannot train on device 'tpu'"),
        (["network.kind=mlp"], "have: transformer, unet"),
        (["vision.crop=[3,3]"], "crop_shape, num_keypoints"),
        (["network.past_steps=2"], "past_steps=2 of 2 observation steps"),
        (["network.contexts=[1,3]"], "contexts of [3] frames cannot be cut from 2"),
        (["network.stride=0"], "stride of at least 1 tick"),
        (["network.spacing=even"], "choose from uniform, mixed"),
    ],
)  # fmt: skip
def test_training_that_cannot_be_is_refused_before_it_starts(
    demonstrations, tmp_path, capsys, overrides, message
):
    command = ["train", *TRAIN, f"dataset.path={demonstrations}", f"run_dir={tmp_path / 'run'}"]
    assert cli.main([*command, *overrides]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert not (tmp_path / "run/trainer.pt").exists()


@pytest.mark.parametrize(
    "network",
    [
        ["sampler.kind=flow", *NETWORK],
        [
            "network=unet", "network.horizon=8", "network.n_action_steps=4",
            "network.arch.down_dims=[8,16]", "network.arch.n_groups=4", "~network.arch.kernel_size",
        ],
        [
            "network=unet_cross", "network.horizon=8", "network.n_action_steps=4",
            "network.inputs=[observation.state,observation.environment_state]",
            "network.arch.down_dims=[8,16]", "network.arch.n_groups=4", "network.arch.n_emb=8",
            "network.n_obs_steps=4", "network.stride=3", "network.spacing=mixed",
            "network.past_steps=2", "network.contexts=[1,2,4]",
        ],
    ],
    ids=["flow", "unet", "unet_cross"],
)  # fmt: skip
def test_other_policies_train_and_run(demonstrations, tmp_path, network):
    folder = tmp_path / "run"
    base = [override for override in TRAIN if override not in NETWORK]
    command = ["train", *base, *network, f"dataset.path={demonstrations}", f"run_dir={folder}"]
    assert cli.main([*command, "train.steps=10"]) == 0
    steps = "policy.sampler.num_inference_steps=4"
    assert evaluate(folder, tmp_path / "eval", "accel=none", steps) == 0
    assert result(tmp_path / "eval")["coverage"]["complete"]
    if "network=unet_cross" in network:
        assert load_policy(folder / "policy").spec.lags == (7, 4, 1, 0)
        accel = ["accel.budget=2", steps]
        for kind in ("exact", "uniform", "bac"):
            assert evaluate(folder, tmp_path / kind, f"accel={kind}", *accel) == 0


def test_a_horizon_that_the_unet_cannot_halve_is_refused(demonstrations, tmp_path, capsys):
    base = [override for override in TRAIN if override not in NETWORK]
    odd = ["network=unet", "network.horizon=6", "network.n_action_steps=4"]
    command = ["train", *base, *odd, f"dataset.path={demonstrations}", f"run_dir={tmp_path}"]
    assert cli.main(command) == 2
    assert "multiple of 4" in capsys.readouterr().err


def test_training_checks_itself_in_closed_loop(demonstrations, tmp_path):
    folder = tmp_path / "run"
    command = ["train", *TRAIN, f"dataset.path={demonstrations}", f"run_dir={folder}"]
    assert cli.main([*command, "train.steps=10", "check_every=10", "check_episodes=2"]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (check,) = [line for line in lines if "success" in line]
    assert 0 <= check["low"] <= check["success"] <= check["high"] <= 1

    (timing,) = folder.glob("checks/*/10/timing.jsonl")
    plans = timing.read_text()
    (folder / f"{timing.parts[-3]}.pt").unlink()
    assert cli.main([*command, "train.steps=10", "check_every=10", "check_episodes=2"]) == 0
    assert timing.read_text() != plans, "weights that were trained anew are checked anew"


def test_a_policy_that_is_there_is_not_overwritten(demonstrations, tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "config.json").write_text("{}")
    command = ["train", *TRAIN, f"dataset.path={demonstrations}", "train.steps=2"]
    runs = [f"run_dir={tmp_path / 'run'}", f"out={out}"]
    assert cli.main([*command, *runs]) == 2
    assert "exists already; remove it, or choose another out=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    shutil.rmtree(out)
    for _ in range(2):  # the same run may write it again
        assert cli.main([*command, *runs]) == 0
    theirs = tmp_path / "theirs"
    shutil.copytree(out, theirs)
    assert cli.main([*command, runs[0], f"out={theirs}"]) == 2, "but nothing else"
    assert load_checkpoint(out).training["steps"] == 2
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode


def test_demonstrations_of_another_simulator_are_pointed_out(demonstrations, tmp_path, capsys):
    command = ["train", *TRAIN, f"dataset.path={demonstrations}", "train.steps=2"]
    assert cli.main([*command, f"run_dir={tmp_path / 'own'}"]) == 0
    assert "was recorded in" not in capsys.readouterr().out
    with h5py.File(demonstrations) as file:
        told = json.loads(file["data"].attrs["env_args"])
    elsewhere = tmp_path / "elsewhere.hdf5"
    shutil.copy(demonstrations, elsewhere)
    with h5py.File(elsewhere, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({**told, "env_name": "fastloop.sims.far.Far"})
    command = ["train", *TRAIN, f"dataset.path={elsewhere}", "train.steps=2"]
    assert cli.main([*command, f"run_dir={tmp_path / 'other'}"]) == 0
    assert "was recorded in fastloop.sims.far.Far" in capsys.readouterr().out
    for told in ("", "none", "null", '{"type": "fastloop"}'):
        with h5py.File(elsewhere, "a") as file:
            file["data"].attrs["env_args"] = told
        assert robomimic.recorded_in(elsewhere) == ""


def test_eval_compares_the_accelerated_policy_with_the_plain_one(trained, tmp_path, capfd):
    assert evaluate(trained, tmp_path, *QUICK) == 0
    found = result(tmp_path)
    for name in ("speedup", "success_difference"):
        metric = found["metrics"][name]
        assert metric["low"] <= metric["value"] <= metric["high"], name
    assert found["metrics"]["success_difference"]["n"] == 2
    assert found["coverage"]["complete"]
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    links = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"' >]+)|url\(([^)]+)\)|@import", page)
    assert not [link for pair in links for link in pair if re.match(r"\w+:|//", link)
                and not link.startswith("data:")], "it opens offline"  # fmt: skip
    assert capfd.readouterr().out.rstrip().endswith(str(tmp_path)), "the folder is printed last"


def test_eval_says_how_predictable_actions_are(trained, demonstrations, tmp_path, capfd):
    assert evaluate(trained, tmp_path, "accel=none", f"demonstrations={demonstrations}") == 0
    found = result(tmp_path)["metrics"]
    assert found["action_prediction_error/plain"]["value"] > 0
    assert found["action_prediction_error/plain"]["n"] > 0
    assert found["action_predictability/plain"]["value"] > 0
    line = "Error of an action foretold from the two before"
    assert line in capfd.readouterr().out
    assert line in (tmp_path / "report.html").read_text()
    assert evaluate(trained, tmp_path, "accel=none") == 0, "demonstrations change no episode"
    assert "action_predictability/plain" not in result(tmp_path)["metrics"]


def test_eval_run_again_repeats_no_episode_and_says_the_same(trained, tmp_path):
    assert evaluate(trained, tmp_path, *QUICK) == 0
    logs = {path: path.read_bytes() for path in tmp_path.glob("*/episodes.jsonl")}
    assert len(logs) == 2
    assert evaluate(trained, tmp_path, *QUICK) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("*/episodes.jsonl")} == logs


@pytest.mark.parametrize("num_envs", [1, 2])
def test_eval_says_the_same_for_any_number_of_simulators(trained, tmp_path, num_envs):
    logs = []
    for count in (num_envs, 2):
        folder = tmp_path / f"{len(logs)}"
        assert evaluate(trained, folder, "accel=none", QUICK[0], f"num_envs={count}") == 0
        lines = (folder / "plain/episodes.jsonl").read_text().splitlines()
        logs.append([line for line in lines if '"seed"' in line])
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["chunking=ensemble"],
        ["clock.kind=replay", "clock.latency_ms=[50,350,900]"],
        ["clock.kind=replay", "clock.latency_ms=[250]", "chunking=ensemble"],
        ["clock.kind=replay", "clock.latency_ms=[250]", "chunking=real_time"],
        ["accel=none", "chunking=real_time", "real_time.form=guidance", "clock.kind=wall"],
        ["chunking=real_time", "policy.samples=2", "policy.selector=coherence"],
        ["clock.kind=wall"],
        ["policy.sampler.kind=ddim", "policy.n_action_steps=1"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_eval_in_other_ways(trained, tmp_path, overrides):
    """Plans that come late, even later than their end, and plans that are averaged."""
    assert evaluate(trained, tmp_path, *QUICK, *overrides) == 0
    assert result(tmp_path)["coverage"]["complete"]


def test_calibrate_makes_a_plan_that_eval_takes(trained, tmp_path, capfd):
    checkpoint = f"policy.checkpoint={trained / 'policy'}"
    folder = tmp_path / "calibrate"
    command = [
        "calibrate",
        SIM,
        checkpoint,
        f"run_dir={folder}",
        "observations=3",
        "policy.threads=1",
        *QUICK,
    ]
    assert cli.main(command) == 0
    assert f"accel.plan={folder / 'plan.json'}" in capfd.readouterr().out
    plan = CachePlan.load(folder / "plan.json")
    assert (plan.steps, plan.provenance.budget, plan.provenance.observations) == (10, 3, 3)
    page = (folder / "plan.html").read_text()
    for branch in plan.branches:
        assert branch.name in page
    assert page.count("<circle") == plan.computed
    assert not re.findall(r"(?:src|href)=", page)
    found = result(folder)
    assert found["metrics"]["reused"]["value"] == plan.reuse_fraction
    assert 0 <= found["metrics"]["stability"]["value"] <= 1

    used = f"accel.plan={folder / 'plan.json'}"
    assert evaluate(trained, tmp_path / "eval", QUICK[0], used) == 0
    assert result(tmp_path / "eval")["coverage"]["complete"]
    assert evaluate(trained, tmp_path / "other", used) == 2
    assert "its denoise steps 10, the policy's 20" in capfd.readouterr().err


def test_calibrate_refines_a_plan(trained, tmp_path, capfd):
    command = ["calibrate", SIM, f"policy.checkpoint={trained / 'policy'}", f"run_dir={tmp_path}"]
    command += ["policy.threads=1", "observations=2", *QUICK]
    search = ["refine.evaluations=12", "refine.observations=3", "refine.held_out=2"]
    assert cli.main([*command, *search]) == 0
    made = CachePlan.load(tmp_path / "plan.json").provenance
    assert made.algorithm == "bac"
    found = result(tmp_path)["metrics"]
    before, after = (found[f"action_error_{name}"]["value"] for name in ("before", "after"))
    assert after < before
    assert (made.refined, made.error_before, made.error_after) == (12, before, after)
    told = capfd.readouterr().out
    assert f"action error {before:.1e} -> {after:.1e}" in told
    assert "after 12 plan evaluations" in told
    for nonsense, message in (
        (["refine.evaluations=-1"], "refine.evaluations must be 0 or more, got -1"),
        (["refine.error=1e-6"], "do nothing without a search"),
        ([*search, "refine.budget=1"], "1 branch evaluations does not fit"),
    ):
        assert cli.main([*command, *nonsense]) == 2
        assert message in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["uniform", "unified"])
def test_calibrate_of_other_kinds(trained, tmp_path, kind):
    command = ["calibrate", SIM, f"policy.checkpoint={trained / 'policy'}", f"run_dir={tmp_path}"]
    command += ["policy.threads=1"]
    assert cli.main([*command, f"accel={kind}", "accel.budget=3", "observations=1", QUICK[0]]) == 0
    assert CachePlan.load(tmp_path / "plan.json").provenance.algorithm == kind
    assert "<svg" in (tmp_path / "plan.html").read_text()


def test_an_accelerator_that_would_save_nothing_is_told(trained, tmp_path, capsys):
    assert evaluate(trained, tmp_path, QUICK[0], "accel=uniform", "accel.budget=10") == 2
    assert "engaged 0 %" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["chunking=magic"], "unknown chunking 'magic'; have: receding, ensemble, real_time"),
        (["chunking=real_time", "real_time.form=x"], "unknown real_time.form 'x'"),
        (["chunking=real_time", "real_time.form=guidance"], "reuses of an earlier step has none"),
        (["clock.kind=sand"], "unknown clock 'sand'; have: frozen, replay, measured, wall"),
        (["clock.kind=replay"], ""),
        (["video=always"], ""),
        (["num_envs=0"], "num_envs must be 1 or more"),
        (["sim=pusht"], "cannot drive PushT"),
        (["policy.device=tpu"], "device 'tpu'"),
        (["policy.threads=-1"], "threads must be 0"),
        (["policy.n_action_steps=0"], "n_action_steps"),
        (["policy.n_action_steps=20"], "n_action_steps"),
        (["policy.sampler.num_inference_steps=21"], "trained on 20 steps"),
        (["policy.sampler.kind=euler"], "choose one of ddpm"),
        (["demonstrations=nowhere.hdf5"], "nowhere.hdf5 does not exist"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(trained, tmp_path, capsys, overrides, message):
    assert evaluate(trained, tmp_path / "run", *QUICK, *overrides) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*/episodes.jsonl"))


def test_acceleration_can_be_turned_off_from_outside(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert evaluate(trained, tmp_path, *QUICK) == 0
    assert [path.parent.name for path in tmp_path.glob("*/episodes.jsonl")] == ["plain"]


def test_what_a_simulator_leaves_out_is_told_and_fails_unless_allowed(
    trained, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(PointMass, "left_out", ["scene 7 has no map"])
    monkeypatch.setattr(PointMass, "notes", ["scene 8 is parked"])
    assert evaluate(trained, tmp_path, *QUICK) == 1
    told = capfd.readouterr().out
    assert "scene 7 has no map" in told
    assert "scene 8 is parked" in told
    assert evaluate(trained, tmp_path, *QUICK, "allow_partial=true") == 0


def test_no_episode_counts_twice(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(PointMass, "distinct_seeds", 1)
    assert evaluate(trained, tmp_path, *QUICK, "episodes=2") == 2
    assert "1 different episodes, and 2 are asked for: say episodes=1" in capfd.readouterr().err


def test_info_says_what_a_policy_holds_and_converts_it(trained, tmp_path, capfd):
    checkpoint = trained / "policy"
    out = tmp_path / "converted"
    command = ["info", f"ckpt={checkpoint}", f"run_dir={tmp_path / 'run'}", "keys=true"]
    assert cli.main([*command, f"convert={out}"]) == 0
    printed = capfd.readouterr().out
    assert "transformer" in printed
    assert "model.decoder.layers.1.linear2.weight [16, 64]" in printed
    found = result(tmp_path / "run")
    assert found["metrics"]["parameters"]["value"] == load_checkpoint(checkpoint).parameters
    ours, theirs = load_checkpoint(out), load_checkpoint(checkpoint)
    assert ours.training["converted_from"]["sha256"] == theirs.digest
    assert all(torch.equal(value, theirs.state_dict[key]) for key, value in ours.state_dict.items())


def test_info_of_a_damaged_policy(trained, tmp_path, capsys):
    folder = tmp_path / "policy"
    shutil.copytree(trained / "policy", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert cli.main(["info", f"ckpt={folder}", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "model.safetensors is truncated or damaged" in capsys.readouterr().err
