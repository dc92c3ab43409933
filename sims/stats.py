"""What a set of episodes and timed calls lets us claim, and with what certainty.

Every rate comes with an interval and its n; policies are compared on paired episodes (same task,
seed and initial state), where a few hundred pairs show what takes thousands of unpaired episodes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

__all__ = [
    "Interval",
    "LatencySummary",
    "PairedDifference",
    "Verdict",
    "latency_summary",
    "mcnemar_exact",
    "mean_over_tasks",
    "non_inferiority",
    "paired_difference",
    "pairs_needed",
    "ratio_of_medians",
    "tango",
    "wilson",
]

Verdict = Literal["non-inferior", "inconclusive", "inferior"]
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from `n` observations (``nan`` value when 0)."""

    value: float
    low: float
    high: float
    n: int

    def ends(self, form: str = ".2f", unit: str = "") -> str:
        """``low to high``; a dash where nothing tells them."""
        if math.isnan(self.low):
            return "-"
        return f"{self.low:{form}}{unit} to {self.high:{form}}{unit}"


@dataclass(frozen=True)
class PairedDifference:
    """Success of a candidate minus success of a baseline over the same episodes.

    Attributes:
        interval: difference of the two rates; its n counts pairs.
        gained: pairs in which only the candidate succeeds.
        lost: pairs in which only the baseline succeeds.
        p_value: McNemar's exact two-sided p of "no difference".
    """

    interval: Interval
    gained: int
    lost: int
    p_value: float

    @property
    def discordance(self) -> float:
        """Share of pairs with different outcomes, 0 to 1."""
        return (self.gained + self.lost) / self.interval.n if self.interval.n else 0.0


@dataclass(frozen=True)
class LatencySummary:
    """Latency of the warm calls in milliseconds; cold calls (first of a process) are apart."""

    n: int
    p50: float
    p90: float
    p99: float
    max: float
    cold_n: int
    cold_p50: float
    cold_max: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a success rate (Wilson 1927, without continuity correction).

    Raises:
        ValueError: when not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, got {successes} successes of {n}")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    bounds = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high), n)


