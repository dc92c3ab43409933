"""Probabilities of an event, corrected by how often it has come true here."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

__all__ = ["Recalibration"]

UNLIKELY = 1e-3  # no event is taken for less likely than this, or than this not to come


class Recalibration:
    """Learns by how much the odds of one event differ from what a forecaster says.

    A forecaster that was trained elsewhere knows how people moved there. What it says of an event
    is shifted in log-odds by one number for all, the likeliest after the outcomes so far under a
    standard normal prior (Platt's offset, learned as in logistic regression with Laplace's
    approximation).

    Attributes:
        shift: what is added to log-odds, 0 before anything was learned.
        precision: of what is known about it, one over its variance.
    """

    def __init__(self) -> None:
        self.shift, self.precision = 0.0, 1.0

    def __call__(self, said: ArrayLike) -> NDArray[np.float64]:
        """Corrected probabilities, of `said` ones in [0, 1], any shape.

        Raises:
            ValueError: a probability is none.
        """
        return np.asarray(expit(_log_odds(said) + self.shift))

    def learn(self, said: ArrayLike, happened: ArrayLike, weight: float = 1.0) -> None:
        """Take in what came of forecasts.

        Args:
            said: (n,) what the forecaster said, uncorrected.
            happened: (n,) truth values.
            weight: of each. Forecasts of one agent from one moment after another share most of
                their future, and tell little more than one of them.

        Raises:
            ValueError: shapes differ, a probability is none, or `weight` is not positive.
        """
        odds, came = _log_odds(said), np.asarray(happened, dtype=bool)
        if odds.shape != came.shape:
            raise ValueError(f"{odds.shape} probabilities for {came.shape} outcomes")
        if not 0 < weight < math.inf:
            raise ValueError(f"weight must be a positive number, got {weight}")

        def slope(shift: float) -> float:
            surprise = (came - expit(odds + shift)).sum()
            return float(self.precision * (shift - self.shift) - weight * surprise)

        # No surprise exceeds one, so that the root lies between these.
        reach = weight * odds.size / self.precision
        if reach:
            self.shift = float(brentq(slope, self.shift - reach, self.shift + reach))
        likely = expit(odds + self.shift)
        self.precision += weight * float((likely * (1 - likely)).sum())


def _log_odds(said: ArrayLike) -> NDArray[np.float64]:
    said = np.asarray(said, dtype=np.float64)
    if not ((said >= 0) & (said <= 1)).all():
        raise ValueError(f"probabilities {said}, expected numbers in [0, 1]")
    return np.asarray(logit(said.clip(UNLIKELY, 1 - UNLIKELY)))
