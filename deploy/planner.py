"""What plans beside the loop: a session that lives through the loop's ticks and then decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastloop.deploy.inputs import Snapshot
from fastloop.deploy.worker import Acted, Event, Installed, Job, Observed, Planned
from fastloop.policies.base import Budget, Policy
from fastloop.policies.chunks import Chunking, RecedingHorizon
from fastloop.policies.session import Session
from fastloop.policies.spec import TensorSpec

__all__ = ["Reader", "SessionPlanner", "inputs_of"]

Reader = Callable[[Snapshot], Any]
"""A snapshot to the value of one observation key, a tensor or an array; raises ValueError."""


def inputs_of(variants: Mapping[str, Policy]) -> dict[str, TensorSpec]:
    """Everything that one of several policies reads.

    Raises:
        ValueError: two of them read it differently, or plan different actions.
    """
    first = next(iter(variants.values())).spec.action
    inputs: dict[str, TensorSpec] = {}
    for name, policy in variants.items():
        action = policy.spec.action
        if (action.kind, action.dim) != (first.kind, first.dim):
            raise ValueError(
                f"variant {name!r} plans {action.kind} of {action.dim} elements, the first one "
                f"{first.kind} of {first.dim}"
            )
        for key, spec in policy.spec.inputs.items():
            known = inputs.setdefault(key, spec)
            if (spec.shape, spec.dtype) != (known.shape, known.dtype):
                raise ValueError(
                    f"variant {name!r} reads {key} as {spec.dtype} {spec.shape}, another one as "
                    f"{known.dtype} {known.shape}"
                )
    return inputs


class SessionPlanner:
    """Drives one `Session` of one environment; nothing else may touch it.

    The loop counts ticks and executes; what it saw and did it tells in a job's events, which are
    lived through in the session before it plans. So the session's history and chunk are those of
    the moment of the newest observation, however the two ran beside each other.

    Args:
        variants: policies that plan the same actions, by name.
        readers: what fills each of their inputs.
        chunking: how plans are executed; as the first policy says by default.
        seed: of the noise.

    Raises:
        ValueError: an input has no reader; and as `inputs_of`.
    """

    def __init__(
        self,
        variants: Mapping[str, Policy],
        readers: Mapping[str, Reader],
        *,
        chunking: Chunking | None = None,
        seed: int = 0,
    ) -> None:
        inputs = inputs_of(variants)
        if missing := [key for key in inputs if key not in readers]:
            raise ValueError(
                f"the policy reads {missing}, which no topic gives; topics give "
                f"{', '.join(readers) or 'nothing'}"
            )
        self.variants = variants
        self.inputs = inputs
        self.readers = {key: readers[key] for key in inputs}
        policies = list(variants.values())
        chunking = chunking or RecedingHorizon(policies[0].spec.n_action_steps)
        # Whose history is the longest, which every episode begins with.
        self.longest = max(policies, key=lambda policy: policy.spec.ticks_kept)
        self.window = max(1 + policy.spec.lags[0] for policy in policies)
        self.session = Session(self.longest, chunking=chunking, seed=seed)
        self.episode = 0
        self.actions: torch.Tensor | None = None
        self.tick = 0  # of the session, for which the first of them was planned
        self.frame: dict[str, Any] | None = None
        self.begun = False

    def __call__(self, job: Job) -> Planned:
        """Plan `job`.

        Raises:
            ValueError: an observation cannot be read; what the policy raises.
        """
        started = perf_counter()
        if job.fresh:
            self._begin()
        try:
            self._live(job.events)
        except ValueError:
            raise
        except Exception:  # half lived through: no history is better than a wrong one
            self._begin()
            raise
        read = perf_counter()
        self.session.policy = self.variants[job.variant]
        budget = Budget(max(1e-3, job.deadline - job.submitted - (read - started)))
        plan = self.session.plan([0], budget=budget)
        self.actions, self.tick = plan.actions[0], self.session.histories[0].tick
        actions = self.session.chunks[0].ahead(self.actions).double().cpu().numpy()
        decided = perf_counter()
        return Planned(
            actions,
            plan.report_of(0),
            {"preprocess": read - started, "model": decided - read},
            plan.text[0] if plan.text else "",
        )

    def _begin(self) -> None:
        """Forget everything."""
        self.episode += 1
        self.session.policy = self.longest
        self.session.begin(0, self.episode)
        self.actions, self.frame, self.begun = None, None, False

    def _live(self, events: tuple[Event, ...]) -> None:
        """Observe, install and act as the loop did.

        Only frames that the policy can still look back at are read; in the place of those that are
        not, or cannot be, stands the one before. The newest one must be readable.
        """
        ahead = sum(isinstance(event, Observed) for event in events)
        failure: ValueError | None = None
        for event in events:
            if isinstance(event, Observed):
                ahead -= 1
                if ahead < self.window:
                    try:
                        self.frame, failure = self.read(event.snapshot), None
                    except ValueError as error:
                        failure = error
                if self.frame is not None:
                    # A reader made it for nobody else, and a picture takes a while to copy.
                    self.session.histories[0].observe(self.frame, copy=False)
            elif isinstance(event, Installed) and self.actions is not None:
                late = min(event.late, len(self.actions) - 1)  # the last action is held
                # Ticks before the first plan have passed too, though nothing planned was done.
                self.session.histories[0].done = self.tick + late
                self.session.install(0, self.actions, late=late)
                self.begun = True
            elif isinstance(event, Acted) and self.begun and self.actions is not None:
                action = self.session.chunks[0].next()
                whole = torch.full(action.shape, event.overridden, dtype=torch.bool)
                history = self.session.histories[0]
                history.acted(action, overridden=whole)
                if event.overridden and history.underway is not None:
                    # Nobody follows it: what goes on from it would begin where nothing is.
                    history.underway = replace(history.underway, actions=self.actions[:0])
        if failure is not None:
            try:
                raise failure
            finally:  # it holds this frame, which holds the pictures: no circle for the collector
                failure = None

    def read(self, snapshot: Snapshot) -> dict[str, Any]:
        """The policy's inputs.

        Raises:
            ValueError: naming the key, and what is wrong with it.
        """
        return {
            key: _checked(key, spec, self.readers[key](snapshot))
            for key, spec in self.inputs.items()
        }


def _checked(key: str, spec: TensorSpec, value: Any) -> Any:
    if tuple(value.shape) != tuple(spec.shape):
        raise ValueError(f"{key} has shape {tuple(value.shape)}, the policy reads {spec.shape}")
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    if floating and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{key} holds values that are not finite")
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{key} holds values that are not finite")
    return value
