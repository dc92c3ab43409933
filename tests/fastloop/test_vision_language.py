"""A vision-language policy in closed loop: its cameras, and the ways in which it writes."""

import json
import shutil
from dataclasses import fields

import pytest

from fastloop import cli
from fastloop.accel.config import AccelConfig
from fastloop.arms import arm_digest, make_arms
from fastloop.cameras import cameras_of, with_cameras
from fastloop.config import DecodingOverrides, EvalConfig, PolicyConfig, SamplerOverrides
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.driving.whole_plans import planner_of
from fastloop.policies.vla.decoding import DecodingConfig
from fastloop.setup import Setup, load
from fastloop.sims.toy_road import ToyRoad

CAMERAS = ["front_left", "front"]  # of vlm_folder
ROAD = ToyRoad(cameras=CAMERAS, image_size=(56, 28)).env_spec


def test_a_simulator_without_cameras_gets_those_that_the_model_was_shown(vlm_folder, tmp_path):
    sized = tmp_path / "sized"
    shutil.copytree(vlm_folder, sized)
    told = json.loads((sized / "fastloop.json").read_text())
    (sized / "fastloop.json").write_text(json.dumps(told | {"image_size": [56, 28]}))
    sim = {"_target_": "x", "cameras": [], "image_size": [243, 270]}
    assert with_cameras(sim, str(vlm_folder)) == sim | {"cameras": CAMERAS}
    assert with_cameras(sim, str(sized)) == sim | {"cameras": CAMERAS, "image_size": [56, 28]}
    assert cameras_of(vlm_folder) == CAMERAS


@pytest.mark.parametrize(
    ("sim", "policy"),
    [
        ({"cameras": ["front"]}, None),
        ({"max_steps": 3}, None),  # shows no pictures at all
        ({"cameras": []}, "constant_velocity"),
        ({"cameras": []}, "dp_pusht"),
    ],
)
def test_nothing_else_changes(sim, policy, vlm_folder):
    assert with_cameras(sim, policy or str(vlm_folder)) == sim


def test_no_such_checkpoint():
    with pytest.raises(CheckpointError, match="dp_pusht"):
        with_cameras({"cameras": []}, "no_such_policy")


def evaluate(folder, run, *more):
    return cli.main(
        [
            "eval", "sim=toy_road", "sim.image_size=[56,28]", "sim.max_steps=6",
            f"policy.checkpoint={folder}", "policy.threads=1", "policy.n_action_steps=5",
            "episodes=1", "num_envs=1", "plan_batch=1", "timed_plans=1", "video=none",
            "margin=0.5", f"run_dir={run}", *more,
        ]
    )  # fmt: skip


def test_it_drives(vlm_folder, tmp_path):
    pytest.importorskip("cv2", reason="pictures are painted with OpenCV (extra data)")
    assert evaluate(vlm_folder, tmp_path, "accel=none") == 0
    assert [path.parent.name for path in tmp_path.glob("*/episodes*")] == [vlm_folder.name]


@pytest.mark.parametrize(("dtype", "kind"), [("", "float32"), ("bfloat16", "bfloat16")])
def test_the_weights_come_as_asked(dtype, kind, vlm_folder):
    policy = load(PolicyConfig(str(vlm_folder), dtype=dtype), ROAD, SamplerOverrides())
    assert str(planner_of(policy).model.network.dtype) == f"torch.{kind}"


def test_only_language_models_come_in_another_dtype():
    with pytest.raises(ValueError, match="idm is no vision-language model"):
        load(PolicyConfig("idm", dtype="bfloat16"), ROAD, SamplerOverrides())
    with pytest.raises(ValueError, match="unknown dtype 'int3'"):
        load(PolicyConfig("fast_ddrive_small", dtype="int3"), ROAD, SamplerOverrides())


@pytest.mark.parametrize(
    ("decoding", "ways"),
    [
        ({}, {"plain": "ar", "scaffold_speculative": ""}),
        ({"driver": "jump_forward"}, {"plain": "ar", "jump_forward": "jump_forward"}),
        (
            {"rollouts": 2, "temperature": 0.5},
            {"plain": "ar", "scaffold_speculative": "", "2_rollouts": ""},
        ),
    ],
)
def test_plain_beside_what_is_configured(decoding, ways, vlm_folder, tmp_path):
    policy = PolicyConfig(str(vlm_folder), decoding=DecodingOverrides(**decoding))
    config = EvalConfig(policy, AccelConfig("bac"))
    setup = Setup(None, None, load(policy, ROAD, SamplerOverrides()), None)
    arms = make_arms(config, setup, tmp_path)
    written = {name: planner_of(arm).decoding for name, arm in arms.items()}
    assert {name: config.driver for name, config in written.items()} == ways
    assert [config.rollouts for config in written.values()][:2] == [1, 1]
    assert [config.temperature for config in written.values()][:2] == [0, 0]
    assert list(written.values())[-1].rollouts == decoding.get("rollouts", 1)


def test_unknown_ways_are_refused(vlm_folder, tmp_path, capfd):
    assert evaluate(vlm_folder, tmp_path, "policy.decoding.driver=fast") == 2
    assert "unknown driver 'fast'; have: ar, " in capfd.readouterr().err


def test_what_can_be_said_of_decoding():
    ours, theirs = fields(DecodingOverrides), fields(DecodingConfig)
    assert [one.name for one in ours] == [one.name for one in theirs]


def test_ways_to_write_have_digests_of_their_own(vlm_folder):
    policy = load(PolicyConfig(str(vlm_folder)), ROAD, SamplerOverrides())
    planner = planner_of(policy)
    jumping = planner.with_decoding(DecodingConfig(driver="jump_forward"))
    assert jumping.driver.name != planner.driver.name
    assert arm_digest(policy.with_policy(jumping)) != arm_digest(policy)
    assert arm_digest(policy.with_policy(planner.with_decoding(planner.decoding))) == arm_digest(
        policy
    )
