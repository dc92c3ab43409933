"""The best of several plans through the verbs: evaluated, calibrated, timed, and refused."""

import json

import pytest
import torch

from fastloop import cli
from fastloop.accel.apply import AcceleratedLoop
from fastloop.accel.config import AccelConfig
from fastloop.accel.samplers import SamplerConfig
from fastloop.arms import make_arms
from fastloop.config import EvalConfig, PolicyConfig
from fastloop.policies.best_of import BestOf
from fastloop.policies.checkpoints import Checkpoint
from fastloop.policies.checkpoints.native import save
from fastloop.policies.diffusion.model import ACTION, DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.selectors import Medoid, PastConsistency
from fastloop.setup import set_up
from fastloop.sims.toy import PointMass

SIM = {"_target_": "fastloop.sims.toy.PointMass", "max_steps": 12}
FRAMES, HORIZON = 3, 8


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The folder of a policy of random weights that remembers two ticks."""
    torch.manual_seed(0)
    env = PointMass().env_spec
    arch = {
        "input_dim": 2, "output_dim": 2, "horizon": HORIZON, "n_obs_steps": FRAMES, "cond_dim": 6,
        "n_layer": 1, "n_head": 2, "n_emb": 16, "causal_attn": True,
        "time_as_cond": True, "n_cond_layers": 0,
    }  # fmt: skip
    widths = {key: spec.shape[0] for key, spec in env.observations.items()}
    normalizer = LinearNormalizer({**widths, ACTION: 2})
    model = DiffusionModel(TransformerForDiffusion(**arch), normalizer, tuple(widths))
    made = Checkpoint(
        kind="fastloop", network="transformer", arch=arch, state_dict=model.state_dict(),
        sampler=SamplerConfig("ddpm", 10, 10), inputs=env.observations, action_dim=2,
        n_obs_steps=FRAMES, horizon=HORIZON, n_action_steps=2, action=env.action,
        control_hz=env.control_hz,
    )  # fmt: skip
    return save(tmp_path_factory.mktemp("policy") / "policy", made)


def evaluate(policy, folder, *overrides):
    """`fastloop eval` of three episodes."""
    return cli.main(
        ["eval", "sim=toy", "sim.max_steps=12", f"policy.checkpoint={policy}", f"run_dir={folder}",
         "episodes=3", "num_envs=2", "plan_batch=4", "timed_plans=3", "calibration_observations=2",
         "video=none", "policy.threads=1", "accel=none", *overrides]
    )  # fmt: skip


def episodes(folder, arm="plain"):
    lines = (folder / arm / "episodes.jsonl").read_text().splitlines()[1:]
    return sorted((json.loads(line) for line in lines), key=lambda episode: episode["seed"])


def test_eval_draws_several_and_says_so(policy, tmp_path, capfd):
    assert evaluate(policy, tmp_path / "past", "policy.samples=4", "policy.selector=past") == 0
    for episode in episodes(tmp_path / "past"):
        accel = episode["accel"]
        assert accel["candidates"] == 4 * episode["plans"]
        # The first plan of an episode knows no past; the second one, 2 ticks later, all of it.
        assert accel["degraded"] == {"its past is not known yet": 1}
    assert "candidates per plan" in (tmp_path / "past/report.html").read_text()
    assert evaluate(policy, tmp_path / "one", "policy.samples=1") == 0
    one, best = episodes(tmp_path / "one"), episodes(tmp_path / "past")
    assert [e["total_reward"] for e in one] != [e["total_reward"] for e in best]
    assert one[0]["accel"]["candidates"] == 0


@pytest.mark.parametrize("selector", ["past_partial", "coherence", "medoid"])
def test_how_many_run_at_once_does_not_matter(policy, tmp_path, selector):
    wanted = ["policy.samples=2", f"policy.selector={selector}"]
    assert evaluate(policy, tmp_path / "two", *wanted) == 0
    assert evaluate(policy, tmp_path / "one", *wanted, "num_envs=1") == 0
    assert episodes(tmp_path / "one") == episodes(tmp_path / "two")


def test_accelerated_arms_choose_too(policy, tmp_path):
    setup = set_up(
        PolicyConfig(checkpoint=str(policy), threads=1, samples=3, selector="medoid"), SIM
    )
    assert isinstance(setup.policy, BestOf)
    assert isinstance(setup.denoiser, DiffusionPolicy)
    assert setup.denoises
    accel = AccelConfig("bac", budget=3, union=1)
    config = EvalConfig(PolicyConfig(str(policy)), accel, calibration_observations=2)
    made = make_arms(config, setup, tmp_path)
    setup.sim.close()
    for name, accelerated in (("plain", False), ("bac", True)):
        assert isinstance(made[name], BestOf)
        assert (made[name].samples, made[name].selector) == (3, Medoid())
        assert isinstance(made[name].loop, AcceleratedLoop) == accelerated


def test_eval_of_an_accelerated_choice(policy, tmp_path):
    wanted = ["accel=bac", "accel.budget=3", "accel.union=1", "policy.samples=3"]
    assert evaluate(policy, tmp_path, *wanted) == 0
    assert episodes(tmp_path, "bac")[0]["accel"]["reused"] > 0
    assert episodes(tmp_path, "bac")[0]["accel"]["candidates"] > 0


def test_calibrate_is_about_the_policy_inside(policy, tmp_path):
    command = [
        "calibrate", "sim=toy", f"policy.checkpoint={policy}", f"run_dir={tmp_path}",
        "policy.samples=3", "policy.threads=1", "observations=3", "accel.budget=3",
        "accel.union=1",
    ]  # fmt: skip
    assert cli.main(command) == 0
    wanted = ["accel=bac", f"accel.plan={tmp_path / 'plan.json'}", "policy.samples=3"]
    assert evaluate(policy, tmp_path / "eval", *wanted) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.selector=luck"], "unknown selector 'luck'; choose one of past, past_partial"),
        (["policy.samples=0"], "samples must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(policy, tmp_path, capfd, overrides, message):
    assert evaluate(policy, tmp_path / "run", *overrides) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_several_of_what_does_not_denoise_are_refused(tmp_path, capfd):
    command = [
        "eval", "sim=toy_road", "policy=idm", f"run_dir={tmp_path / 'run'}", "policy.samples=5",
        "accel=none", "policy.selector=medoid",
    ]  # fmt: skip
    assert cli.main(command) == 2
    assert "policy.samples=5 needs a policy that denoises; idm does not" in capfd.readouterr().err


def test_the_default_selector_is_that_of_the_paper():
    assert PolicyConfig().samples == 1
    config = PolicyConfig(samples=2)
    assert config.selector == "past"
    assert PastConsistency() == PastConsistency(decay=1.0, warm_up="single")
