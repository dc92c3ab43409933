import dataclasses
import json

import pytest
import torch

from fastloop.accel.report import AccelReport
from fastloop.policies.cacheflow.folder import is_cacheflow, load_cacheflow, save_cacheflow
from fastloop.policies.cacheflow.policy import NOVEL, UNCOVERED, CacheFlowPolicy
from fastloop.policies.cacheflow.reading import check_inputs, read
from fastloop.policies.cacheflow.scorer import PlanScorer
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.load import load_policy
from fastloop.policies.rng import Rng
from fastloop.policies.selectors import Density
from fastloop.policies.selectors.base import Candidates, select
from fastloop.policies.session import Session
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec

SPEC = PolicySpec(
    inputs={"observation.state": TensorSpec((2,))},
    action=ActionSpec(2, "waypoint", (-9.0,) * 2, (9.0,) * 2),
    n_obs_steps=4, horizon=9, n_action_steps=2, control_hz=2.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def policy(trained):
    return CacheFlowPolicy(SPEC, trained, samples=8, digest="abc")


def histories(pasts, lags=(3, 2, 1, 0)):
    """Episodes that have shown (n, O, 2)."""
    episodes = []
    for past in pasts:
        episode = EpisodeHistory(9)
        for state in past:
            episode.observe({"observation.state": state})
        episodes.append(episode)
    return History.stack(episodes, lags)


def keys(count):
    return Rng.for_envs(0, range(count), [3] * count)


def test_the_plan_is_the_candidate_in_the_middle_and_says_how_likely(policy, samples):
    data = samples(5, 5)
    plan = policy.plan(histories(data.history), rng=keys(5))
    assert plan.actions.shape == (5, 6, 2)
    assert plan.candidates.shape == (5, 8, 6, 2)
    assert torch.equal(plan.scores.argmin(1), plan.chosen)
    rows = torch.arange(5)
    assert torch.equal(plan.candidates[rows, plan.chosen], plan.actions)
    apart = (plan.candidates[:, :, None] - plan.candidates[:, None]).flatten(3).norm(dim=-1)
    assert torch.equal(apart.sum(2).argmin(1), plan.chosen)
    torch.testing.assert_close(
        plan.log_prob, policy.cacheflow.log_prob(data.history, plan.actions), rtol=1e-5, atol=1e-4
    )
    known = policy.cacheflow.table.futures.flatten(1)
    apart = (plan.actions.flatten(1)[:, None] - known).abs().amax(-1)
    assert (apart.amin(1) < 1e-6).all()
    assert plan.report.degraded == {}
    assert AccelReport.total(plan.reports).plans == 5


def test_alarms_are_of_their_row_only(trained, samples):
    past = samples(2, 5).history
    odd = torch.stack([past[0], past[1] * 40])
    coverage, novelty = trained.coverage(trained.condition(odd)), trained.novelty(odd)
    assert novelty[0] < 1 < novelty[1]
    between = coverage.mean().item()
    policy = CacheFlowPolicy(SPEC, trained, alarm=between)
    plan = policy.plan(histories(odd), rng=keys(2))
    assert coverage[1] < between < coverage[0]
    assert [plan.report_of(row).degraded for row in range(2)] == [{}, {UNCOVERED: 1, NOVEL: 1}]
    assert plan.report.degraded == {UNCOVERED: 1, NOVEL: 1}


def test_actions_are_relative_to_an_observation_where_they_were_learned_so(trained, samples):
    past = samples(3, 5).history
    plain = CacheFlowPolicy(SPEC, trained).plan(histories(past), rng=keys(3))
    policy = CacheFlowPolicy(SPEC, trained, relative_to="observation.state")
    plan = policy.plan(histories(past), rng=keys(3))
    torch.testing.assert_close(plan.actions - past[:, -1:], plain.actions)
    torch.testing.assert_close(plan.log_prob, plain.log_prob)
    found = PlanScorer(policy).score(histories(past), plan.actions[:, None])[:, 0]
    torch.testing.assert_close(found, plan.log_prob, rtol=1e-4, atol=1e-3)


def test_it_drives_a_session_and_batches_do_not_matter(policy, samples):
    past = samples(3, 5).history
    together, alone = Session(policy, num_envs=3, seed=1), Session(policy, num_envs=1, seed=1)
    for tick in range(5):
        batch = past[:, min(tick, 3)]
        actions = together.select_action({"observation.state": batch})
        single = alone.select_action({"observation.state": batch[:1]})
        torch.testing.assert_close(actions[:1], single)
    assert actions.shape == (3, 2)


def test_observations_that_are_not_finite_are_refused(policy):
    with pytest.raises(ValueError, match="history must hold finite"):
        policy.plan(histories(torch.full((1, 4, 2), torch.nan)), rng=keys(1))


def candidates_of(history, actions):
    """As much of `Candidates` as is read."""
    finite = actions.flatten(2).isfinite().all(-1)
    unused = dict.fromkeys(("past", "executed", "previous", "planned", "rng", "compare"))
    return Candidates(
        actions=actions, future=actions, allowed=finite, lags=(3, 2, 1), history=history, **unused
    )


def test_plans_of_others_are_scored_and_chosen_by(policy, samples):
    data = samples(6, 5)
    random = torch.Generator().manual_seed(0)
    wild = data.future + torch.randn(data.future.shape, generator=random)
    backward = -data.future
    plans = torch.stack([wild, data.future, backward, data.future * torch.nan], 1)
    longer = torch.cat([plans, torch.randn(6, 4, 3, 2)], 2)
    for given in (plans, longer):
        chosen = select(Density(PlanScorer(policy)), candidates_of(histories(data.history), given))
        assert chosen.index.tolist() == [1] * 6
        assert chosen.scores[:, 3].isinf().all()
    scores = PlanScorer(policy).score(histories(data.history), plans[:, :3])
    expected = policy.cacheflow.log_prob(data.history, data.future)
    torch.testing.assert_close(scores[:, 1], expected, rtol=1e-4, atol=1e-3)


def test_a_scorer_takes_its_frames_of_a_longer_history(policy, samples):
    past = samples(2, 5).history
    longer = torch.cat([torch.full((2, 1, 2), 7.0), past], 1)
    actions = samples(2, 5).future[:, None]
    scorer = PlanScorer(policy)
    expected = scorer.score(histories(past), actions)
    seen = histories(longer, (4, 3, 2, 1, 0))
    assert torch.equal(scorer.score(seen, actions, lags=(4, 3, 2, 1, 0)), expected)
    with pytest.raises(ValueError, match=r"and \[3, 2\] of these are not in the history"):
        scorer.score(histories(past[:, 2:], (1, 0)), actions, lags=(1, 0))
    with pytest.raises(ValueError, match="at least 6 actions of 2 elements can be scored, got 5"):
        scorer.score(histories(past), actions[:, :, 1:])


def test_a_folder_keeps_the_policy(policy, samples, tmp_path):
    save_cacheflow(tmp_path, policy, {"steps": 150})
    assert is_cacheflow(tmp_path)
    other = load_policy(tmp_path)
    assert isinstance(other, CacheFlowPolicy)
    assert other.spec == policy.spec
    assert other.digest != ""
    history = histories(samples(3, 5).history)
    ours, theirs = (p.plan(history, rng=keys(3)) for p in (policy, other))
    assert torch.equal(ours.actions, theirs.actions)
    assert torch.equal(ours.log_prob, theirs.log_prob)
    assert load_policy(tmp_path, n_action_steps=1).spec.n_action_steps == 1
    with pytest.raises(ValueError, match="has no sampler"):
        load_policy(tmp_path, sampler={"kind": "ddim"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected fastloop.cacheflow version 1"),
        ({"model": {"dimensions": 3}}, "holds no CacheFlow policy"),
        ({"model": {"dims": 3}}, "holds no CacheFlow policy"),
        ({"weights": {"sha256": "0"}}, "different saves"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"shapes": []}, "holds no CacheFlow policy"),
    ],
)
def test_a_bad_folder_is_refused(policy, tmp_path, change, message):
    save_cacheflow(tmp_path, policy)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_cacheflow(tmp_path)


