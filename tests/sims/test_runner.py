"""Every episode once, the same for any number of environments, whatever breaks in between."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastloop.accel.graph import Graph
from fastloop.accel.report import AcceleratorIdleError
from fastloop.policies.chunks import TemporalEnsemble
from fastloop.policies.spec import SpecMismatchError
from fastloop.sims.clock import Replay
from fastloop.sims.config import SimConfig
from fastloop.sims.predictability import moments_of
from fastloop.sims.results import JsonLines, LogWriteError
from fastloop.sims.runner import RunConfig, SimStartError, run
from fastloop.sims.video import Filming
from fastloop.sims.worklist import WorkItem

ITEMS = [WorkItem("toy", seed) for seed in range(10)]


def toy(**arguments):
    return {"toy": SimConfig("fastloop.sims.toy.PointMass", {"max_steps": 25, **arguments})}


def go(policy, run_dir, items=ITEMS, sims=None, *, digest="d", config=None, **options):
    config = config or RunConfig(num_envs=2)
    return run(
        policy, sims or toy(), items, run_dir=run_dir, digest=digest, config=config, **options
    )


def episodes(run_dir):
    return (run_dir / "episodes.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(homing, tmp_path_factory):
    """The folder and result of a run of all items in which nothing goes wrong."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, go(homing(), folder)


