"""How good forecasts are: scores of every trajectory, and what they are in the mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastloop.bench.forecast.events import CONCERNS, EVENTS
from fastloop.bench.forecast.forecasters import Forecaster
from fastloop.bench.forecast.online import recalibrated
from fastloop.datasets.scores.intervals import mean_interval
from fastloop.datasets.scores.probabilities import auroc, expected_calibration_error
from fastloop.datasets.scores.sampled import (
    average_pairwise_distance,
    displacements,
    kde_log_likelihood,
    multimodal_displacements,
)
from fastloop.datasets.trajectories import Trajectories
from fastloop.policies.rng import Rng
from fastloop.sims.stats import Interval

__all__ = [
    "CHOICE",
    "UNITS",
    "Scores",
    "bootstrap",
    "chance_ece",
    "event_intervals",
    "intervals",
    "score",
]

UNITS = {
    "min_ade": "m", "min_fde": "m", "sample_ade": "m", "sample_fde": "m", "apd": "m",
    "mm_ade": "m", "mm_fde": "m", "kde_nll": "nats", "nll": "nats", "chosen_ade": "m",
    "chosen_fde": "m",
}  # fmt: skip
CHOICE = 8  # samples of which a density chooses
RESAMPLES = 300


@dataclass(frozen=True)
class Scores:
    """What one arm got.

    Attributes:
        columns: name of one of `UNITS` to (n,) a trajectory's figure; what an arm has no samples or
            no density for is not there.
        said: name of an event to its probabilities (n,), NaN of whom it does not concern.
        happened: name of an event to whether it did (n,).
    """

    columns: Mapping[str, NDArray[np.floating]]
    said: Mapping[str, NDArray[np.floating]]
    happened: Mapping[str, NDArray[np.bool_]]


def score(
    forecaster: Forecaster,
    test: Trajectories,
    alike: Sequence[NDArray[np.int64]],
    *,
    samples: int,
    drawn: int,
    batch: int,
    seed: int,
    advance: Callable[[int], None],
    judge: Forecaster | None = None,
) -> Scores:
    """Forecast and score every trajectory of `test`.

    Noise belongs to a trajectory, so that scores do not depend on `batch` but by rounding.

    Args:
        forecaster: who.
        test: of what.
        alike: for each of them, the rows of `test` in the same situation.
        samples: N, of which the best counts.
        drawn: samples of densities and event probabilities, of which the first N are those.
        batch: trajectories at a time.
        seed: of the samples.
        advance: told how many are done.
        judge: whose density chooses one of the first `CHOICE` samples; ``chosen_ade`` and
            ``chosen_fde`` are by how much its distances are beyond those of one in the mean.

    Raises:
        FloatingPointError: a forecast is not finite.
    """
    columns: dict[str, list[NDArray[np.floating]]] = {name: [] for name in UNITS}
    in_the_plane = test.past.shape[2] == 2  # and not a body
    events = EVENTS if in_the_plane else {}
    said: dict[str, list[NDArray[np.floating]]] = {name: [] for name in events}
    happened: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in events}
    for start in range(0, len(test), batch):
        rows = slice(start, min(start + batch, len(test)))
        past, future = torch.from_numpy(test.past[rows]), torch.from_numpy(test.future[rows])
        rng = Rng.for_envs(seed, range(rows.start, rows.stop), [0] * len(past))
        futures = forecaster.forecast(past, drawn, rng)
        if not futures.isfinite().all():
            raise FloatingPointError(
                f"{type(forecaster).__name__} forecast something that is not finite"
            )
        few, truth = futures[:, :samples].numpy(), test.future[rows]
        mean, last = displacements(few, truth)
        found = {
            "min_ade": mean.min(1), "min_fde": last.min(1), "sample_ade": mean.mean(1),
            "sample_fde": last.mean(1), "apd": average_pairwise_distance(few),
        }  # fmt: skip
        found["mm_ade"], found["mm_fde"] = multimodal_displacements(few, test.future, alike[rows])
        if in_the_plane and futures.shape[1] > 2:
            found["kde_nll"] = -kde_log_likelihood(futures.numpy(), truth)
        if judge is not None and mean.shape[1] >= CHOICE:
            some = futures[:, :CHOICE].flatten(0, 1)
            likely = judge.log_prob(past.repeat_interleave(CHOICE, 0), some)
            assert likely is not None
            best = likely.view(-1, CHOICE).argmax(1, keepdim=True).numpy()
            for name, away in zip(("chosen_ade", "chosen_fde"), (mean, last), strict=True):
                of = away[:, :CHOICE]
                found[name] = np.take_along_axis(of, best, 1)[:, 0] - of.mean(1)
        own = forecaster.log_prob(past, future)
        if own is not None:
            found["nll"] = -own.double().cpu().numpy()
        for name, values in found.items():
            columns[name].append(values)
        for name, event in events.items():
            likely = forecaster.event_probabilities(past, futures, event).cpu()
            if name in CONCERNS:
                likely = likely.masked_fill(~CONCERNS[name](past), torch.nan)
            said[name].append(likely.numpy())
            happened[name].append(event(past, future).numpy())
        advance(rows.stop)
    return Scores(
        {name: np.concatenate(parts) for name, parts in columns.items() if parts},
        {name: np.concatenate(parts) for name, parts in said.items()},
        {name: np.concatenate(parts) for name, parts in happened.items()},
    )


def intervals(
    columns: Mapping[str, NDArray[np.floating]], groups: NDArray[np.str_]
) -> dict[str, Interval]:
    """The mean of each column, bootstrapped over groups."""
    return {
        name: Interval(*mean_interval(values, groups, resamples=2000), n=len(values))
        for name, values in columns.items()
    }


def event_intervals(scores: Scores, test: Trajectories) -> dict[str, Interval]:
    """``ece_<event>`` and ``auroc_<event>`` of every event, bootstrapped over groups;
    ``online_ece_<event>`` and ``online_auroc_<event>``, see `recalibrated`; and
    ``chance_ece_<event>``, see `chance_ece`."""
    found = {}
    for name, said in scores.said.items():
        concerned, happened = ~np.isnan(said), scores.happened[name]
        online = recalibrated(said, happened, test.moment, test.future.shape[1])
        groups = test.groups[concerned]
        for before, likely in (("", said), ("online_", online)):
            rows = likely[concerned], happened[concerned], groups
            for what, figure in (("ece", expected_calibration_error), ("auroc", auroc)):
                found[f"{before}{what}_{name}"] = bootstrap(figure, *rows)
        found[f"chance_ece_{name}"] = chance_ece(said[concerned], groups)
    return found


def chance_ece(said: NDArray[np.floating], groups: NDArray[np.str_]) -> Interval:
    """The calibration error of somebody who says the same and is right about it, in the mean and in
    95 of 100 draws: errors of this size say nothing against a forecaster.

    All moments of a group have one fate: what is said of each as likely as this happens.
    """
    names, member = np.unique(groups, return_inverse=True)
    fates = np.random.default_rng(0).uniform(size=(RESAMPLES, len(names)))
    drawn = [expected_calibration_error(said, fate[member] < said) for fate in fates]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(said) else (np.nan, np.nan)
    return Interval(float(np.mean(drawn)), float(low), float(high), n=len(said))


def bootstrap(
    figure: Callable[[NDArray[np.floating], NDArray[np.bool_]], float],
    said: NDArray[np.floating],
    came: NDArray[np.bool_],
    groups: NDArray[np.str_],
) -> Interval:
    """A figure of all forecasts, and percentiles of it where groups are drawn with replacement."""
    _, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order, ends = np.argsort(member, kind="stable"), np.cumsum(counts)
    members = np.split(order, ends[:-1])
    rng = np.random.default_rng(0)
    drawn = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        drawn[k] = figure(said[rows], came[rows])
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Interval(figure(said, came), float(low), float(high), n=len(said))
