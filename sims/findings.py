"""What a run shows: success, paired comparison, latency, speed-up and coverage.

An episode that ended in an error counts as no success of its arm, and is a hole in the coverage.
In a comparison an error of the candidate counts against it, and an error of the baseline drops the
pair, so that a crash never flatters the candidate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, get_args

import yaml

from fastloop.datasets.scores.intervals import mean_interval
from fastloop.sims.predictability import Predictability, predict
from fastloop.sims.stats import (
    Interval,
    LatencySummary,
    PairedDifference,
    Verdict,
    latency_summary,
    mean_over_tasks,
    non_inferiority,
    paired_difference,
    pairs_needed,
    ratio_of_medians,
    wilson,
)
from fastloop.sims.summary import Arm, Key, Outcome, RunSummary

__all__ = ["ArmFindings", "Comparison", "Coverage", "Findings", "analyze", "result_json"]


@dataclass(frozen=True)
class Coverage:
    """How much of the plan ended with a verdict on the policy.

    Attributes:
        planned: episodes planned, over all arms.
        finished: those that ended in success, failure or timeout.
        missing: by arm, the planned episodes that have not run.
        errors: by arm, the episodes that broke.
        causes: by arm, what the first of them broke with.
    """

    planned: int
    finished: int
    missing: Mapping[str, list[Key]]
    errors: Mapping[str, list[Key]]
    causes: Mapping[str, str]

    @property
    def value(self) -> float:
        return self.finished / self.planned if self.planned else 0.0

    @property
    def complete(self) -> bool:
        return 0 < self.planned == self.finished

    def sentence(self) -> str:
        """What is there and what is not, in one line for people."""
        if not self.planned:
            return "No episode was planned, so there is nothing to claim."
        if self.complete:
            return f"All {self.planned} planned episodes finished."
        holes = [f"{name}: not run {_few(keys)}" for name, keys in self.missing.items() if keys]
        holes += [
            f"{name}: error in {_few(keys)} ({self.causes[name]})"
            for name, keys in self.errors.items()
            if keys
        ]
        return (
            f"Partial result: {self.finished} of {self.planned} planned episodes "
            f"finished. {'; '.join(holes)}."
        )


@dataclass(frozen=True)
class ArmFindings:
    """One policy's success (overall, by task, mean over tasks when several), latency, the means of
    what else its simulators say, and how predictable its actions are."""

    name: str
    success: Interval
    outcomes: Mapping[Outcome, int]
    by_task: Mapping[str, Interval]
    over_tasks: Interval | None
    latency: LatencySummary
    figures: Mapping[str, Interval] = field(default_factory=dict)
    predictability: Predictability = field(default_factory=lambda: Predictability(math.nan, 0))


@dataclass(frozen=True)
class Comparison:
    """A candidate against the baseline; `speedup` is None where nothing was timed, and `figures`
    are mean differences over pairs of episodes."""

    baseline: str
    candidate: str
    difference: PairedDifference
    margin: float
    verdict: Verdict
    pairs_needed: int
    speedup: Interval | None
    interleaved: bool
    figures: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def speed_differs(self) -> bool:
        """Whether the interval of the speed-up leaves out 1."""
        return bool(self.speedup and (self.speedup.low > 1 or self.speedup.high < 1))

    def headline(self) -> str:
        """The verdict in a few words."""
        words = {
            "non-inferior": "success not inferior",
            "inferior": "success inferior",
            "inconclusive": "success comparison still open",
        }
        pace = f"{self.speedup.value:.2f}x as fast" if self.speedup else "speed not measured"
        if self.speedup and not self.speed_differs:
            pace = "no speed-up shown"
        return f"{self.candidate}: {pace}, {words[self.verdict]}"

    def sentence(self) -> str:
        """The claim that the run supports, and no stronger one."""
        pace = ""
        if self.speedup:
            pace = (
                f"{self.candidate} plans {self.speedup.value:.2f}x as fast as {self.baseline} "
                f"({self.speedup.ends()}"
                f"{'' if self.speed_differs else ', so no difference is shown'}). "
            )
        interval, points = self.difference.interval, f"{100 * self.margin:g} points"
        if not interval.n:
            return f"{pace}No pair of episodes has finished, so success cannot be compared."
        shown = (
            f"{100 * interval.value:+.1f} points ({100 * interval.low:+.1f} to "
            f"{100 * interval.high:+.1f}) over {interval.n} pairs"
        )
        if self.verdict == "non-inferior":
            return f"{pace}Its success is not worse by {points} or more: {shown}."
        if self.verdict == "inferior":
            return f"{pace}Its success is worse by more than {points}: {shown}."
        return f"{pace}Whether its success is worse by {points} is open: {shown}; {self.outlook()}."

    def outlook(self) -> str:
        """What an open comparison needs: a fresh run, for adding pairs until it passes cheats."""
        if self.difference.interval.high < 0:
            return "a loss is shown, and its size is what is open"
        return (
            f"a fresh run of {max(self.pairs_needed, self.difference.interval.n)} pairs shows it "
            "four times in five if the two are equally good"
        )


@dataclass(frozen=True)
class Findings:
    """All that a report states; `comparisons` holds one for each arm after the first."""

    arms: list[ArmFindings]
    comparisons: list[Comparison]
    coverage: Coverage


@lru_cache(maxsize=1)
def analyze(summary: RunSummary) -> Findings:
    """Draw the conclusions from a run (cached: console, JSON and HTML show the same figures)."""
    baseline = summary.arms[0]
    return Findings(
        arms=[_arm(arm, summary.demonstrations) for arm in summary.arms],
        comparisons=[_compare(summary, baseline, arm) for arm in summary.arms[1:]],
        coverage=_coverage(summary),
    )


def result_json(summary: RunSummary) -> dict[str, Any]:
    """The content of ``result.json``: verb, config, provenance, metrics and coverage.

    Metrics are named ``success/<arm>`` and ``latency_p50/<arm>`` (p90, p99, max, cold_max), with
    ``success_difference`` and ``speedup`` of the first candidate under these plain names and of
    further ones as ``speedup/<arm>``. What simulators say besides is ``<figure>/<arm>`` and
    ``<figure>_difference``. ``action_prediction_error/<arm>`` is how far off the prediction of an
    action from the two before is, ``action_predictability/<arm>`` the demonstrations' error over
    it, where there are some. What could not be measured is null.
    """
    findings = analyze(summary)
    metrics: dict[str, dict[str, Any]] = {}
    for index, comparison in enumerate(findings.comparisons):
        suffix = f"/{comparison.candidate}" if index else ""
        metrics[f"success_difference{suffix}"] = _metric(
            "fraction", **asdict(comparison.difference.interval)
        )
        speedup = comparison.speedup or Interval(math.nan, math.nan, math.nan, 0)
        metrics[f"speedup{suffix}"] = _metric("x", **asdict(speedup))
        for name, gap in comparison.figures.items():
            metrics[f"{name}_difference{suffix}"] = _metric("", **asdict(gap))
    for arm in findings.arms:
        metrics[f"success/{arm.name}"] = _metric("fraction", **asdict(arm.success))
        latency = arm.latency
        for name in ("p50", "p90", "p99", "max"):
            value = getattr(latency, name)
            metrics[f"latency_{name}/{arm.name}"] = _metric("ms", value=value, n=latency.n)
        metrics[f"latency_cold_max/{arm.name}"] = _metric(
            "ms", value=latency.cold_max, n=latency.cold_n
        )
        for name, mean in arm.figures.items():
            metrics[f"{name}/{arm.name}"] = _metric("", **asdict(mean))
        foretold = arm.predictability
        if foretold.n:
            metrics[f"action_prediction_error/{arm.name}"] = _metric(
                "variance", value=foretold.error, n=foretold.n
            )
        if summary.demonstrations:
            metrics[f"action_predictability/{arm.name}"] = _metric(
                "x", value=foretold.ratio, n=foretold.n
            )
    return {
        "schema": 1,
        "verb": summary.verb,
        "config": yaml.safe_load(summary.config) if summary.config else {},
        "provenance": dict(summary.provenance),
        "metrics": metrics,
        "coverage": {
            "value": findings.coverage.value,
            "complete": findings.coverage.complete,
            **asdict(findings.coverage),
        },
    }


def _arm(arm: Arm, demonstrations: Sequence[Sequence[float]]) -> ArmFindings:
    by_task: dict[str, list[bool]] = {}
    for episode in arm.episodes:
        by_task.setdefault(episode.task, []).append(episode.outcome == "success")
    counts = Counter(episode.outcome for episode in arm.episodes)
    return ArmFindings(
        name=arm.name,
        success=wilson(counts["success"], len(arm.episodes)),
        outcomes={outcome: counts[outcome] for outcome in get_args(Outcome)},
        by_task={task: wilson(sum(wins), len(wins)) for task, wins in sorted(by_task.items())},
        over_tasks=mean_over_tasks(by_task) if len(by_task) > 1 else None,
        latency=latency_summary(arm.latencies_ms, arm.cold),
        figures=_means([episode.figures for episode in arm.episodes]),
        predictability=predict([episode.moments for episode in arm.episodes], demonstrations),
    )


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """The mean of every figure over the episodes that have it."""
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if not math.isnan(row.get(name, math.nan))]
        means[name] = Interval(*mean_interval(values), len(values))
    return means


def _compare(summary: RunSummary, baseline: Arm, candidate: Arm) -> Comparison:
    difference = paired_difference(
        {episode.key: episode.outcome == "success" for episode in candidate.episodes},
        {
            episode.key: episode.outcome == "success"
            for episode in baseline.episodes
            if episode.outcome != "error"
        },
    )
    before = {episode.key: episode for episode in baseline.episodes}
    times = summary.interleaved_ms
    interleaved = baseline.name in times and candidate.name in times
    slow = list(times[baseline.name]) if interleaved else _warm(baseline)
    fast = list(times[candidate.name]) if interleaved else _warm(candidate)
    return Comparison(
        baseline=baseline.name,
        candidate=candidate.name,
        difference=difference,
        margin=summary.margin,
        verdict=non_inferiority(difference.interval, summary.margin),
        pairs_needed=pairs_needed(difference.discordance, summary.margin),
        speedup=ratio_of_medians(slow, fast, paired=interleaved) if slow and fast else None,
        interleaved=interleaved,
        figures=_means(
            [
                {
                    name: value - base.figures[name]
                    for name, value in episode.figures.items()
                    if name in base.figures
                }
                for episode in candidate.episodes
                for base in [before.get(episode.key)]
                if base
            ]
        ),
    )


def _coverage(summary: RunSummary) -> Coverage:
    missing, errors, causes = {}, {}, {}
    for arm in summary.arms:
        ran = {episode.key: episode for episode in arm.episodes}
        missing[arm.name] = [key for key in summary.planned if key not in ran]
        broke = [key for key in summary.planned if key in ran and ran[key].outcome == "error"]
        errors[arm.name] = broke
        causes[arm.name] = ran[broke[0]].detail.strip().rpartition("\n")[2] if broke else ""
    planned = len(summary.planned) * len(summary.arms)
    holes = sum(map(len, missing.values())) + sum(map(len, errors.values()))
    return Coverage(planned, planned - holes, missing, errors, causes)


def _warm(arm: Arm) -> list[float]:
    return [ms for ms, cold in zip(arm.latencies_ms, arm.cold, strict=True) if not cold]


def _metric(
    unit: str, *, value: float, n: int, low: float = math.nan, high: float = math.nan
) -> dict[str, Any]:
    numbers = {"value": value, "low": low, "high": high}
    return {"unit": unit, "n": n} | {
        name: None if math.isnan(number) else number for name, number in numbers.items()
    }


def _few(keys: Iterable[Key], shown: int = 5) -> str:
    keys = list(keys)
    names = ", ".join(f"{task} seed {seed}" for task, seed in keys[:shown])
    return f"{names} and {len(keys) - shown} more" if len(keys) > shown else names
