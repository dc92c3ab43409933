"""`fastloop bench forecast` on recordings written here, and its parts by hand."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from fastloop import cli
from fastloop.bench.forecast import run
from fastloop.bench.forecast.events import CONCERNS, EVENTS
from fastloop.bench.forecast.flow import CachedFlow, differences
from fastloop.bench.forecast.forecasters import ConstantVelocity, Forecaster, GaussianVelocity
from fastloop.bench.forecast.measure import (
    Scores,
    chance_ece,
    event_intervals,
    intervals,
    score,
)
from fastloop.bench.forecast.online import recalibrated
from fastloop.bench.forecast.timing import time_in_turns
from fastloop.bench.forecast.training import data_digest
from fastloop.datasets.eth_ucy import SCENES, trajectories
from fastloop.datasets.scores.probabilities import expected_calibration_error
from fastloop.datasets.scores.sampled import alike
from fastloop.datasets.trajectories import Trajectories
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.model import CacheFlowConfig, CacheFlowModel
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.rng import Rng

TINY = "diffusion.arch={n_layer: 1, n_head: 1, n_emb: 8}"
FEW = (
    "diffusion.train.steps=3", "diffusion.train.batch_size=8", "diffusion.train.warmup_steps=1",
    "diffusion.sampler.num_inference_steps=2", "cacheflow.train.steps=3",
    "cacheflow.train.batch_size=8", "cacheflow.train.warmup_steps=1",
    "cacheflow.model={dims: 3, components: 2, width: 8, flow_layers: 2, flow_width: 8}",
    "samples=3", "drawn=6", "limit=12", "repeats=2", "timed_agents=2", "batch=5",
)  # fmt: skip
ARMS = ("constant_velocity", "gaussian_velocity", "diffusion", "uncached_flow", "cacheflow")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Pedestrians who come from anywhere and turn as they like."""
    folder = tmp_path_factory.mktemp("eth_ucy")
    rng = np.random.default_rng(0)
    for names in SCENES.values():
        for name in names:
            lines = []
            for who in range(40):
                turns = rng.normal(0, 0.2, 30).cumsum() + rng.uniform(-3, 3)
                way = np.cumsum(0.5 * np.stack([np.cos(turns), np.sin(turns)], 1), 0)
                lines += [f"{10 * (k + 6 * who)}\t{who}\t{x}\t{y}" for k, (x, y) in enumerate(way)]
            (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(recordings):
    return trajectories(recordings, "zara1")


def bench(recordings, folder, *overrides):
    return cli.main(
        ["bench", "forecast", f"dataset.path={recordings}", f"run_dir={folder}", TINY, *FEW,
         *overrides]
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert bench(recordings, folder) == 0
    return folder, json.loads((folder / "result.json").read_text())


def test_every_arm_is_measured(measured):
    folder, result = measured
    found = result["metrics"]
    for arm in ARMS:
        for name in ("min_ade", "min_fde", "sample_ade", "sample_fde", "mm_ade", "mm_fde"):
            metric = found[f"{name}_{arm}"]
            assert metric["low"] <= metric["value"] <= metric["high"]
            assert (metric["unit"], metric["n"]) == ("m", 12)
        assert found[f"min_ade_{arm}"]["value"] <= found[f"sample_ade_{arm}"]["value"] + 1e-9
        assert (f"kde_nll_{arm}" in found) == (arm != "constant_velocity")
        assert (f"nll_{arm}" in found) == (arm not in ("constant_velocity", "diffusion"))
        assert ("min_ade_difference_" + arm in found) == (arm != "constant_velocity")
        for event in EVENTS:
            assert 0 <= found[f"ece_{event}_{arm}"]["value"] <= 1
        for of in (1, 2):
            assert found[f"latency_p50_{of}_{arm}"]["n"] == 2
            assert found[f"latency_cold_p50_{of}_{arm}"]["n"] == 2
            for speedup in ("speedup", "speedup_cold"):
                assert (f"{speedup}_{of}_cacheflow_over_{arm}" in found) == (arm != "cacheflow")
    for name in ("density", "draw"):
        assert found[f"latency_p50_{name}"]["n"] == 2
    assert found["apd_constant_velocity"]["value"] == 0
    assert found["nll_cacheflow"] == found["nll_uncached_flow"], "the weights are the same"
    assert found["min_ade_cacheflow"] != found["min_ade_uncached_flow"]
    p50 = [found[f"latency_p50_1_{arm}"]["value"] for arm in ("diffusion", "cacheflow")]
    assert found["speedup_1_cacheflow_over_diffusion"]["value"] == pytest.approx(p50[0] / p50[1])
    gap = found["min_ade_diffusion"]["value"] - found["min_ade_constant_velocity"]["value"]
    assert found["min_ade_difference_diffusion"]["value"] == pytest.approx(gap)
    assert result["provenance"]["scored"] == 12
    assert set(result["provenance"]["digests"]) == {"train", "val", "test"}
    page = (folder / "bench.html").read_text()
    assert "gaussian_velocity" in page
    assert not re.findall(r"(?:src|href)\s*=|url\(|@import", page), "it opens offline"


def test_what_was_trained_is_used_again(measured, recordings, capfd):
    """And what was trained otherwise, or on other data, is refused."""
    folder, before = measured
    assert bench(recordings, folder) == 0
    assert "training" not in capfd.readouterr().out
    again = json.loads((folder / "result.json").read_text())["metrics"]
    for arm in ARMS:
        assert again[f"min_ade_{arm}"] == before["metrics"][f"min_ade_{arm}"]
    assert bench(recordings, folder, "dataset.scene=eth") == 2
    assert "other settings" in capfd.readouterr().err


def test_the_figures_of_constant_velocity(realdata, tmp_path):
    """Of the real eth, by the verb itself."""
    assert cli.main(
        ["bench", "forecast", f"dataset.path={realdata / 'eth_ucy'}", "dataset.scene=eth",
         f"run_dir={tmp_path}", "arms=[constant_velocity]", "samples=1", "drawn=1", "repeats=1"]
    ) == 0  # fmt: skip
    found = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert found["min_ade_constant_velocity"]["value"] == pytest.approx(1.075, abs=5e-4)
    assert found["min_fde_constant_velocity"]["value"] == pytest.approx(2.282, abs=5e-4)
    assert found["min_ade_constant_velocity"]["n"] == 364


def test_constant_velocity_by_hand():
    past = torch.tensor([[[0.0, 0.0], [1.0, 0.5]]])
    found = ConstantVelocity(3).forecast(past, 20, Rng.for_envs(0, [0], [0]))
    assert found.tolist() == [[[[2, 1], [3, 1.5], [4, 2]]]]


def test_the_gaussian_is_that_of_the_errors(data):
    forecaster = GaussianVelocity(data.train)
    past, future = torch.from_numpy(data.train.past), torch.from_numpy(data.train.future)
    straight = ConstantVelocity(12).forecast(
        past, 1, Rng.for_envs(0, range(len(past)), [0] * len(past))
    )
    error = (future[:, None] - straight).flatten(2)
    drawn = forecaster.forecast(past[:1], 4000, Rng.for_envs(0, [0], [0]))
    noise = (drawn - straight[:1]).flatten(2)
    scale = error.std((0, 1))
    assert ((noise.mean(1) - error.mean(0)) / scale).abs().max() < 0.1
    assert ((noise.std(1) - scale) / scale).abs().max() < 0.1
    flat = error[:, 0].double().numpy()
    covariance = np.cov(flat.T) + 1e-6 * np.eye(24)
    expected = multivariate_normal(flat.mean(0), covariance).logpdf(flat)
    np.testing.assert_allclose(forecaster.log_prob(past, future), expected, rtol=1e-6)


def test_noise_belongs_to_a_trajectory(data):
    """Scores do not depend on how many are forecast at a time."""
    test = data.test[slice(0, 7)]
    forecaster, groups = GaussianVelocity(data.train), alike(test.situation, 0.1)
    how = {"samples": 3, "drawn": 5, "seed": 1, "advance": lambda done: None}
    one = score(forecaster, test, groups, batch=1, **how)
    all_at_once = score(forecaster, test, groups, batch=7, **how)
    for name, values in one.columns.items():
        np.testing.assert_allclose(values, all_at_once.columns[name], rtol=1e-4, atol=1e-4)
    other = score(forecaster, test, groups, batch=7, **(how | {"seed": 2}))
    assert not np.allclose(other.columns["min_ade"], one.columns["min_ade"])


class Oracle(Forecaster):
    """Knows what comes, once in its samples."""

    def __init__(self, test):
        self.futures = {
            past.tobytes(): future for past, future in zip(test.past, test.future, strict=True)
        }

    def forecast(self, past, samples, rng):
        truth = np.stack([self.futures[one.numpy().tobytes()] for one in past])
        futures = torch.from_numpy(truth)[:, None].repeat(1, samples, 1, 1)
        futures[:, 1:] += 1
        return futures


def test_the_best_counts_and_events_are_shares(data):
    test = data.test[slice(0, 9)]
    groups = [np.array([row]) for row in range(9)]
    found = score(
        Oracle(test), test, groups, samples=2, drawn=4, batch=4, seed=0, advance=lambda done: None
    )
    np.testing.assert_allclose(found.columns["min_ade"], 0, atol=1e-6)
    np.testing.assert_allclose(found.columns["sample_ade"], math.sqrt(2) / 2, rtol=1e-5)
    np.testing.assert_allclose(found.columns["apd"], math.sqrt(24), rtol=1e-5)
    np.testing.assert_allclose(found.columns["mm_fde"], 0, atol=1e-6)
    for name, event in EVENTS.items():
        past, future = torch.from_numpy(test.past), torch.from_numpy(test.future)
        first, other = event(past, future), event(past, future + 1)
        expected = (first.float() + 3 * other.float()) / 4
        if name in CONCERNS:
            expected[~CONCERNS[name](past)] = torch.nan
        np.testing.assert_allclose(found.said[name], expected)
        assert found.happened[name].tolist() == first.tolist()


class Judge(ConstantVelocity):
    """Likes what ends far ahead."""

    def log_prob(self, past, future):
        return future[:, -1, 0]


def test_a_density_chooses_one_of_the_first_samples(data):
    test = data.test[slice(0, 9)]
    forecaster, groups = GaussianVelocity(data.train), [np.array([row]) for row in range(9)]
    how = {"drawn": 12, "batch": 4, "seed": 0, "advance": lambda done: None, "judge": Judge(12)}
    found = score(forecaster, test, groups, samples=10, **how).columns
    rng = Rng.for_envs(0, range(9), [0] * 9)
    futures = forecaster.forecast(torch.from_numpy(test.past), 12, rng)[:, :8].numpy()
    away = np.linalg.norm(futures - test.future[:, None], axis=-1)
    likeliest = futures[:, :, -1, 0].argmax(1)
    for name, distance in (("chosen_ade", away.mean(-1)), ("chosen_fde", away[..., -1])):
        expected = distance[np.arange(9), likeliest] - distance.mean(1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    assert "chosen_ade" not in score(forecaster, test, groups, samples=7, **how).columns
    assert "chosen_ade" not in score(Judge(12), test, groups, samples=10, **how).columns


@pytest.mark.parametrize("straight", [True, False])
def test_a_flow_learns_how_futures_differ_from_what_is_expected(data, straight):
    past, future = torch.from_numpy(data.train.past), torch.from_numpy(data.train.future)
    learned = differences(Samples(past, future), straight)
    torch.manual_seed(0)
    model = CacheFlowModel.new(CacheFlowConfig(dims=3, components=2, width=8), learned)
    flow = CachedFlow(CacheFlow.build(model, learned), straight)
    ahead = ConstantVelocity(12).forecast(past, 1, None)[:, 0] if straight else past[:, -1:]
    known = (future - ahead).flatten(1)
    drawn = flow.forecast(past[:4], 5, Rng.for_envs(0, range(4), [0] * 4)) - ahead[:4, None]
    assert torch.cdist(drawn.flatten(0, 1).flatten(1), known).amin(1).max() < 1e-2
    torch.testing.assert_close(
        flow.log_prob(past[:4], future[:4]), flow.flow.log_prob(past[:4], (future - ahead)[:4])
    )
    # An event is looked for in the futures of whom it is about.
    far = flow.event_probabilities(past[:4], None, lambda past, all: all[..., -1, 0] > 1e3)
    assert far.tolist() == [0] * 4
    end = (ahead[:4, -1, 0] + (future - ahead)[:, -1, 0].min() - 1e-3)[:, None]
    here = flow.event_probabilities(past[:4], None, lambda past, all: all[..., -1, 0] > end)
    torch.testing.assert_close(here, torch.ones(4))


def test_events_by_hand():
    past = torch.tensor([[-1.0, 0.0], [-0.5, 0.0], [0.0, 0.0]])
    ahead = torch.arange(1, 5)[:, None] * torch.tensor([0.5, 0.0])
    ends = {"turns_left": [2, 1.1], "turns_right": [2, -1.1], "slows_down": [0.9, 0]}
    for name, event in EVENTS.items():
        assert not event(past, ahead)
        for other, end in ends.items():
            future = ahead.clone()
            future[-1] = torch.tensor(end)
            assert bool(event(past, future)) == (name == other)
    assert CONCERNS["slows_down"](past)
    assert not CONCERNS["slows_down"](0.3 * past), "0.15 m may be an annotator's hand"


def test_intervals_know_who_is_alike():
    rng = np.random.default_rng(0)
    values = rng.normal(size=10).repeat(50)
    many = intervals({"min_ade": values}, np.arange(500).astype(str))["min_ade"]
    ten = intervals({"min_ade": values}, np.arange(10).repeat(50).astype(str))["min_ade"]
    assert ten.high - ten.low > 3 * (many.high - many.low)
    came = rng.uniform(size=500) < 0.5
    scores = Scores({}, {"turns_left": np.where(came, 0.9, 0.1)}, {"turns_left": came})
    test = strangers(500)
    found = event_intervals(scores, test)
    assert found["auroc_turns_left"].value == 1
    assert found["auroc_turns_left"].low == 1
    assert found["ece_turns_left"].value == pytest.approx(0.1)
    said = np.where(np.arange(500) < 400, scores.said["turns_left"], np.nan)
    some = Scores({}, {"slows_down": said}, {"slows_down": came | (np.arange(500) >= 400)})
    found = event_intervals(some, test)
    assert found["ece_slows_down"].value == pytest.approx(0.1), "whom it concerns"
    assert found["ece_slows_down"].n == found["online_ece_slows_down"].n == 400
    assert 0 < found["online_ece_slows_down"].value < 0.1, "who is too careful learns it"


def test_what_is_corrected_knows_no_outcome_before_it_came():
    rng = np.random.default_rng(0)
    said, came = rng.uniform(0.2, 0.8, 60), rng.uniform(size=60) < 0.9
    said[::7] = np.nan
    moment = rng.permutation(30).repeat(2)
    corrected = recalibrated(said, came, moment, 5)
    assert (np.isnan(corrected) == np.isnan(said)).all()
    for now in range(30):
        other = came ^ (moment > now - 5)
        again = recalibrated(said, other, moment, 5)
        np.testing.assert_array_equal(again[moment <= now], corrected[moment <= now])
    early = moment < 5
    np.testing.assert_allclose(corrected[early], said[early])
    last, late = moment == 29 - 5, moment == 29
    never, always = (recalibrated(said, it, moment, 5) for it in (came & ~last, came | last))
    assert (never[late] < always[late]).all()


def strangers(count):
    """Trajectories of as many pedestrians, one after another."""
    return Trajectories(
        np.zeros((count, 8, 2), np.float32), np.zeros((count, 12, 2), np.float32),
        np.arange(count).astype(str), np.zeros((count, 1), np.float32), np.arange(count),
    )  # fmt: skip


def test_who_is_right_errs_by_chance_the_less_the_more_there_are():
    rng = np.random.default_rng(1)
    said = rng.uniform(size=4000)
    few, many = (chance_ece(said, (np.arange(4000) % of).astype(str)) for of in (20, 4000))
    assert many.value < 0.03 < 0.06 < few.value
    assert many.low < many.value < many.high
    right = expected_calibration_error(said, rng.uniform(size=4000) < said)
    assert many.low < right < many.high
    assert chance_ece(np.round(said), np.arange(4000).astype(str)).value == 0, "who is sure"


def test_turns_are_of_the_same_agents(data):
    seen = {"a": [], "b": []}

    class Watched(ConstantVelocity):
        def __init__(self, name):
            super().__init__(12)
            self.name = name

        def forecast(self, past, samples, rng):
            seen[self.name].append((past.numpy().tobytes(), samples))
            return super().forecast(past, samples, rng)

    arms = {name: Watched(name) for name in seen}
    timed = time_in_turns(
        arms, data.test, agents=3, samples=4, repeats=5, advance=lambda done: None
    )
    assert {name: len(ms) for name, ms in timed.items()} == {"a": 10, "b": 10}
    assert seen["a"] == seen["b"]
    assert seen["a"][::2] == seen["a"][1::2], "cold, and again warm"
    assert len(set(seen["a"])) == 6


def test_a_forecast_that_is_not_finite_is_told(data):
    class Broken(ConstantVelocity):
        def forecast(self, past, samples, rng):
            return super().forecast(past, samples, rng) * math.nan

    with pytest.raises(FloatingPointError, match="Broken forecast something that is not finite"):
        score(Broken(12), data.test, [], samples=1, drawn=1, batch=2, seed=0, advance=print)


def test_the_digest_is_of_the_numbers(data):
    past = data.train.past.copy()
    past[0, 0, 0] += 1e-3
    other = replace(data.train, past=past)
    assert data_digest(data.train) == data_digest(data.train[slice(None)]) != data_digest(other)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["samples=0"], "samples must be at least 1, got 0"),
        (["drawn=2"], "drawn must be at least samples=3"),
        (["limit=0"], "limit must be at least 1, or null for all"),
        (
            ["arms=[constant_velocity,social_gan]"],
            "arms must be some of constant_velocity, gaussian",
        ),
        (["arms=[diffusion,diffusion]"], "each once"),
        (["dataset.scene=zara3"], "unknown scene 'zara3'; have: eth"),
        (["dataset.path=nowhere"], "nowhere lacks"),
        (["diffusion.arch.n_head=3"], "no denoiser can be built from diffusion.arch"),
        (["+cacheflow.model.depth=3"], "no flow of cacheflow.model"),
        (["diffusion.sampler.kind=magic"], "unknown sampler 'magic'; choose one of ddpm"),
        (["dataset._target_=fastloop.datasets.eth_ucy.HZ"], "dataset"),
    ],
)
def test_a_mistake_is_told_before_any_work(recordings, tmp_path, capsys, overrides, message):
    assert bench(recordings, tmp_path / "run", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.pt"))


def test_data_of_another_kind_are_refused(recordings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "build", lambda config, what: [])
    assert bench(recordings, tmp_path / "run") == 2
    assert "holds no trajectories to forecast; have: eth_ucy" in capsys.readouterr().err
    assert cli.main(["bench", "forecast"]) == 2
    assert "dataset.path has no default; say dataset.path=" in capsys.readouterr().err


def test_help(capsys):
    assert cli.main(["bench", "forecast", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fastloop bench forecast [key=value ...]")
    assert "eth_ucy" in out
