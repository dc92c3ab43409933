"""What plans beside the loop: a session that lives through the loop's ticks and then decides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastloop.deploy.inputs import Snapshot
from fastloop.deploy.worker import Acted, Event, Installed, Job, Observed, Planned
from fastloop.policies.base import Budget, Policy
from fastloop.policies.chunks import Chunking
from fastloop.policies.session import Session
from fastloop.policies.spec import TensorSpec

__all__ = ["Reader", "SessionPlanner"]

Reader = Callable[[Snapshot], Any]
"""A snapshot to the value of one observation key, a tensor or an array; raises ValueError."""


class SessionPlanner:
    """Drives one `Session` of one environment; nothing else may touch it.

    The loop counts ticks and executes; what it saw and did it tells in a job's events, which are
    lived through in the session before it plans. So the session's history and chunk are those of
    the moment of the newest observation, however the two ran beside each other.

    Args:
        variants: policies of one spec, by name.
        readers: what fills each of the policy's inputs.
        chunking: how plans are executed; as the policy says by default.
        seed: of the noise.

    Raises:
        ValueError: an input of the policy has no reader, or the variants differ in their inputs or
            actions.
    """

    def __init__(
        self,
        variants: Mapping[str, Policy],
        readers: Mapping[str, Reader],
        *,
        chunking: Chunking | None = None,
        seed: int = 0,
    ) -> None:
        first = next(iter(variants.values()))
        for name, policy in variants.items():
            if (policy.spec.inputs, policy.spec.action) != (first.spec.inputs, first.spec.action):
                raise ValueError(f"variant {name!r} reads or plans something else than the first")
        if missing := [key for key in first.spec.inputs if key not in readers]:
            raise ValueError(
                f"the policy reads {missing}, which no topic gives; topics give "
                f"{', '.join(readers) or 'nothing'}"
            )
        self.variants = variants
        self.inputs = first.spec.inputs
        self.readers = {key: readers[key] for key in self.inputs}
        self.window = 1 + first.spec.lags[0]
        self.session = Session(first, chunking=chunking, seed=seed)
        self.episode = 0
        self.actions: torch.Tensor | None = None
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
        self.actions = plan.actions[0]
        actions = self._executed(self.actions)
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
                    self.session.observe(0, self.frame)
            elif isinstance(event, Installed) and self.actions is not None:
                late = min(event.late, len(self.actions) - 1)  # the last action is held
                self.session.install(0, self.actions, late=late)
                self.begun = True
            elif isinstance(event, Acted) and self.begun:
                action = self.session.chunks[0].next()
                whole = torch.full(action.shape, event.overridden, dtype=torch.bool)
                self.session.histories[0].acted(action, overridden=whole)
        if failure is not None:
            raise failure

    def read(self, snapshot: Snapshot) -> dict[str, Any]:
        """The policy's inputs.

        Raises:
            ValueError: naming the key, and what is wrong with it.
        """
        return {
            key: _checked(key, spec, self.readers[key](snapshot))
            for key, spec in self.inputs.items()
        }

    def _executed(self, actions: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The chunk's way of executing `actions` from this tick on: what an ensemble averages, for
        instance, over all ticks that it reaches."""
        chunk = copy.deepcopy(self.session.chunks[0])
        chunk.install(actions)
        ticks = [chunk.next() for _ in range(len(actions))]
        return torch.stack(ticks).double().cpu().numpy()


def _checked(key: str, spec: TensorSpec, value: Any) -> Any:
    if tuple(value.shape) != tuple(spec.shape):
        raise ValueError(f"{key} has shape {tuple(value.shape)}, the policy reads {spec.shape}")
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    if floating and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{key} holds values that are not finite")
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{key} holds values that are not finite")
    return value
