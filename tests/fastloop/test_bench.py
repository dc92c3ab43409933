"""`fastloop bench denoise` on a policy of debug size: what it measures, and when it is silent."""

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch

from fastloop import cli
from fastloop.accel.apply import accelerate
from fastloop.accel.block_cache import CachedLoop
from fastloop.accel.config import AccelConfig
from fastloop.accel.graph import Graph
from fastloop.accel.kernels.ffn import reference
from fastloop.bench import parity, success
from fastloop.bench.arms import BenchArm, arm_names
from fastloop.bench.chunks import Chunks
from fastloop.bench.config import ArmConfig, BenchConfig
from fastloop.bench.parity import Parity, measure_parity
from fastloop.bench.stages import measure_stages
from fastloop.config import PolicyConfig
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.rng import Rng
from fastloop.setup import set_up
from fastloop.sims import findings

NETWORKS = {
    "transformer": ["network.arch.n_layer=2", "network.arch.n_head=2", "network.arch.n_emb=16"],
    "unet": ["network=unet", "network.arch.down_dims=[8,16]", "network.arch.n_groups=4",
             "~network.arch.kernel_size"],
}  # fmt: skip
ARMS = [
    "arms.bac.accel.budget=4", "arms.bac.accel.union=1", "arms.uniform.accel.budget=4",
    "arms.refined.accel.budget=4", "arms.refined.accel.union=1", "arms.refined.refine.held_out=2",
    "arms.refined.refine.evaluations=9", "arms.refined.refine.observations=4",
    "arms.zeus20.accel.budget=8", "~arms.unified", "~arms.bac_taylor", "~arms.bac_free",
    "~arms.zeus40", "~arms.ddim16",
]  # fmt: skip
SIM = {"_target_": "fastloop.sims.toy.PointMass"}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A function: the name of a network to the folder of a policy, trained for a moment."""
    root = tmp_path_factory.mktemp("policies")
    demos = root / "demos.hdf5"
    recorded = ["record", "sim=toy", "expert=toy", "episodes=4", "num_workers=1", f"out={demos}"]
    assert cli.main([*recorded, f"run_dir={root / 'record'}"]) == 0

    def trained(network):
        folder = root / network
        if not folder.exists():
            command = [
                "train", "sim=toy", *NETWORKS[network], "network.horizon=8", "threads=1",
                "network.n_action_steps=4", "train.steps=20", "train.batch_size=16",
                "network.inputs=[observation.state,observation.environment_state]",
                "sampler.num_train_timesteps=20", "sampler.num_inference_steps=20",
                f"dataset.path={demos}", f"run_dir={folder}",
            ]  # fmt: skip
            assert cli.main(command) == 0
        return folder / "policy"

    return trained


@pytest.fixture(scope="module")
def policy(train):
    return train("transformer")


def bench(policy, folder, *overrides):
    return cli.main(
        ["bench", "denoise", "sim=toy", f"policy.checkpoint={policy}", f"run_dir={folder}",
         "policy.device=cpu", "policy.threads=1", "repeats=3", "observations=3",
         "calibration_observations=2", "episodes=2", "num_envs=2", "plan_batch=2",
         "success_arms=[bac]", *overrides]
    )  # fmt: skip


def metrics(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


def line(printed, arm):
    """The row of an arm in the first table that has one."""
    return next(row for row in printed.splitlines() if re.match(rf"\W*{arm}\b", row))


def test_every_arm_is_measured(policy, tmp_path, capfd):
    assert bench(policy, tmp_path, *ARMS) == 0
    found = metrics(tmp_path)
    for arm in ("exact", "uniform", "bac", "refined", "zeus20", "ddim10"):
        speedup = found[f"speedup_{arm}"]
        assert 0 < speedup["low"] <= speedup["value"] <= speedup["high"]
        assert speedup["n"] == 3
        assert found[f"parity_{arm}"]["value"] <= 1e-9
        mean, largest = (found[f"action_error_{what}_{arm}"] for what in ("mean", "max"))
        assert mean["value"] <= largest["value"]
        assert mean["n"] == 3
    assert found["action_error_max_exact"]["value"] < 1e-5 < found["action_error_max_bac"]["value"]
    flops = [found[f"flops_{name}"]["value"] for name in ("dense", "exact", "zeus20", "bac")]
    assert flops == sorted(flops, reverse=True)
    assert found["reused_uniform"]["value"] == 0.75
    evaluations = [found[f"evaluations_{a}"]["value"] for a in ("published", "zeus20", "ddim10")]
    assert evaluations == [20, 8, 10]
    assert found["flops_refined"]["value"] <= found["flops_exact"]["value"]
    assert found["reused_refined"]["value"] == found["reused_bac"]["value"], "the same budget"
    assert found["success_difference_bac"]["n"] == 2
    page = (tmp_path / "bench.html").read_text()
    assert page.count("<svg") == 2
    links = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"' >]+)|url\(([^)]+)\)|@import", page)
    assert not links, "it opens offline"
    printed = capfd.readouterr().out
    assert "same answer" in line(printed, "exact")
    assert "success not tested" in line(printed, "uniform")
    assert "inconclusive" in line(printed, "bac"), "two pairs show nothing"
    assert printed.rstrip().endswith(str(tmp_path)), "the folder is printed last"


def test_a_red_parity_gate_says_no_speed_up(policy, tmp_path, monkeypatch, capfd):
    reference = parity.reference_loop

    def wrong(stack, sampler, plan, *chunk):
        answer = reference(stack, sampler, plan, *chunk)
        return answer + 1e-6 if plan.provenance.algorithm == "bac" else answer

    monkeypatch.setattr(parity, "reference_loop", wrong)
    assert bench(policy, tmp_path, *ARMS) == 1
    printed = capfd.readouterr().out
    assert "parity FAILED" in line(printed, "bac")
    assert not re.search(r"\d\d?x", line(printed, "bac"))
    found = metrics(tmp_path)
    assert found["speedup_bac"]["value"] is None
    assert found["latency_p50_bac"]["value"] is None
    assert found["speedup_exact"]["value"] > 0
    assert "parity FAILED" in (tmp_path / "bench.html").read_text()
    assert not (tmp_path / "episodes").exists(), "no episode is spent on it"


def test_an_inferior_arm_says_no_speed_up(policy, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(findings, "non_inferiority", lambda *_: "inferior")
    assert bench(policy, tmp_path, *ARMS) == 1
    printed = capfd.readouterr().out
    assert "INFERIOR" in line(printed, "bac")
    found = metrics(tmp_path)
    assert found["speedup_bac"]["value"] is None
    assert found["success_difference_bac"]["n"] == 2
    assert found["speedup_uniform"]["value"] > 0


@pytest.mark.parametrize("value", [2e-9, math.nan])
def test_the_gate_is_red_for_what_is_no_rounding(value):
    assert Parity(1e-10, 1e-6).holds
    assert not Parity(value, 1e-6).holds
    assert not Parity(1e-10, max(value, 2e-3)).holds


def test_without_episodes_no_success_is_claimed(policy, tmp_path, capfd):
    assert bench(policy, tmp_path, *ARMS, "episodes=0", "batch=3") == 0
    printed = capfd.readouterr().out
    for arm in ("uniform", "bac", "zeus20", "ddim10"):
        assert "success not tested" in line(printed, arm)
    assert "same answer" in line(printed, "exact")
    assert not (tmp_path / "episodes").exists()


def test_a_bench_run_again_repeats_no_episode_and_keeps_its_plans(policy, tmp_path, capfd):
    assert bench(policy, tmp_path, *ARMS) == 0
    kept = [*tmp_path.glob("episodes/*/episodes.jsonl"), *tmp_path.glob("plans/*.json")]
    before = {path: path.read_bytes() for path in kept}
    assert len(before) == 2 + 6
    assert bench(policy, tmp_path, *ARMS) == 0
    assert {path: path.read_bytes() for path in kept} == before
    assert bench(policy, tmp_path, *ARMS, "episodes=3") == 2, "no pairs are added to a test"
    assert "another configuration" in capfd.readouterr().err


def test_ctrl_c_leaves_a_partial_result(policy, tmp_path, monkeypatch, capfd):
    run = success.run_closed_loop

    def interrupted(*args, **kwargs):
        return dataclasses.replace(run(*args, **kwargs), interrupted=True)

    monkeypatch.setattr(success, "run_closed_loop", interrupted)
    assert bench(policy, tmp_path, *ARMS) == 130
    assert "goes on from here" in capfd.readouterr().out
    assert metrics(tmp_path)["speedup_exact"]["value"] > 0


def test_a_unet_is_measured_likewise(train, tmp_path):
    arms = [arm for arm in ARMS if "zeus" not in arm]
    without = ["~arms.zeus40", "~arms.zeus20", "episodes=0"]
    assert bench(train("unet"), tmp_path, *arms, *without) == 0
    found = metrics(tmp_path)
    assert found["flops_bac"]["value"] < found["flops_exact"]["value"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["success_arms=[magic]"], "success_arms names ['magic']; have: exact"),
        (["repeats=0"], "repeats must be at least 1"),
        (["episodes=-1"], "episodes must be 0"),
        (["margin=5"], "margin is a fraction"),
        (["num_envs=0"], "num_envs must be 1 or more"),
        (["+arms={published: {}}"], "cannot be called 'published'"),
        (["+arms={a/b: {}}"], "cannot be called 'a/b'"),
        (["+arms={mine: {accel: {kind: magic}}}"], "unknown accelerator 'magic'"),
        (["+arms={mine: {accel: {budgt: 3}}}"], "budgt"),
        (["arms.mine.accel.kind=bac"], "unknown setting 'arms.mine'; have: exact, uniform"),
    ],
)
def test_a_mistake_is_told_before_any_work(policy, tmp_path, capsys, overrides, message):
    assert bench(policy, tmp_path / "run", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_arm_that_cannot_be_is_named(policy, tmp_path, capsys):
    assert bench(policy, tmp_path, "arms.uniform.accel.budget=20") == 2
    told = capsys.readouterr().err
    assert "arm 'uniform'" in told
    assert "engaged 0 %" in told
    assert "~arms.uniform" in told


def test_acceleration_turned_off_is_refused(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert bench(policy, tmp_path) == 2
    assert "unset it" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["magic"], ["sim=toy"], ["~arms.bac"]])
def test_the_task_comes_first(words, capsys):
    assert cli.main(["bench", *words]) == 2
    assert "have: `fastloop bench denoise`, `fastloop bench decode`" in capsys.readouterr().err


@pytest.fixture(scope="module")
def setup(policy):
    made = set_up(PolicyConfig(checkpoint=str(policy), threads=1), SIM)
    yield made
    made.sim.close()


@pytest.mark.parametrize("kind", ["none", "exact", "uniform", "zeus"])
def test_watched_plans_are_the_same_plans(setup, kind, monkeypatch):
    fast = accelerate(setup.policy, AccelConfig(kind, budget=8))
    history = setup.observations(2, 0)
    planned, plan = [], DiffusionPolicy.plan

    def recorded(policy, history, *, rng, budget=None):
        planned.append(plan(policy, history, rng=rng))
        return planned[-1]

    monkeypatch.setattr(DiffusionPolicy, "plan", recorded)
    stages = measure_stages(fast, history, repeats=2)
    expected = plan(fast, history, rng=Rng.for_envs(0, [2, 2], history.ticks.tolist()))
    torch.testing.assert_close(planned[-1].actions, expected.actions, rtol=0, atol=0)
    kinds = {"none": {"network"}, "exact": {"sa", "ca", "ffn"}, "uniform": {"sa", "ca", "ffn"},
             "zeus": {"network"}}[kind]  # fmt: skip
    assert kinds <= set(stages)
    assert ("reuse" in stages) == (kind in ("uniform", "zeus"))
    assert all(ms > 0 for ms in stages.values())


def test_a_recorded_chain_is_one_stage(setup, fake_recorder):
    recorder = fake_recorder()
    fast = accelerate(setup.policy, AccelConfig("uniform", budget=8))
    fast.loop.fast.graph = Graph(fast.loop.fast.chain, recorder)
    stages = measure_stages(fast, setup.observations(2, 0), repeats=2)
    assert set(stages) == {"observations", "graph", "rest"}
    assert (recorder.captured, recorder.replayed) == (1, 3)


def test_the_fused_run_is_timed_as_reuse(setup, monkeypatch):
    fast = accelerate(setup.policy, AccelConfig("uniform", budget=8, kernels=["reused_run"]))
    runs = []
    kernel = fast.loop.fast.fused.kernel
    monkeypatch.setattr(
        fast.loop.fast.fused, "kernel", lambda *run: runs.append(run[-2:]) or kernel(*run)
    )
    stages = measure_stages(fast, setup.observations(1, 0), repeats=1)
    assert stages["reuse"] > 0
    assert runs


def test_arms_for_gpus_are_left_out_elsewhere(setup):
    arms = {"exact": ArmConfig(), "exact_eager": ArmConfig(cuda=True)}
    config = BenchConfig(arms=arms)
    assert arm_names(config, setup.denoiser) == ["exact"]
    on_cuda = SimpleNamespace(sampler=SimpleNamespace(timesteps=SimpleNamespace(is_cuda=True)))
    assert arm_names(config, on_cuda) == ["exact", "exact_eager"]


def test_the_gate_holds_kernels_against_the_network_without_them(setup, monkeypatch):
    chunks = Chunks.draw(setup, 1, 0, 0)
    config = AccelConfig("exact", kernels=["ffn"])
    arm = BenchArm("exact", accelerate(setup.policy, config), config, exact=True)
    assert measure_parity(arm, chunks).holds
    feed_forward = reference.feed_forward
    monkeypatch.setattr(reference, "feed_forward", lambda *args: 1.001 * feed_forward(*args))
    assert not measure_parity(arm, chunks).holds


def test_why_a_chain_is_no_graph_is_told(policy, fake_recorder, tmp_path, monkeypatch, capfd):
    broken = fake_recorder(RuntimeError("operation not permitted when stream is capturing"))
    made = CachedLoop.__init__

    def recorded(self, *args, **kwargs):
        made(self, *args, **kwargs | {"recorder": broken})

    monkeypatch.setattr(CachedLoop, "__init__", recorded)
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        code = bench(policy, tmp_path, "episodes=0", *ARMS)
    assert code == 0
    found = metrics(tmp_path)
    assert found["replayed_exact"]["value"] == 0
    assert "replayed_published" not in found
    printed = " ".join(capfd.readouterr().out.split())
    assert "exact: no CUDA graph: the CUDA graph of" in printed
    assert "not permitted when stream is capturing" in printed


def test_a_loop_that_is_off_is_seen(setup):
    """Not the reference is wrong here, but the loop that is timed."""
    chunks = Chunks.draw(setup, 1, 0, 0)
    arm = BenchArm("exact", setup.policy, AccelConfig("exact"), exact=True)
    assert measure_parity(arm, chunks).holds
    loop = setup.policy.loop

    def off(noise, cond):
        sample, report = loop(noise, cond)
        return sample + 0.01, report

    wrong = dataclasses.replace(arm, policy=setup.policy.with_loop(off))
    assert not measure_parity(wrong, chunks).holds
