import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastloop.accel.block_cache.plan import CachePlan, Provenance
from fastloop.accel.block_cache.stack import Branch
from fastloop.accel.samplers import SamplerConfig, build_sampler

BRANCHES = tuple(Branch(f"layers.0.{kind}", 0, kind) for kind in ("sa", "ca", "ffn"))


def sampler(kind, steps):
    return build_sampler(SamplerConfig(kind, num_train_timesteps=steps, num_inference_steps=steps))


@pytest.fixture
def plan():
    made = Provenance(
        "bac", 2, 1, "cosine", True, "sha256:ab", "DDPM, timesteps 9 to 0", 8, (0, 1), 0.75
    )
    return CachePlan(10, BRANCHES, ((0, 4), (0, 2, 9), (0, 7)), made)


def test_mask_and_counts_agree(plan):
    mask = plan.mask()
    assert mask.shape == (10, 3)
    assert [tuple(mask[:, n].nonzero()[0]) for n in range(3)] == list(plan.updates)
    assert plan.computed == mask.sum() == 7
    assert plan.reused == (~mask).sum() == 23
    assert plan.reuse_fraction == pytest.approx(23 / 30)


@pytest.mark.parametrize("updates", [(), (1, 4), (0, 4, 4), (0, 5, 3), (0, 10)])
def test_a_schedule_that_cannot_be_run_is_refused(plan, updates):
    with pytest.raises(ValueError, match=r"layers\.0\.ca must"):
        replace(plan, updates=((0,), updates, (0,)))


def test_a_schedule_a_branch(plan):
    with pytest.raises(ValueError, match="2 schedules for 3 branches"):
        replace(plan, updates=((0,), (0,)))


def test_saved_is_loaded(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    assert CachePlan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_cut_anywhere_is_refused(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    whole = path.read_text().rstrip()
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(ValueError, match="is not a cache plan, or was cut short"):
            CachePlan.load(path)


def test_a_disk_that_fills_up_leaves_the_old_plan(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    plan.save(path)

    def full(self, text):
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        replace(plan, updates=((0,),) * 3).save(path)
    assert CachePlan.load(path) == plan


def test_another_version_is_refused(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    with pytest.raises(ValueError, match="schema 2, this version reads 1"):
        CachePlan.load(path)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"schema": 1, "branches": 3}', "\x00"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a cache plan"):
        CachePlan.load(path)


def test_a_damaged_schedule_is_refused(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    content = json.loads(path.read_text())
    content["branches"][1]["updates"] = [3]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"layers\.0\.ca must start with step 0"):
        CachePlan.load(path)


def test_check_accepts_its_own_policy(plan):
    plan.check(list(BRANCHES), sampler("ddpm", 10), "sha256:ab")
    plan.check(list(BRANCHES), sampler("ddpm", 10))  # a checkpoint without a digest is not compared


def test_check_names_both_sides(plan):
    with pytest.raises(ValueError, match="denoise steps 10, the policy's 16"):
        plan.check(BRANCHES, sampler("ddpm", 16))
    with pytest.raises(ValueError, match="branches 3, the policy's 2"):
        plan.check(BRANCHES[:2], sampler("ddpm", 10))
    other = (BRANCHES[0], Branch("layers.0.mlp", 0, "ffn"), BRANCHES[2])
    with pytest.raises(ValueError, match=r"'layers\.0\.ca'.*the policy's .*'layers\.0\.mlp'"):
        plan.check(other, sampler("ddpm", 10))
    with pytest.raises(ValueError, match="checkpoint 'sha256:ab', the policy's 'sha256:cd'"):
        plan.check(BRANCHES, sampler("ddpm", 10), "sha256:cd")
    with pytest.raises(ValueError, match=r"sampler 'DDPM, .*the policy's 'DDIM, timesteps 9 to 0'"):
        plan.check(BRANCHES, sampler("ddim", 10))
