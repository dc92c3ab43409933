"""Plans from the cache, each with its probability, in about a millisecond."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from fastloop.accel.report import AccelReport
from fastloop.policies.base import Budget, Plan
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.frame import Frame, frame_of
from fastloop.policies.cacheflow.reading import check_inputs, read
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import PolicySpec

__all__ = ["NOVEL", "UNCOVERED", "CacheFlowPolicy"]

UNCOVERED = "the cache does not cover what may happen now"
NOVEL = "what was seen is unlike all that was learned"


class CacheFlowPolicy:
    """CacheFlow as a pure function of history: of N cached futures that are drawn, the plan is the
    one in the middle.

    The likeliest one would be a poor plan: the sharpest peak of a density is where nothing happens,
    and who waits because it is possible to wait never arrives.

    Args:
        spec: what it reads and decides; its horizon is that of the futures and the past actions.
        cacheflow: model and table.
        relative_to: observation that the actions of a future are relative to, see `frame_of`; None
            for actions as they are.
        samples: N, drawn from the cache.
        alarm: coverage (`CacheFlow.coverage`) below which the report says `UNCOVERED`; it says
            `NOVEL` beyond a `CacheFlow.novelty` of 1.
        digest: of the checkpoint, for provenance.

    Raises:
        ValueError: for inputs that it cannot read, and sizes that are not the model's.
    """

    def __init__(
        self,
        spec: PolicySpec,
        cacheflow: CacheFlow,
        *,
        relative_to: str | None = None,
        samples: int = 20,
        alarm: float = 0.01,
        digest: str = "",
    ) -> None:
        check_inputs(spec.inputs)
        if samples < 1 or not 0 <= alarm < 1:
            raise ValueError(
                f"samples must be at least 1 and alarm a share below 1, got {samples} and {alarm}"
            )
        steps = (spec.horizon - spec.n_obs_steps + 1, spec.action.dim)
        if steps != cacheflow.model.shapes["future"]:
            raise ValueError(
                f"the policy plans {steps[0]} actions of {steps[1]} elements, its futures are of "
                f"{cacheflow.model.shapes['future']}"
            )
        self.spec = spec
        self.cacheflow = cacheflow
        self.relative_to = relative_to
        self.samples = samples
        self.alarm = alarm
        self.digest = digest
        self.name = "cacheflow"

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """The future that is nearest to all of `samples` in the mean, with its log-density per unit
        of all T A numbers; the budget is not used.

        Raises:
            ValueError: an observation is not finite.
        """
        seen = self.read(history)
        mixture = self.cacheflow.condition(**seen)
        drawn = self.cacheflow.retrieve(mixture, self.samples, rng)
        candidates = self.frame(history).absolute(drawn.samples.cpu())
        log_prob = drawn.log_prob.cpu()
        flat = (drawn.samples / self.cacheflow.model.factorization.unit).cpu().flatten(2)
        apart = torch.cdist(flat, flat).mean(2)
        best = apart.argmin(1)
        rows = torch.arange(len(best))
        novelty = self.cacheflow.novelty(seen["history"], seen.get("neighbors"))
        alarms = {  # so that what is no number is an alarm
            UNCOVERED: ~(self.cacheflow.coverage(mixture) >= self.alarm),
            NOVEL: ~(novelty <= 1),
        }
        report = AccelReport(network_evaluations=1, candidates=self.samples)
        raised = {name: rows.tolist() for name, rows in alarms.items() if rows.any()}
        return Plan(
            actions=candidates[rows, best],
            dt=1.0 / self.spec.control_hz,
            t0=history.ticks,
            log_prob=log_prob[rows, best],
            candidates=candidates,
            chosen=best,
            scores=apart,
            report=replace(report, degraded={name: sum(rows) for name, rows in raised.items()}),
            reports=tuple(
                replace(report, degraded={name: 1 for name, rows in raised.items() if rows[row]})
                for row in range(len(best))
            ),
        )

    def read(self, history: History) -> dict[str, torch.Tensor]:
        """What `CacheFlow.condition` takes, of B environments."""
        seen = {key: history[key] for key in self.spec.inputs}
        return read(seen, self.spec.inputs, relative_to=self.relative_to)

    def frame(self, history: History) -> Frame:
        """In which B environments see the futures, on the CPU."""
        key = self.relative_to
        return frame_of(key, {} if key is None else {key: history[key].cpu().float()})

    def to(self, device: torch.device | str) -> CacheFlowPolicy:
        """A new policy on another device."""
        other = copy.copy(self)
        model = copy.deepcopy(self.cacheflow.model).to(device)
        other.cacheflow = CacheFlow(model, self.cacheflow.table.to(device))
        return other

    def with_spec(self, **changes: Any) -> CacheFlowPolicy:
        """A new policy with some fields of its spec replaced."""
        other = copy.copy(self)
        other.spec = replace(self.spec, **changes)
        return other
