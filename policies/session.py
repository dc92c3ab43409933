"""The one thing that drives a policy: history and chunk of each environment, in ticks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from fastloop.policies.base import Budget, Plan, Policy
from fastloop.policies.chunks import Chunk, Chunking, RecedingHorizon
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng

__all__ = ["Session"]

Observation = Mapping[str, torch.Tensor | np.ndarray]


class Session:
    """Drives `policy` in `num_envs` environments that need not be in step with each other.

    A tick of an environment is `observe`, then `plan` if it is `due`, then `act`. LeRobot's names
    (`reset`, `select_action`, `predict_action_chunk`) do the same for all environments at once, so
    a session serves wherever a LeRobot policy does.

    Args:
        policy: what decides.
        num_envs: environments B.
        chunking: how plans are executed; receding horizon at the policy's own rate by default.
        seed: root of all noise.
        plan_batch: rows of every policy call, filled up by repetition. A fixed number makes the
            result of an environment independent of how many run beside it, because matrix products
            round differently for different row counts; 0 plans with exactly the rows that are due.
            Let it be a multiple of 8, or of 16 for a network with layers of odd width: functions
            like Mish round the last elements differently where they do not fill a vector register.
            Some processors round products of odd width with few outputs by a row's place, too,
            whatever the number.

    Raises:
        ValueError: for no environment.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        num_envs: int = 1,
        chunking: Chunking | None = None,
        seed: int = 0,
        plan_batch: int = 0,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.policy = policy
        self.seed = seed
        self.plan_batch = plan_batch
        self.chunking = chunking or RecedingHorizon(policy.spec.n_action_steps)
        self.episodes = list(range(num_envs))
        self.histories: list[EpisodeHistory] = []
        self.chunks: list[Chunk] = []
        for _ in range(num_envs):
            self.histories.append(self._fresh_history())
            self.chunks.append(self.chunking.start())

    def _fresh_history(self) -> EpisodeHistory:
        return EpisodeHistory(self.policy.spec.ticks_kept)

    def begin(self, env: int, episode: int) -> None:
        """Start `episode` (its number keys the noise) in environment `env`, forgetting the last."""
        self.episodes[env] = episode
        self.histories[env] = self._fresh_history()
        self.chunks[env] = self.chunking.start()

    def observe(self, env: int, observation: Observation) -> None:
        """Add the newest observation (no batch axis) of environment `env`."""
        self.histories[env].observe(observation)

    def due(self, env: int) -> bool:
        """Whether environment `env` needs a new plan before it can act."""
        return self.chunks[env].due()

    def plan(self, envs: Sequence[int], *, budget: Budget | None = None) -> Plan:
        """One policy call for the environments `envs`; nothing is executed or installed yet.

        Returns:
            a plan whose row i belongs to ``envs[i]``; rows beyond are padding.
        """
        rows = list(envs) + [envs[0]] * max(0, self.plan_batch - len(envs))
        history = History.stack([self.histories[e] for e in rows], self.policy.spec.lags)
        rng = Rng.for_envs(self.seed, [self.episodes[e] for e in rows], history.ticks.tolist())
        return self.policy.plan(history, rng=rng, budget=budget)

    def install(self, env: int, actions: torch.Tensor, *, late: int = 0) -> None:
        """Execute `actions` (T, A) in environment `env`; its first `late` ticks have passed."""
        self.chunks[env].install(actions, late=late)
        self.histories[env].planned(actions, late=late)

    def act(self, env: int) -> torch.Tensor:
        """The action (A,) of this tick of environment `env`, consumed and recorded."""
        action = self.chunks[env].next()
        self.histories[env].acted(action)
        return action

    def reset(self) -> None:
        """Forget everything; the next observation of each environment begins its next episode."""
        for env, episode in enumerate(self.episodes):
            self.begin(env, episode + len(self.episodes))

    def select_action(self, batch: Observation) -> torch.Tensor:
        """One tick of all environments.

        Args:
            batch: observations (B, ...) by LeRobot key.

        Returns:
            (B, A) float32 actions.
        """
        self._observe_all(batch)
        envs = range(len(self.chunks))
        due = [env for env in envs if self.due(env)]
        for env, actions in zip(due, self._plan_in_batches(due), strict=True):
            self.install(env, actions)
        return torch.stack([self.act(env) for env in envs])

    def predict_action_chunk(self, batch: Observation) -> torch.Tensor:
        """Add observations (B, ...) and return a whole plan (B, T, A) without executing it."""
        self._observe_all(batch)
        return torch.stack(list(self._plan_in_batches(range(len(self.chunks)))))

    def _plan_in_batches(self, envs: Sequence[int]) -> Iterator[torch.Tensor]:
        """The planned actions (T, A) of each environment, `plan_batch` of them a policy call."""
        rows = self.plan_batch or len(envs)
        for first in range(0, len(envs), rows or 1):
            some = envs[first : first + rows]
            yield from self.plan(some).actions[: len(some)]

    def _observe_all(self, batch: Observation) -> None:
        inputs = self.policy.spec.inputs
        missing = set(inputs) - set(batch)
        if missing:
            raise ValueError(
                f"the policy reads {sorted(missing)}, which the batch lacks; it holds "
                f"{sorted(batch)}"
            )
        for key, spec in inputs.items():
            expected = (len(self.chunks), *spec.shape)
            if tuple(batch[key].shape) != expected:
                raise ValueError(
                    f"{key} of {len(self.chunks)} environments has shape {expected}, got "
                    f"{tuple(batch[key].shape)}"
                )
        for env in range(len(self.chunks)):
            self.observe(env, {key: batch[key][env] for key in inputs})
