"""Runs over pieces: the same figures however they are cut, stopped and gone on with."""

import dataclasses

import numpy as np
import pytest
import torch

from fastloop.config import PolicyConfig
from fastloop.score import workers
from fastloop.score.pieces import Scored, World
from fastloop.score.run import Outcome, divide, do_run
from fastloop.score.store import PieceStore

CONSTANT = PolicyConfig(checkpoint="constant_velocity")


def go(job, pieces, folder, **options):
    folder.mkdir(exist_ok=True)
    counts = []
    done = do_run(
        job, pieces, folder, "settings", worker="process", workers=1, progress=counts.append,
        **options,
    )  # fmt: skip
    return Outcome.of(pieces, done), counts


@pytest.mark.parametrize("size", [1, 3, 10, 64])
@pytest.mark.parametrize("batch", [1, 4])
def test_figures_do_not_depend_on_the_cut(straight, job, tmp_path, size, batch):
    benchmark = straight()
    pieces = divide(benchmark.keys, size, None, benchmark.steps)
    outcome, counts = go(job(benchmark, CONSTANT, batch), pieces, tmp_path)
    assert outcome.keys == benchmark.keys
    assert counts[0] == 0
    assert counts[-1] == 10
    expected = np.stack([benchmark.truth(key) for key in benchmark.keys])
    np.testing.assert_allclose(outcome.plans, expected, atol=1e-6)
    assert outcome.metrics(benchmark)["l2_2s"].value < 1e-6
    assert not outcome.faults


def test_given_plans_are_scored_and_missing_ones_counted(straight, job, tmp_path):
    benchmark = straight(5)
    plans = {key: benchmark.truth(key) + np.array([3.0, 4.0]) for key in benchmark.keys[:4]}
    outcome, _ = go(job(benchmark), divide(benchmark.keys, 2, plans, 4), tmp_path)
    assert outcome.keys == benchmark.keys[:4]
    np.testing.assert_allclose(outcome.columns["steps"], 5.0)
    assert list(outcome.faults) == ["sample-4"]
    assert "no prediction" in outcome.faults["sample-4"]


def test_what_cannot_be_read_or_scored_is_left_out_and_named(straight, job, tmp_path):
    benchmark = straight(9, damaged=["sample-2"], unscorable=["sample-4", "sample-8"])
    pieces = divide(benchmark.keys, 3, None, benchmark.steps)
    outcome, _ = go(job(benchmark, CONSTANT), pieces, tmp_path)
    left = [key for key in benchmark.keys if key not in ("sample-2", "sample-4", "sample-8")]
    assert outcome.keys == left
    assert len(outcome.columns["steps"]) == len(outcome.plans) == 6
    assert "torn" in outcome.faults["sample-2"]
    assert "no truth" in outcome.faults["sample-8"]


def test_nothing_scored_is_no_crash(straight, job, tmp_path):
    benchmark = straight(2, unscorable=["sample-0", "sample-1"])
    pieces = divide(benchmark.keys, 2, None, benchmark.steps)
    outcome, _ = go(job(benchmark, CONSTANT), pieces, tmp_path)
    assert outcome.metrics(benchmark) == {}
    assert outcome.worst(benchmark, 3) == []


