"""How well the actions of a policy can be told from the two before, in closed form.

A policy that copies its own past is more predictable than the expert that it learned from, one that
has lost the thread from plan to plan is less so (Torne et al. 2025, who train a small network to
predict; here it is a ridge regression, which is the same whenever it is made).

An episode is summed up by its moments: the sums of z z' over its ticks t, z being 1, action t - 1,
action t - 2 and action t. They are all that the regression needs, whatever the scale of an action.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ActionMoments", "Predictability", "action_predictability", "moments_of", "predict"]

TEST_EVERY = 10  # one episode in ten is for testing
RIDGE = 1e-6  # of a regressor's variance
CONSTANT = 1e-6  # of its size: an element that spreads less does not change

Moments = Sequence[float]
Array = NDArray[np.float64]


class ActionMoments:
    """The moments of one episode, tick by tick."""

    def __init__(self) -> None:
        self._past: deque[Array] = deque(maxlen=2)
        self._sums: Array | None = None

    def add(self, action: ArrayLike) -> None:
        """Take in the action (A,) that was executed next."""
        now = np.asarray(action, dtype=np.float64)
        if len(self._past) == 2:
            z = np.concatenate([[1.0], self._past[1], self._past[0], now])
            # Products and sums of single numbers: no library decides how they are rounded.
            products = z[:, None] * z
            self._sums = products if self._sums is None else self._sums + products
        self._past.append(now)

    def packed(self) -> list[float]:
        """The upper triangle of the sums, row by row; empty for fewer than three actions."""
        if self._sums is None:
            return []
        packed: list[float] = self._sums[np.triu_indices(len(self._sums))].tolist()
        return packed


@dataclass(frozen=True)
class Predictability:
    """How far off the prediction of an action is, on episodes that it was not fitted to.

    Attributes:
        error: mean squared error in units of an element's variance (the demonstrations', where
            there are some): 0 for what follows from the past, 1 for what does not; nan where there
            are too few episodes.
        n: actions that were predicted.
        expert_error: that of the demonstrations; nan without.
    """

    error: float
    n: int
    expert_error: float = math.nan

    @property
    def ratio(self) -> float:
        """Expert's error over the policy's: above 1 the policy copies its past, far below 1 it
        jitters."""
        return self.expert_error / self.error if self.error else math.nan


def action_predictability(
    actions: Iterable[ArrayLike], expert_actions: Iterable[ArrayLike] | None = None
) -> Predictability:
    """How predictable the actions of some episodes are, also against an expert's.

    Args:
        actions: (T, A) executed in each episode.
        expert_actions: (T, A) of each demonstration.
    """
    expert = [] if expert_actions is None else [moments_of(taken) for taken in expert_actions]
    return predict([moments_of(taken) for taken in actions], expert)


def moments_of(actions: ArrayLike) -> list[float]:
    """The packed moments of the actions (T, A) of one episode."""
    moments = ActionMoments()
    for action in np.asarray(actions, dtype=np.float64):
        moments.add(action)
    return moments.packed()


def predict(episodes: Sequence[Moments], demonstrations: Sequence[Moments] = ()) -> Predictability:
    """`action_predictability` of packed moments; empty ones are left out.

    Raises:
        ValueError: the demonstrations' actions are of another length.
    """
    ours, experts = _unpacked(episodes), _unpacked(demonstrations)
    if len(ours) < 2:
        return Predictability(math.nan, 0)
    if len(experts) and experts.shape[1] != ours.shape[1]:
        raise ValueError(
            f"actions of {_dim(ours)} elements cannot be compared with demonstrations of "
            f"{_dim(experts)}"
        )
    scale = _scale((experts if len(experts) else ours).sum(0))
    return Predictability(
        error=_error(ours, scale),
        n=int(ours[::TEST_EVERY, 0, 0].sum()),
        expert_error=_error(experts, scale) if len(experts) > 1 else math.nan,
    )


def _unpacked(episodes: Sequence[Moments]) -> Array:
    """The sums (E, 1 + 3 A, 1 + 3 A) of the episodes that have some."""
    packed = np.array([moments for moments in episodes if len(moments)])
    side = (math.isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    sums = np.zeros((len(packed), side, side))
    rows, columns = np.triu_indices(side)
    sums[:, rows, columns] = sums[:, columns, rows] = packed
    return sums


def _dim(sums: Array) -> int:
    """A."""
    return (sums.shape[-1] - 1) // 3


def _scale(sums: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (A,) of the actions; 1 for an element that does not change."""
    dim = _dim(sums)
    mean = sums[0, -dim:] / sums[0, 0]
    square = np.diag(sums)[-dim:] / sums[0, 0]
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return mean, np.where(std > CONSTANT * np.sqrt(square), std, 1.0)


def _error(episodes: Array, scale: tuple[Array, Array]) -> float:
    """Of a ridge regression, on every tenth episode, after fitting it to the others."""
    mean, std = scale
    dim, regressors = len(mean), 1 + 2 * len(mean)
    normalize = np.diag(1 / np.concatenate([[1.0], std, std, std]))
    normalize[1:, 0] = -np.tile(mean / std, 3)
    tested = episodes[::TEST_EVERY].sum(0)
    fitted = normalize @ (episodes.sum(0) - tested) @ normalize.T
    tested = normalize @ tested @ normalize.T
    penalty = RIDGE * fitted[0, 0] * np.eye(regressors)
    penalty[0, 0] = 0.0
    weights = np.linalg.solve(
        fitted[:regressors, :regressors] + penalty, fitted[:regressors, regressors:]
    )
    residual = np.concatenate([-weights, np.eye(dim)])
    total = float(np.trace(residual.T @ tested @ residual))
    return max(total, 0.0) / (float(tested[0, 0]) * dim)
