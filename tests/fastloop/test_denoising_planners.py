"""Planners with a denoising loop: every verb on whole plans, and arms at their own latencies."""

import json
import sys

import numpy as np
import pytest

from fastloop import arms, cli
from fastloop.accel.apply import AcceleratedLoop
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.config import AccelConfig
from fastloop.arms import arm_digest, make_arms, plan_mask, policy_digest
from fastloop.config import EvalConfig, PolicyConfig
from fastloop.policies.best_of import best_of
from fastloop.policies.checkpoints import CheckpointError
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.driving.whole_plans import WholePlans
from fastloop.policies.session import Session
from fastloop.policies.spec import TensorSpec
from fastloop.setup import calibration_data, set_up
from fastloop.verbs import eval as verb

WAYPOINTS, HZ = 20, 4.0
STATES = {"observation.ego_states": TensorSpec((16, 6))}
SIM = {"_target_": "fastloop.sims.toy_road.ToyRoad", "max_steps": 30}
QUICK = ["accel.budget=3", "accel.union=1"]


@pytest.fixture(scope="module")
def setup(planner):
    made = set_up(PolicyConfig(checkpoint=str(planner), threads=1), SIM)
    yield made
    made.sim.close()


def evaluate(planner, folder, *overrides):
    """`fastloop eval` of two episodes."""
    return cli.main(
        ["eval", "sim=toy_road", "sim.max_steps=30", f"policy.checkpoint={planner}",
         f"run_dir={folder}", "episodes=2", "num_envs=1", "plan_batch=2", "timed_plans=3",
         "calibration_observations=2", "video=none", "policy.threads=1", *overrides]
    )  # fmt: skip


def result(folder):
    return json.loads((folder / "result.json").read_text())