def test_an_interrupted_run_goes_on_where_it_stopped(straight, job, tmp_path, monkeypatch):
    benchmark = straight()
    made = job(benchmark, CONSTANT)
    pieces = divide(benchmark.keys, 2, None, benchmark.steps)
    really = World.do

    def interrupted(self, piece):
        if piece.index == 3:
            raise KeyboardInterrupt
        return really(self, piece)

    monkeypatch.setattr(World, "do", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(made, pieces, tmp_path)
    monkeypatch.setattr(World, "do", really)
    (tmp_path / "pieces" / "00001.npz").write_bytes(b"PK torn")
    benchmark.observed.clear()
    outcome, counts = go(made, pieces, tmp_path)
    assert counts[0] == 4  # pieces 0 and 2; 1 was torn, 3 and 4 were not begun
    assert set(benchmark.observed) == {f"sample-{k}" for k in (2, 3, 6, 7, 8, 9)}
    again, _ = go(made, pieces, tmp_path / "other")
    np.testing.assert_array_equal(outcome.plans, again.plans)
    np.testing.assert_array_equal(outcome.columns["steps"], again.columns["steps"])


def test_pieces_are_kept_whole_and_of_their_size(tmp_path):
    store = PieceStore(tmp_path, "digest")
    store.save(Scored(0, np.zeros((3, 4, 2)), np.ones(3, bool), {"l2": np.arange(3.0)}, {}))
    assert {path.name for path in store.folder.iterdir()} == {"digest", "00000.npz"}
    assert store.load(0, 3).columns["l2"].tolist() == [0, 1, 2]
    assert store.load(0, 2) is None
    assert store.load(1, 3) is None


def test_sums_are_made_by_as_many_threads_everywhere(straight, job):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        World(job(straight(), CONSTANT))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_noise_is_of_the_sample_and_not_of_its_place(straight, job, tmp_path, monkeypatch):
    benchmark = straight()
    world = World(job(benchmark, CONSTANT, batch=4))
    policy = world.planner.policy
    really = type(policy).plan

    def noisy(self, history, *, rng, budget=None):
        plan = really(self, history, rng=rng, budget=budget)
        return dataclasses.replace(plan, actions=plan.actions + rng.normal((4, 2)))

    monkeypatch.setattr(type(policy), "plan", noisy)
    plans, _ = world.planner.plan(benchmark.keys)
    backwards, _ = world.planner.plan(benchmark.keys[::-1])
    np.testing.assert_array_equal(plans, backwards[::-1])
    noise = plans - np.stack([benchmark.truth(key) for key in benchmark.keys])
    assert len(np.unique(noise.round(3))) > 70


def test_a_folder_of_another_run_is_refused(straight, job, tmp_path):
    benchmark = straight()
    plans = {key: benchmark.truth(key) for key in benchmark.keys}
    go(job(benchmark), divide(benchmark.keys, 4, plans, 4), tmp_path)
    plans["sample-3"] = plans["sample-3"] + 1
    with pytest.raises(ValueError, match="another"):
        go(job(benchmark), divide(benchmark.keys, 4, plans, 4), tmp_path)


def test_the_worst_come_first_with_their_figures(straight, job, tmp_path):
    benchmark = straight(4)
    plans = {key: benchmark.truth(key) for key in benchmark.keys}
    plans["sample-2"] = plans["sample-2"] + np.array([7.0, 0.0])
    outcome, _ = go(job(benchmark), divide(benchmark.keys, 4, plans, 4), tmp_path)
    worst = outcome.worst(benchmark, 2)
    assert [case.key for case in worst] == ["sample-2", "sample-0"]
    assert worst[0].figures == {"l2 2s": pytest.approx(7.0)}


def test_plans_that_are_there_are_scored_here_and_the_data_opened_once(
    straight, job, tmp_path, monkeypatch
):
    benchmark = straight()
    plans = {key: benchmark.truth(key) for key in benchmark.keys}
    monkeypatch.setattr(workers, "_by_processes", None)
    monkeypatch.setattr("fastloop.score.pieces.open_benchmark", None)
    done = do_run(
        job(benchmark), divide(benchmark.keys, 4, plans, 4), tmp_path, "settings",
        worker="process", workers=0, progress=lambda count: None, benchmark=benchmark,
    )  # fmt: skip
    assert sum(scored.scored.sum() for scored in done) == 10


def test_unknown_workers_are_refused(straight, job):
    with pytest.raises(ValueError, match="process, ray"):
        list(workers.do_pieces(job(straight()), [], worker="slurm", workers=1))


def test_a_plan_that_is_not_finite_is_a_fault(straight, job, tmp_path, monkeypatch):
    benchmark = straight(4)
    made = job(benchmark, CONSTANT)
    world = World(made)
    policy = world.planner.policy
    really = type(policy).plan

    def broken(self, history, **options):
        plan = really(self, history, **options)
        actions = plan.actions.clone()
        actions[history["observation.ego_states"][:, 0, -1, 2] == 2] = float("nan")
        return dataclasses.replace(plan, actions=actions)

    monkeypatch.setattr(type(policy), "plan", broken)
    outcome, _ = go(made, divide(benchmark.keys, 4, None, 4), tmp_path)
    assert list(outcome.faults) == ["sample-2"]
    assert "not finite" in outcome.faults["sample-2"]