def mean_over_tasks(
    outcomes: Mapping[str, Sequence[bool]],
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of the tasks' success rates, every task weighing the same (Agarwal et al. 2021).

    The percentile bootstrap resamples episodes within each task. A task whose episodes all end
    alike adds no width, so read it beside the Wilson interval of each task.

    Raises:
        ValueError: when a task has no episode, or there is no task.
    """
    empty = [task for task, values in outcomes.items() if not len(values)]
    if empty or not outcomes:
        raise ValueError(f"every task needs an episode; without one: {empty or 'no task given'}")
    n = np.array([len(values) for values in outcomes.values()])
    rates = np.array([np.mean(values) for values in outcomes.values()])
    # Resampling n booleans of mean p with replacement is one draw from Binomial(n, p).
    draws = np.random.default_rng(seed).binomial(n, rates, size=(resamples, len(n))) / n
    low, high = _percentiles(draws.mean(axis=1), confidence)
    value = float(rates.mean())
    return Interval(value, min(low, value), max(high, value), int(n.sum()))


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p of McNemar's exact test from the two discordant counts (1 when both are 0)."""
    if b < 0 or c < 0:
        raise ValueError(f"discordant counts cannot be negative, got {b} and {c}")
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def tango(b: int, c: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of the paired difference (b - c) / n (Tango 1998, Statist. Med. 17:891).

    It inverts the score test, so it holds 0 exactly when McNemar's uncorrected chi-square does not
    reject, and stays informative with no discordant pair, where Wald's has no width.

    Args:
        b: pairs in which only the first succeeds.
        c: pairs in which only the second succeeds.
        n: all pairs.

    Raises:
        ValueError: when the counts do not fit together.
    """
    if min(b, c) < 0 or b + c > n:
        raise ValueError(f"expected 0 <= b, c and b + c <= n, got b={b}, c={c}, n={n}")
    if n == 0:
        return Interval(math.nan, -1.0, 1.0, 0)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    low, high = _tango_low(b, c, n, z), -_tango_low(c, b, n, z)
    return Interval((b - c) / n, low, high, n)


def _tango_low(b: int, c: int, n: int, z: float) -> float:
    """The smallest difference that the score test at `z` does not reject."""

    def excess(delta: float) -> float:
        return b - c - n * delta - z * math.sqrt(n * _score_variance(b / n, c / n, delta))

    # The variance may vanish at the estimate itself, which is then a root that we do not want.
    below = (b - c) / n - 1e-12
    if below <= -1 or excess(-1.0) <= 0:
        return -1.0
    return float(optimize.brentq(excess, -1.0, below, xtol=1e-12))


def _score_variance(first: float, second: float, delta: float) -> float:
    """Variance of one pair's difference if the true one is `delta`.

    Args:
        first, second: observed shares of pairs in which only the first, the second succeeds.
    """
    # q is the probability of "only the second", most likely given the difference delta.
    linear = -first - second + (2 - first + second) * delta
    root = math.sqrt(max(0.0, linear**2 + 8 * second * delta * (1 - delta)))
    q = (root - linear) / 4
    return max(0.0, 2 * q + delta * (1 - delta))


def paired_difference(
    candidate: Mapping[Hashable, bool],
    baseline: Mapping[Hashable, bool],
    confidence: float = 0.95,
) -> PairedDifference:
    """Compare two policies on the episodes that both have run, paired by key."""
    both = candidate.keys() & baseline.keys()
    gained = sum(candidate[key] and not baseline[key] for key in both)
    lost = sum(baseline[key] and not candidate[key] for key in both)
    interval = tango(gained, lost, len(both), confidence)
    return PairedDifference(interval, gained, lost, mcnemar_exact(gained, lost))


def non_inferiority(difference: Interval, margin: float) -> Verdict:
    """Whether a difference (candidate minus baseline) rules out a loss of `margin` or more.

    With a 95 % interval this is the usual one-sided test at 2.5 %: non-inferior when the low end
    lies above -margin, inferior when the whole interval lies below it, else inconclusive.

    Raises:
        ValueError: when not 0 < margin < 1 (0.05 stands for five points).
    """
    check_margin(margin)
    if difference.low > -margin:
        return "non-inferior"
    return "inferior" if difference.high < -margin else "inconclusive"


def pairs_needed(
    discordance: float,
    margin: float,
    difference: float = 0.0,
    power: float = 0.8,
    confidence: float = 0.95,
) -> int:
    """Number of pairs at which `tango` shows non-inferiority with the given power.

    Nam (1997, Biometrics 53:1422), whose variance at the margin is that of the score test.

    Args:
        discordance: share of pairs that end differently, 0 to 1.
        margin: largest loss that is still acceptable.
        difference: the true difference that is assumed, above -margin.
    """
    check_margin(margin)
    if difference <= -margin:
        raise ValueError(f"no number of pairs can show {difference} to be above {-margin}")
    if not abs(difference) <= discordance <= 1:
        raise ValueError(f"discordance must lie in [{abs(difference)}, 1], got {discordance}")
    gained, lost = (discordance + difference) / 2, (discordance - difference) / 2
    at_margin = math.sqrt(_score_variance(gained, lost, -margin))
    at_truth = math.sqrt(discordance - difference**2)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    reach = z * at_margin + float(stats.norm.ppf(power)) * at_truth
    return math.ceil((reach / (margin + difference)) ** 2)


def latency_summary(latencies_ms: Sequence[float], cold: Sequence[bool]) -> LatencySummary:
    """Percentiles of the warm calls, with the cold ones apart (``nan`` where there is none).

    Raises:
        ValueError: when the two sequences differ in length.
    """
    if len(latencies_ms) != len(cold):
        raise ValueError(f"{len(latencies_ms)} latencies but {len(cold)} cold flags")
    values, is_cold = np.asarray(latencies_ms, dtype=float), np.asarray(cold, dtype=bool)
    warm, first = values[~is_cold], values[is_cold]
    p50, p90, p99, top = np.percentile(warm, [50, 90, 99, 100]) if warm.size else [math.nan] * 4
    cold_p50, cold_max = np.percentile(first, [50, 100]) if first.size else [math.nan] * 2
    return LatencySummary(
        n=warm.size,
        p50=float(p50),
        p90=float(p90),
        p99=float(p99),
        max=float(top),
        cold_n=first.size,
        cold_p50=float(cold_p50),
        cold_max=float(cold_max),
    )


def ratio_of_medians(
    baseline_ms: Sequence[float],
    candidate_ms: Sequence[float],
    *,
    paired: bool,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Speed-up: median of the baseline over median of the candidate, with a bootstrap interval,
    whose ends are ``nan`` where one of them was timed once.

    Args:
        baseline_ms, candidate_ms: warm latencies.
        paired: the i-th of both were timed back to back, so they are resampled together and what
            slows both down (another process, a clock change) cancels.

    Raises:
        ValueError: without a latency, with one that is not positive, or paired and unequal.
    """
    slow, fast = np.asarray(baseline_ms, dtype=float), np.asarray(candidate_ms, dtype=float)
    if not slow.size or not fast.size or not min(slow.min(), fast.min()) > 0:
        raise ValueError("a speed-up needs positive latencies of both policies")
    if paired and slow.size != fast.size:
        raise ValueError(f"pairs expected, got {slow.size} and {fast.size} latencies")
    value, n = float(np.median(slow) / np.median(fast)), min(slow.size, fast.size)
    if n < 2:  # nothing tells how far another one would lie from it
        return Interval(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        left = rng.integers(slow.size, size=slow.size)
        right = left if paired else rng.integers(fast.size, size=fast.size)
        ratios[i] = np.median(slow[left]) / np.median(fast[right])
    low, high = _percentiles(ratios, confidence)
    return Interval(value, min(low, value), max(high, value), n)


def _percentiles(draws: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def check_margin(margin: float) -> None:
    """Refuse what is no fraction between 0 and 1; raises ValueError."""
    if not 0 < margin < 1:
        raise ValueError(f"margin is a fraction between 0 and 1 (0.05 = 5 points), got {margin}")