def episodes(folder, arm):
    lines = (folder / arm / "episodes.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


def decided(folder, name):
    """The one file of that name which a run keeps for when it is continued."""
    (path,) = folder.glob(f"decided/*/{name}")
    return path


def config(kind):
    accel = AccelConfig(kind, budget=3, union=1)
    return EvalConfig(PolicyConfig("planner"), accel, calibration_observations=2)


@pytest.mark.parametrize("kind", ["exact", "bac"])
def test_arms_are_whole_plans_of_the_plain_and_the_accelerated_planner(setup, tmp_path, kind):
    assert isinstance(setup.policy, WholePlans)
    made = make_arms(config(kind), setup, tmp_path)
    assert list(made) == ["plain", kind]
    for name, arm in made.items():
        assert isinstance(arm, WholePlans)
        assert arm.spec == setup.policy.spec
        assert isinstance(arm.policy.loop, AcceleratedLoop) == (name != "plain")
    assert (made[kind].policy.loop.fast.plan.reused == 0) == (kind == "exact")
    assert policy_digest(made["plain"]) == policy_digest(made[kind]) == setup.denoiser.digest
    assert arm_digest(made["plain"]) != arm_digest(made[kind])
    assert plan_mask(made["plain"]) is None
    mask = plan_mask(made[kind])
    assert np.array(mask.compute).shape == (10, 6)
    again = make_arms(config(kind), setup, tmp_path)
    assert {n: arm_digest(arm) for n, arm in again.items()} == {
        n: arm_digest(arm) for n, arm in made.items()
    }


def test_without_an_accelerator_there_is_the_plain_one(setup, tmp_path):
    (name,) = made = make_arms(config("none"), setup, tmp_path)
    assert name == "plain"
    assert not isinstance(made[name].policy.loop, AcceleratedLoop)


def test_calibration_sees_what_the_planner_sees(setup):
    noise, cond = calibration_data(setup, 4, 100, seed=7)
    assert noise.shape == (10, 4, WAYPOINTS, 2)
    history = setup.observations(4, 100)
    seen = history["observation.ego_states"]
    assert seen.shape == (4, 1, 16, 6)
    assert cond.shape == (4, 2, 16)
    assert len(cond.flatten(1).unique(dim=0)) == 4
    assert history.ticks.tolist() == [0, 2, 4, 6], "two ticks a plan, on the way"


def test_whole_plans_of_another_planner(setup):
    other = setup.policy.with_policy(setup.denoiser)
    assert other.spec == setup.policy.spec
    assert other.policy is setup.denoiser
    assert setup.driving(setup.denoiser).policy is setup.denoiser


def test_eval_compares_the_arms_on_the_same_roads(planner, tmp_path, capfd):
    assert evaluate(planner, tmp_path, *QUICK) == 0
    found = result(tmp_path)
    assert found["coverage"]["complete"]
    for name in ("speedup", "route_completion_difference", "off_route_m_difference"):
        metric = found["metrics"][name]
        assert metric["low"] <= metric["value"] <= metric["high"], name
        assert metric["n"] == (3 if name == "speedup" else 2)
    plain, fast = episodes(tmp_path, "plain"), episodes(tmp_path, "bac")
    gap = np.mean([
        f["figures"]["off_route_m"] - p["figures"]["off_route_m"]
        for p, f in zip(plain, fast, strict=True)
    ])  # fmt: skip
    assert found["metrics"]["off_route_m_difference"]["value"] == pytest.approx(gap)
    assert gap != 0, "the accelerator is approximate"
    assert all(episode["accel"]["reused"] for episode in fast)
    assert "The world waits for every plan." in capfd.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "Cache plan" in page
    row = page[page.index("off_route_m") :].split("</tr>")[0]
    assert row.count(" to ") == 3, "plain, bac and their difference"
    assert f"{gap:+.3g} (" in row


def test_exact_arms_drive_alike(planner, tmp_path):
    assert evaluate(planner, tmp_path, "accel=exact") == 0
    assert result(tmp_path)["metrics"]["off_route_m_difference"]["value"] == pytest.approx(
        0, abs=1e-3
    )


@pytest.fixture
def known_latencies(monkeypatch):
    """Plans take as long as this says, ms; the first one is cold."""
    said = {"plain": [9999.0, 180.0, 190.0, 200.0], "bac": [9999.0, 18.0, 19.0, 20.0]}
    monkeypatch.setattr(arms, "time_plans", lambda timed, *_: {name: said[name] for name in timed})
    return said


def test_each_arm_is_as_late_as_its_own_plans_take(planner, tmp_path, known_latencies, capfd):
    measured = ["clock.kind=measured", "clock.scale=5"]
    assert evaluate(planner, tmp_path, *QUICK, *measured) == 0
    # 10 Hz: 0.9 to 1 s are 9 or 10 ticks, 0.1 s is 1, and a plan is good for 2.
    for plain, fast in zip(episodes(tmp_path, "plain"), episodes(tmp_path, "bac"), strict=True):
        assert plain["plans"] == pytest.approx(plain["steps"] / 10, abs=1.2)
        assert fast["plans"] == pytest.approx(fast["steps"] / 2, abs=1.2)
    found = result(tmp_path)
    assert found["provenance"]["late_ms_p50"] == {"plain": 950.0, "bac": 95.0}
    told = "its own latencies times 5: p50 plain 950 ms (10 ticks), bac 95 ms (1 tick)."
    assert told in " ".join(capfd.readouterr().out.split())
    assert told in (tmp_path / "report.html").read_text()
    assert found["metrics"]["latency_p50/plain"]["value"] == 190, "what was timed, not scaled"
    assert json.loads(decided(tmp_path, "latencies.json").read_text()) == known_latencies


def test_a_continued_run_goes_on_at_the_latencies_of_its_first(
    planner, tmp_path, known_latencies, monkeypatch
):
    measured = [*QUICK, "clock.kind=measured"]
    assert evaluate(planner, tmp_path, *measured) == 0
    before = {arm: episodes(tmp_path, arm) for arm in ("plain", "bac")}
    log = tmp_path / "bac" / "episodes.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    monkeypatch.setattr(arms, "time_plans", lambda *_: pytest.fail("it was timed before"))
    assert evaluate(planner, tmp_path, *measured, "timed_plans=7") == 0
    assert {arm: episodes(tmp_path, arm) for arm in ("plain", "bac")} == before
    assert result(tmp_path)["metrics"]["speedup"]["value"] == pytest.approx(10)


@pytest.mark.parametrize("kept", ["", "{", "[1]", '{"plain": [1, 2]}', '{"plain": 1, "bac": 2}'])
def test_latencies_of_other_arms_are_refused(planner, tmp_path, known_latencies, kept, capsys):
    measured = [*QUICK, "clock.kind=measured"]
    assert evaluate(planner, tmp_path, *measured) == 0
    decided(tmp_path, "latencies.json").write_text(kept)
    assert evaluate(planner, tmp_path, *measured) == 2
    told = capsys.readouterr().err
    assert "does not hold the latencies of plain and bac" in told
    assert "another run_dir" in told


def test_what_was_decided_for_another_configuration_is_not_used(planner, tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(verb, "time_arms", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            evaluate(planner, tmp_path, *QUICK)
    first = CachePlan.load(decided(tmp_path, "plan.json"))
    assert evaluate(planner, tmp_path, "accel.budget=5", "accel.union=1") == 0
    plans = [CachePlan.load(path) for path in tmp_path.glob("decided/*/plan.json")]
    assert sorted(plan.mask().sum() for plan in plans)[0] == first.mask().sum()
    assert len({plan.mask().sum() for plan in plans}) == 2


def test_other_latencies_are_another_world(planner, tmp_path, known_latencies, capsys):
    measured = [*QUICK, "clock.kind=measured"]
    assert evaluate(planner, tmp_path, *measured) == 0
    known_latencies["plain"][1] += 100
    decided(tmp_path, "latencies.json").unlink()
    assert evaluate(planner, tmp_path, *measured) == 2
    assert "another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["clock.kind=measured", "timed_plans=0"], "say timed_plans=30"),
        (["clock.kind=measured", "clock.latency_ms=[3]"], "say clock.kind=replay"),
        (["clock.latency_ms=[3]"], "clock.kind=frozen reads no clock.latency_ms"),
        (["clock.scale=5"], "does nothing while the world waits"),
        (["clock.kind=measured", "clock.scale=0"], "above 0, got 0"),
        (["clock.kind=replay"], "at least one latency"),
        (["clock.kind=sand"], "have: frozen, replay, measured, wall"),
        (["chunking=ensemble"], "different frames"),
        (["sim.plan_steps=24"], "plans 20 waypoints, ToyRoad takes 24"),
        (["policy.checkpoint=idm"], "idm decides in one pass: it has no denoising loop"),
    ],
)
def test_what_cannot_be_is_refused_before_it_starts(planner, tmp_path, capsys, overrides, message):
    assert evaluate(planner, tmp_path / "run", *QUICK, *overrides) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*/episodes.jsonl"))


def test_a_planner_without_a_loop_is_as_late_as_itself(tmp_path):
    assert evaluate("idm", tmp_path, "accel=none", "clock.kind=measured", "clock.scale=2") == 0
    assert list(result(tmp_path)["provenance"]["late_ms_p50"]) == ["idm"]


def test_calibrate_makes_a_plan_that_eval_takes(planner, tmp_path):
    folder = tmp_path / "calibrate"
    command = [
        "calibrate", "sim=toy_road", f"policy.checkpoint={planner}", f"run_dir={folder}",
        "observations=3", "policy.threads=1", "refine.evaluations=4", "refine.observations=2",
        "refine.held_out=2", *QUICK,
    ]  # fmt: skip
    assert cli.main(command) == 0
    plan = CachePlan.load(folder / "plan.json")
    assert (plan.steps, plan.provenance.algorithm) == (10, "bac")
    assert evaluate(planner, tmp_path / "eval", f"accel.plan={folder / 'plan.json'}") == 0


def test_bench_measures_every_arm(planner, tmp_path, capfd):
    command = [
        "bench", "denoise", "sim=toy_road", "sim.max_steps=20", f"policy.checkpoint={planner}",
        f"run_dir={tmp_path}", "policy.device=cpu", "policy.threads=1", "repeats=3",
        "observations=3", "calibration_observations=2", "episodes=2", "num_envs=1", "plan_batch=2",
        "success_arms=[bac]", "arms.bac.accel.budget=3", "arms.bac.accel.union=1",
        "arms.uniform.accel.budget=4", "~arms.unified", "~arms.bac_free", "~arms.refined",
        "~arms.bac_taylor", "~arms.zeus40", "~arms.zeus20", "~arms.ddim16",
        "arms.ddim10.sampler.num_inference_steps=5",
    ]  # fmt: skip
    assert cli.main(command) == 0
    found = result(tmp_path)["metrics"]
    for arm in ("exact", "uniform", "bac", "ddim10"):
        assert found[f"parity_{arm}"]["value"] <= 1e-9
        assert found[f"speedup_{arm}"]["n"] == 3
        assert found[f"action_error_mean_in_units_{arm}"]["unit"] == "m"
    assert found["action_error_max_exact"]["value"] < 1e-5 < found["action_error_max_bac"]["value"]
    assert found["success_difference_bac"]["n"] == 2
    gap = found["off_route_m_difference_bac"]
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert gap["n"] == 2
    assert "off_route_m" in capfd.readouterr().out
    assert "off_route_m" in (tmp_path / "bench.html").read_text()


def test_info_of_a_planner_with_a_loop(planner, tmp_path, capfd):
    assert cli.main(["info", f"ckpt={planner}", f"run_dir={tmp_path}"]) == 0
    assert "waypoint" in capfd.readouterr().out


def test_times_are_of_whole_plans(setup):
    made = {"a": setup.policy, "b": setup.driving(setup.denoiser)}
    timed = arms.time_plans(made, setup.observations(1, 0), 2)
    assert {name: len(ms) for name, ms in timed.items()} == {"a": 3, "b": 3}
    assert isinstance(setup.denoiser, DiffusionPolicy)


def test_baselines_run_the_same_episodes_and_plan_at_their_own_rate(planner, tmp_path):
    wanted = ["accel=none", "baselines=[stand_still,constant_velocity]", "policy.n_action_steps=6"]
    assert evaluate(planner, tmp_path, *wanted) == 0
    calls = {
        name: len((tmp_path / name / "timing.jsonl").read_text().splitlines())
        for name in ("plain", "stand_still")
    }
    assert calls["stand_still"] > 2 * calls["plain"]  # every 2 ticks, every 6
    found = result(tmp_path)["metrics"]
    for name in ("stand_still", "constant_velocity"):
        assert [e["seed"] for e in episodes(tmp_path, name)] == [0, 1]
        assert f"success/{name}" in found
    first = [e["figures"] for e in episodes(tmp_path, "plain")]
    then = [e["figures"] for e in episodes(tmp_path, "stand_still")]
    for name in first[0]:
        gap = np.mean([b[name] - a[name] for a, b in zip(first, then, strict=True)])
        assert found[f"{name}_difference"]["value"] == pytest.approx(gap)
        assert f"{name}_difference/constant_velocity" in found


def test_baselines_that_cannot_be_are_told(planner, setup, tmp_path):
    wanted = config("none")
    wanted.baselines = ["stand_still", "stand_still"]
    with pytest.raises(ValueError, match="already, of"):
        make_arms(wanted, setup, tmp_path)
    wanted.baselines = ["nobody"]
    with pytest.raises(CheckpointError, match="stand_still"):
        make_arms(wanted, setup, tmp_path)


def test_the_best_of_several_plans_is_driven(planner, tmp_path, capsys):
    several = ["accel=none", "policy.samples=3", "policy.selector=medoid"]
    assert evaluate(planner, tmp_path / "several", *several) == 0
    assert evaluate(planner, tmp_path / "one", "accel=none") == 0
    one, best = (episodes(tmp_path / run, "plain") for run in ("one", "several"))
    assert [e["accel"]["candidates"] for e in best] == [3 * e["plans"] for e in best]
    assert [e["figures"] for e in one] != [e["figures"] for e in best]
    assert evaluate(planner, tmp_path / "past", "policy.samples=3") == 2
    assert "reads 1 observation and predicts none" in capsys.readouterr().err


def test_plans_in_another_frame_are_not_gone_on_with(planner, setup):
    """A whole plan under way is in the vehicle's frame of an earlier moment."""
    best = setup.policy.with_policy(best_of(setup.policy.policy, 2, "coherence"))
    session = Session(best)
    seen, _ = setup.sim.reset(seed=0)
    session.observe(0, {key: seen[key] for key in best.spec.inputs})
    session.install(0, session.plan([0]).actions[0])
    session.act(0)
    session.observe(0, {key: seen[key] for key in best.spec.inputs})
    plan = session.plan([0])
    assert plan.candidates.shape[:2] == (1, 2)
    assert plan.report.degraded == {"no plan is under way": 1}