def test_weights_of_another_training_do_not_fit_the_table(policy, small, samples, tmp_path):
    save_cacheflow(tmp_path / "one", policy)
    other = small(samples(50, 9))
    stranger = CacheFlowPolicy(SPEC, type(policy.cacheflow).build(other, samples(50, 9)))
    save_cacheflow(tmp_path / "two", stranger)
    for name in ("table.safetensors", "table.json"):
        (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(CheckpointError, match="is stale"):
        load_cacheflow(tmp_path / "one")


def test_a_policy_of_other_sizes_is_refused(trained):
    with pytest.raises(ValueError, match="plans 5 actions of 2 elements"):
        CacheFlowPolicy(dataclasses.replace(SPEC, horizon=8), trained)
    with pytest.raises(ValueError, match=r"got 0 and 0\.01"):
        CacheFlowPolicy(SPEC, trained, samples=0)


def test_observations_become_history_command_and_neighbors():
    inputs = {
        "state": TensorSpec((2, 3)), "intent": TensorSpec((), "int64", low=0, high=3),
        "observation.neighbors": TensorSpec((2, 5)),
    }  # fmt: skip
    check_inputs(inputs)
    seen = {
        "state": torch.arange(12.0).view(1, 2, 2, 3), "intent": torch.tensor([[0, 2]]),
        "observation.neighbors": torch.ones(1, 2, 2, 5),
    }  # fmt: skip
    seen["observation.neighbors"][:, :, 1] = 0
    found = read(seen, inputs)
    assert torch.equal(found["history"], torch.arange(12.0).view(1, 2, 6))
    assert found["command"].tolist() == [[0, 0, 1, 0]]
    assert found["neighbors"].isnan().tolist() == [[[False] * 5, [True] * 5]]
    with pytest.raises(ValueError, match=r"intent must lie in 0 to 3, got \[5\]"):
        read(seen | {"intent": torch.tensor([[0, 5]])}, inputs)
    for strange in (torch.nan, torch.inf):
        seen["observation.neighbors"][0, 1, 0, 2] = strange
        with pytest.raises(ValueError, match="neighbors must hold finite numbers"):
            read(seen, inputs)


def test_two_sets_are_one_whose_rows_say_of_which_they_are():
    inputs = {
        "state": TensorSpec((1,)), "observation.neighbors": TensorSpec((20, 10)),
        "observation.map": TensorSpec((30, 20, 6)),
    }  # fmt: skip
    random = torch.Generator().manual_seed(0)
    seen = {key: torch.randn(2, 1, *spec.shape, generator=random) for key, spec in inputs.items()}
    seen["observation.map"][:, :, 1] = 0
    found = read(seen, inputs)["neighbors"]
    assert found.shape == (2, 16 + 24, 4 * 6 + 2)
    vehicles, lanes = found[:, :16], found[:, 16:]
    assert torch.equal(vehicles[..., :10], seen["observation.neighbors"][:, 0, :16])
    assert (vehicles[..., 10:] == torch.tensor([0.0] * 14 + [1, 0])).all()
    expected = seen["observation.map"][:, 0, :24, [0, 6, 12, 18]].flatten(2)
    there = [row for row in range(24) if row != 1]
    assert torch.equal(lanes[:, there, :24], expected[:, there])
    assert (lanes[:, there, 24:] == torch.tensor([0.0, 1])).all()
    assert lanes[:, 1].isnan().all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"top": TensorSpec((3, 8, 8), "uint8")}, "no images: leave out top"),
        ({"a": TensorSpec((2,)), "n": TensorSpec((), "int64")}, "one whole number from 0"),
        ({"n": TensorSpec((), "int64", low=0, high=3)}, "needs a history beside n"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        check_inputs(inputs)
