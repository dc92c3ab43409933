"""What an answer takes: passes, what they settle, host syncs and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.passes import PHASES
from fastloop.accel.decoding.result import Decoded
from fastloop.datasets.scores.intervals import mean_interval
from fastloop.sims.stats import Interval

__all__ = ["Work", "agreement", "mean", "measure_work", "passes", "ratio"]


@dataclass(frozen=True)
class Work:
    """Of one arm. Figures are of a plan, forks in lock step counting once; passes are those over
    answers, that over the prompt is not among them.

    Attributes:
        phases: mean passes of each phase.
        forwards: mean passes.
        tokens_fed: mean tokens of a row that went through the model in them.
        tokens_per_forward, values_per_forward: slots of an answer a pass: all of them, and those
            that were not given.
        cycles: how many cycles accepted so many slots, over all plans.
        host_syncs: mean number of times that the host waited for the device.
        kv_bytes: largest memory of keys and values.
    """

    phases: Mapping[str, float]
    forwards: Interval
    tokens_fed: Interval
    tokens_per_forward: Interval
    values_per_forward: Interval
    cycles: Counter[int]
    host_syncs: float
    kv_bytes: int

    @property
    def accepted(self) -> float | None:
        """Mean slots that a cycle accepted; None where nothing is drafted."""
        count = self.cycles.total()
        return sum(size * times for size, times in self.cycles.items()) / count if count else None


def measure_work(answers: Sequence[Decoded], episodes: Sequence[int]) -> Work:
    """The work of answers, each of a prompt of one of `episodes`."""
    slots, values = answers[0].tokens.shape[1], answers[0].values
    forwards = [passes(one) for one in answers]
    return Work(
        phases={p: float(np.mean([one.forwards[p] for one in answers])) for p in PHASES},
        forwards=mean(forwards, episodes),
        tokens_fed=mean([one.tokens_fed for one in answers], episodes),
        tokens_per_forward=ratio([slots] * len(answers), forwards, episodes),
        values_per_forward=ratio([values] * len(answers), forwards, episodes),
        cycles=sum((one.accepted_a_cycle for one in answers), Counter()),
        host_syncs=float(np.mean([one.host_syncs for one in answers])),
        kv_bytes=max(one.kv_bytes for one in answers),
    )  # fmt: skip


def agreement(
    answers: Sequence[Decoded], plain: Sequence[Decoded], canvas: Canvas, episodes: Sequence[int]
) -> Interval:
    """Share of the tokens that were not given that are those of other answers, of one row each."""
    values = ~canvas.given
    same = [
        float((one.tokens.cpu() == other.tokens.cpu())[:, values].double().mean())
        for one, other in zip(answers, plain, strict=True)
    ]
    return mean(same, episodes)


def passes(answer: Decoded) -> int:
    """Those over an answer."""
    return answer.network_evaluations - answer.forwards["prefill"]


def mean(values: Sequence[float], episodes: Sequence[int]) -> Interval:
    """A mean with its 95 % interval, by a bootstrap over episodes; ends are NaN for one episode."""
    return Interval(*mean_interval(values, episodes), len(values))


def ratio(above: Sequence[float], below: Sequence[float], episodes: Sequence[int]) -> Interval:
    """How often the second goes into the first, as one over the mean of the shares of each prompt,
    with its 95 % interval."""
    shares = [b / a for a, b in zip(above, below, strict=True)]
    share = mean(shares, episodes)
    return Interval(1 / share.value, 1 / share.high, 1 / share.low, share.n)
