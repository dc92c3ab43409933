"""Inference off the event loop: one thread that plans for all clients that wait, together."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from fastloop.accel.graph import recording
from fastloop.deploy.server.protocol import OURS, Request, answer
from fastloop.deploy.server.sessions import Key, Row, join
from fastloop.policies.base import Budget, Plan, Policy
from fastloop.policies.history import History
from fastloop.policies.prepare import example_history
from fastloop.policies.rng import Rng

__all__ = ["Batcher", "DeadlineError", "Job", "PolicyError"]


class DeadlineError(RuntimeError):
    """The answer would come too late to be of use."""


class PolicyError(RuntimeError):
    """The policy raised, or planned something that cannot be done; the message says what."""


@dataclass
class Job:
    """One request that waits for its answer.

    Attributes:
        until: monotonic seconds of its deadline; None without one.
    """

    row: Row
    request: Request
    until: float | None = None
    asked: float = field(default_factory=time.monotonic)
    future: Future[dict[str, Any]] = field(default_factory=Future)


class Batcher:
    """Plans for clients in a thread of its own, several at once where several wait.

    A client whose request cannot be answered, or makes the policy raise, harms no other one: a
    batch that fails is planned again one by one.

    Args:
        policy: what decides.
        max_batch: clients a plan.
        max_wait_s: how long the first of a batch waits for others; it does not where nobody is
            left to wait for.
        plan_batch: rows of every policy call, filled up by repetition, so that an answer does not
            depend on who asks at the same time; 0 plans with exactly those that wait.
        clients: how many are connected now.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_batch: int = 32,
        max_wait_s: float = 0.002,
        plan_batch: int = 0,
        clients: Callable[[], int] | None = None,
    ) -> None:
        self.policy = policy
        self.max_batch = min(max_batch, plan_batch) if plan_batch else max_batch
        self.max_wait_s = max_wait_s
        self.plan_batch = plan_batch
        self.clients = clients or (lambda: self.max_batch)
        self.ready: Future[None] = Future()
        self.since: float | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fastloop-plans", daemon=True)

    def start(self) -> None:
        """Warm the policy up in its thread; `ready` is set when that is done."""
        self._thread.start()

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Ask for a plan; the future holds the answer, or why there is none."""
        self._jobs.put(job)
        return job.future

    def close(self, timeout_s: float = 2.0) -> None:
        """End the thread after what is being planned; one that hangs is left behind."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def busy_s(self) -> float:
        """For how long the policy's call in progress has been running; 0 where none is."""
        since = self.since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        try:
            self._warm()
        except Exception as error:
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        while batch := self._next():
            self._answer(batch)

    def _warm(self) -> None:
        """Every number of rows is another shape to a compiler and to a memory pool: try the ends,
        each twice. On a GPU these are also the numbers that CUDA graphs are recorded for."""
        for rows in (1, self.max_batch):
            history = example_history(self.policy.spec, rows)
            for turn in range(2):
                with recording():
                    self._plan([history], [(0, turn, 0)] * rows, None)

    def _next(self) -> list[Job]:
        """The jobs of the next plan; none at the end."""
        if (first := self._jobs.get()) is None:
            return []
        batch, until = [first], time.monotonic() + self.max_wait_s
        while len(batch) < min(self.max_batch, max(self.clients(), 1)):
            try:
                job = self._jobs.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        asked: list[tuple[Job, History, Key]] = []
        for job in batch:
            if not job.future.set_running_or_notify_cancel():
                continue  # its client is gone, or no longer waits
            try:
                if job.until is not None and time.monotonic() >= job.until:
                    raise DeadlineError("the deadline had passed before its turn came")
                if job.request.reset:
                    job.row.begin()
                if job.request.observation is None:
                    job.future.set_result({OURS: {"reset": True, "episode": job.row.episode}})
                    continue
                asked.append((job, *job.row.take(job.request)))
            except Exception as error:
                job.future.set_exception(error)
        if asked:
            self._plan_for(asked)

    def _plan_for(self, asked: Sequence[tuple[Job, History, Key]]) -> None:
        begun = time.monotonic()
        left = [job.until - begun for job, _, _ in asked if job.until is not None]
        budget = Budget(max(min(left), 0.0)) if left else None
        self.since = begun
        try:
            plan = self._plan([one for _, one, _ in asked], [key for _, _, key in asked], budget)
        except Exception:
            if len(asked) > 1:
                for one in asked:
                    self._plan_for([one])
                return
            asked[0][0].future.set_exception(PolicyError(traceback.format_exc()))
            return
        finally:
            self.since = None
        infer_ms = 1e3 * (time.monotonic() - begun)
        for row, (job, _, key) in enumerate(asked):
            try:
                self._settle(job, plan, row, key, begun, infer_ms, len(asked))
            except Exception:  # a plan of another shape than the policy's specification says
                job.future.set_exception(PolicyError(traceback.format_exc()))

    def _settle(
        self, job: Job, plan: Plan, row: int, key: Key, begun: float, infer_ms: float, batch: int
    ) -> None:
        actions = plan.actions[row]
        if not torch.isfinite(actions).all():
            job.future.set_exception(PolicyError("the policy's plan is not finite"))
            return
        job.row.planned(job.request, actions)
        told = {
            "episode": job.row.episode,
            "key": list(key),
            "batch": batch,
            "queue_ms": 1e3 * (begun - job.asked),
        }
        job.future.set_result(answer(plan, row, infer_ms=infer_ms, **told))

    def _plan(
        self, histories: Sequence[History], keys: Sequence[Key], budget: Budget | None
    ) -> Plan:
        spare = max(0, self.plan_batch - len(keys))
        history = join([*histories, *[histories[0]] * spare])
        rng = Rng((*keys, *[keys[0]] * spare))
        return self.policy.plan(history, rng=rng, budget=budget)