OPTIONS = {
    "frozen": {},
    "replay": {"clock": Replay([0.01, 0.25, 0.05, 0.3])},
    "ensemble": {"chunking": TemporalEnsemble()},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_result_file_is_the_same_for_1_2_and_4_environments(homing, tmp_path, options):
    files = []
    for num_envs in (1, 2, 4):
        config = RunConfig(num_envs=num_envs, plan_batch=3, seed=5)
        result = go(homing(), tmp_path / str(num_envs), config=config, **options)
        files.append(episodes(tmp_path / str(num_envs)))
        assert [episode.key for episode in result.episodes] == [item.key for item in ITEMS]
        assert len(result.episodes) == 10
    assert files[0] == files[1] == files[2]
    assert len({episode.total_reward for episode in result.episodes}) == 10


def test_outcomes_steps_and_rewards_are_those_of_the_simulator(whole):
    _, result = whole
    outcomes = Counter(episode.outcome for episode in result.episodes)
    assert outcomes.keys() == {"success", "timeout"}
    for episode in result.episodes:
        assert (episode.steps == 25) >= (episode.outcome == "timeout")
        assert episode.plans == -(-episode.steps // 4)
        assert (episode.max_reward > -0.1) == (episode.outcome == "success")
        assert (episode.figures["distance_m"] < 0.1) == (episode.outcome == "success")
    assert result.coverage == 1.0
    assert not result.interrupted
    times = result.times
    assert times.simulators_s > 0
    assert 0 < times.runner_s < times.total_s - times.policy_s
    assert result.arm("plain").episodes[0].key == ("toy", 0)


def test_moments_are_of_the_actions_that_were_executed(homing, tmp_path, monkeypatch):
    """Those after an episode's end are not, held ones are."""
    sent = []
    send = sys.modules["fastloop.sims.worker"].Worker.send

    def spy(self, request):
        if hasattr(request, "actions"):
            sent.extend(request.actions)
        send(self, request)

    monkeypatch.setattr("fastloop.sims.worker.Worker.send", spy)
    config = RunConfig(num_envs=1, plan_batch=1)
    clock = Replay([0.2])
    (episode,) = go(homing(), tmp_path, ITEMS[:1], toy(), config=config, clock=clock).episodes
    assert len(sent) >= episode.steps
    assert episode.moments == moments_of(sent[: episode.steps])
    assert episode.summary.moments == episode.moments


def test_the_first_call_with_as_many_rows_records(homing, tmp_path, fake_recorder):
    recorder = fake_recorder()
    graph = Graph(lambda state: (state,), recorder)
    reasons = []

    class Recorded(homing):
        def plan(self, history, **options):
            reasons.append(graph(history["observation.state"])[1])
            return super().plan(history, **options)

    go(Recorded(), tmp_path, ITEMS[:3], config=RunConfig(num_envs=2, plan_batch=2))
    assert recorder.captured == 1
    assert set(reasons) == {""}
    assert len(reasons) == recorder.replayed > 1


def test_leaving_the_arena_is_a_failure(homing, tmp_path):
    class Away(homing):
        def plan(self, history, **options):
            plan = super().plan(history, **options)
            return replace(plan, actions=torch.ones_like(plan.actions))

    result = go(Away(), tmp_path, ITEMS[:3], toy(max_steps=80))
    assert {episode.outcome for episode in result.episodes} == {"failure"}
    assert result.coverage == 1.0


def test_the_policy_is_called_once_for_all_that_wait_and_always_with_as_many_rows(homing, tmp_path):
    policy = homing()
    result = go(policy, tmp_path, config=RunConfig(num_envs=4, plan_batch=4))
    assert {len(keys) for keys in policy.calls} == {4}
    assert result.calls[0].rows == 4
    assert len(result.calls) == len(policy.calls)
    assert sum(call.rows for call in result.calls) == sum(e.plans for e in result.episodes)
    assert [call.cold for call in result.calls] == [True] + [False] * (len(policy.calls) - 1)
    noise = Counter(key for keys in policy.calls for key in set(keys))
    assert max(noise.values()) == 1  # no tick of an episode is planned twice
    assert {episode for episode, _ in noise} == {item.episode for item in ITEMS}


def test_two_tasks_share_a_run(homing, tmp_path):
    sims = {"short": toy(max_steps=3)["toy"], "long": toy(max_steps=40)["toy"]}
    items = [WorkItem(task, seed) for seed in range(3) for task in sims]
    result = go(homing(), tmp_path, items, sims)
    steps = {episode.key: episode.steps for episode in result.episodes}
    assert list(steps) == [item.key for item in items]
    assert max(n for (task, _), n in steps.items() if task == "short") == 3
    assert max(n for (task, _), n in steps.items() if task == "long") > 3


# --- latency -------------------------------------------------------------------------------------


def test_the_world_goes_on_while_a_late_plan_is_made(homing, tmp_path):
    """At 0.25 s and 10 Hz the last action is held for 3 ticks; the 3 first of the plan are lost."""
    policy = homing()
    sims = toy(max_steps=24)
    far = [item for item in ITEMS if item.seed in (0, 3)]
    config = RunConfig(num_envs=1, plan_batch=1)
    go(policy, tmp_path, far, sims, config=config, clock=Replay([0.25]))
    ticks = [tick for ((_, tick),) in policy.calls]
    starts = [i for i, tick in enumerate(ticks) if tick == 0]
    for start, end in pairwise([*starts, len(ticks)]):
        # The first plan gives 4 ticks; each later one 3 held ticks and the plan's fourth action.
        assert ticks[start:end] == list(range(0, 4 * (end - start), 4))
    assert episodes(tmp_path) != b""


def test_held_and_late_actions_reach_the_simulator(homing, tmp_path, monkeypatch):
    sent = []
    send = sys.modules["fastloop.sims.worker"].Worker.send

    def spy(self, request):
        if hasattr(request, "actions"):
            sent.append(request.actions)
        send(self, request)

    monkeypatch.setattr("fastloop.sims.worker.Worker.send", spy)
    plans = []

    class Spied(homing):
        def plan(self, history, **options):
            plans.append(super().plan(history, **options))
            return plans[-1]

    config = RunConfig(num_envs=1, plan_batch=1)
    go(Spied(), tmp_path, ITEMS[:1], toy(max_steps=12), config=config, clock=Replay([0.2]))
    first, second = (plan.actions[0].numpy() for plan in plans[:2])
    np.testing.assert_array_equal(sent[0], first[:4])
    np.testing.assert_array_equal(sent[1], [first[4], first[5], second[2], second[3]])


def test_a_plan_later_than_its_own_length_is_survived(homing, tmp_path):
    result = go(homing(), tmp_path, ITEMS[:2], clock=Replay([5.0]))
    assert result.coverage == 1.0


# --- what breaks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("raise", "solver diverged"), ("segfault", "SIGSEGV"), ("hang", r"did not answer within 1 s")],
)
def test_a_seed_that_breaks_is_an_error_and_harms_no_other(whole, homing, tmp_path, fault, reason):
    config = RunConfig(num_envs=2, retries=1, step_timeout_s=1.0)
    items = ITEMS[4:9]
    result = go(homing(), tmp_path, items, toy(faults={7: fault}), config=config)
    hurt = result.episodes[3]
    assert (hurt.seed, hurt.outcome, hurt.retries, hurt.steps) == (7, "error", 1, 0)
    assert re.search(reason, hurt.error)
    others = [episode for episode in whole[1].episodes[4:9] if episode.seed != 7]
    assert [episode for episode in result.episodes if episode.seed != 7] == others
    assert result.coverage == 0.8
    assert result.arm("plain").episodes[3].detail == hurt.error


def test_a_simulator_killed_once_is_retried_and_changes_nothing(
    whole, homing, tmp_path, monkeypatch
):
    workers = []
    init = sys.modules["fastloop.sims.worker"].Worker.__init__

    def spy(self, *args, **options):
        init(self, *args, **options)
        workers.append(self)

    monkeypatch.setattr("fastloop.sims.worker.Worker.__init__", spy)

    def kill_once(progress):
        if progress.done == 3 and len(workers) == 2:
            workers[0].process.kill()

    result = go(homing(), tmp_path / "hurt", progress=kill_once)
    assert len(workers) >= 3
    assert sum(episode.retries for episode in result.episodes) == 1
    for line in episodes(whole[0]).splitlines():
        again = line.replace(b'"retries": 0', b'"retries": 1')
        assert {line, again} & set(episodes(tmp_path / "hurt").splitlines())


def test_a_simulator_that_cannot_start_stops_the_run(homing, tmp_path):
    sims = {"toy": SimConfig("fastloop.sims.toy.PointMass", {"color": "red"})}
    with pytest.raises(SimStartError, match=r"'toy' does not start.*'color'"):
        go(homing(), tmp_path, sims=sims)


def test_a_policy_that_does_not_fit_is_refused_before_anything_runs(homing, tmp_path):
    policy = homing()
    policy.spec = replace(policy.spec, control_hz=20.0)
    with pytest.raises(SpecMismatchError, match=r"20\.0 Hz, PointMass ticks at 10\.0 Hz"):
        go(policy, tmp_path)
    assert policy.calls == []


def test_bad_work_and_settings_are_refused(homing, tmp_path):
    with pytest.raises(ValueError, match=r"no simulator for tasks \['lift'\]; have: \['toy'\]"):
        go(homing(), tmp_path, [WorkItem("lift", 0)])
    with pytest.raises(ValueError, match="num_envs must be 1 or more"):
        RunConfig(num_envs=0)


def test_an_accelerator_that_never_engages_is_an_error(homing, tmp_path):
    with pytest.raises(AcceleratorIdleError, match="'bac' is configured and engaged 0 %"):
        go(homing(accelerator="bac"), tmp_path / "idle", ITEMS[:2])
    result = go(homing(accelerator="bac", reused=9), tmp_path / "busy", ITEMS[:2])
    plans = sum(episode.plans for episode in result.episodes)
    assert (result.accel.plans, result.accel.reused) == (plans, 9 * plans)
    assert result.accel.stage_ms == {"denoise": 1.0 * len(result.calls)}
    assert "stage_ms" not in result.episodes[0].accel


# --- stopping and going on -----------------------------------------------------------------------


def test_a_finished_run_is_read_back_without_a_simulator(whole, homing):
    folder, first = whole
    policy = homing()
    again = go(policy, folder, sims={"toy": SimConfig("fastloop.nothing.Here")})
    assert (again.episodes, again.calls) == (first.episodes, first.calls)
    assert policy.calls == []


def test_a_longer_list_goes_on_from_a_shorter_one(whole, homing, tmp_path):
    go(homing(), tmp_path / "grown", ITEMS[5:8])
    go(homing(), tmp_path / "grown")
    assert episodes(tmp_path / "grown") == episodes(whole[0])


def test_another_configuration_does_not_mix(whole, homing):
    with pytest.raises(ValueError, match=r"'d'.*'other'"):
        go(homing(), whole[0], digest="other")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_gives_a_partial_result_that_resumes(whole, homing, tmp_path, number):
    before = signal.getsignal(number)

    def interrupt(progress):
        if progress.done == 3:
            os.kill(os.getpid(), number)

    partial = go(homing(), tmp_path / "cut", progress=interrupt)
    assert partial.interrupted
    assert 3 <= len(partial.episodes) < 10
    assert len(partial.missing) == 10 - len(partial.episodes)
    assert partial.coverage == len(partial.episodes) / 10
    assert signal.getsignal(number) is before
    resumed = go(homing(), tmp_path / "cut")
    assert not resumed.missing
    assert episodes(tmp_path / "cut") == episodes(whole[0])


def test_a_full_disk_stops_with_a_message_and_loses_nothing(whole, homing, tmp_path, monkeypatch):
    write = JsonLines._write
    lines = []

    def full(self, data):
        if self.path.name == "episodes.jsonl":
            lines.append(data)
            if len(lines) > 5:
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(JsonLines, "_write", full)
    with pytest.raises(LogWriteError, match="No space left on device"):
        go(homing(), tmp_path / "cut")
    monkeypatch.undo()
    assert episodes(tmp_path / "cut").count(b"\n") == 5
    go(homing(), tmp_path / "cut")
    assert episodes(tmp_path / "cut") == episodes(whole[0])


KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
from fastloop.sims.config import SimConfig
from fastloop.sims.runner import RunConfig, run
from fastloop.sims.worklist import WorkItem

def die(progress):
    print(progress.done, flush=True)
    if progress.done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

run(
    conftest.Homing(),
    {"toy": SimConfig("fastloop.sims.toy.PointMass", {"max_steps": 25})},
    [WorkItem("toy", seed) for seed in range(10)],
    run_dir=Path(sys.argv[2]), digest="d", config=RunConfig(num_envs=2), progress=die,
)
"""


def test_a_killed_run_resumes_without_losing_or_repeating_an_episode(whole, homing, tmp_path):
    conftest = sys.modules[homing.__module__].__file__
    command = [sys.executable, "-c", KILLED, conftest, str(tmp_path / "cut")]
    assert subprocess.run(command, stdout=subprocess.PIPE).returncode == -signal.SIGKILL
    kept = episodes(tmp_path / "cut").splitlines()[1:]
    assert len(kept) == 4
    ended = {json.loads(line)["seed"] for line in kept}
    policy = homing()
    result = go(policy, tmp_path / "cut")
    assert len(result.episodes) == 10
    played = {episode for keys in policy.calls for episode, _ in keys}
    assert played == {item.episode for item in ITEMS if item.seed not in ended}
    assert episodes(tmp_path / "cut") == episodes(whole[0])


# --- videos --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["first-k", "failures", "all"])
def test_videos_of_the_episodes_that_were_asked_for(homing, tmp_path, which):
    pytest.importorskip("cv2")
    pytest.importorskip("imageio_ffmpeg")
    config = RunConfig(num_envs=2, filming=Filming(which, k=2))
    result = go(homing(noise=0.8), tmp_path, ITEMS[:6], config=config)
    failures = [e.key for e in result.episodes if e.outcome != "success"]
    assert 0 < len(failures) < 6
    wanted = {"first-k": [("toy", 0), ("toy", 1)], "failures": failures}
    keys = wanted.get(which, [item.key for item in ITEMS[:6]])
    assert list(result.videos) == keys
    files = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert files == sorted(f"toy-{seed}.mp4" for _, seed in keys)
    assert all(path.stat().st_size > 1000 for path in result.videos.values())
