"""The closed loop: one policy, many simulators in processes of their own, every episode once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

import torch

from fastloop.accel.graph import recording
from fastloop.accel.report import AccelReport
from fastloop.policies.base import Policy
from fastloop.policies.chunks import Chunking
from fastloop.policies.session import Session
from fastloop.policies.spec import EnvSpec, check_specs
from fastloop.sims.clock import Clock, Frozen, late_ticks
from fastloop.sims.config import SimConfig
from fastloop.sims.interrupts import catch_interrupts
from fastloop.sims.predictability import ActionMoments
from fastloop.sims.results import EpisodeLog, EpisodeRecord, JsonLines, PlanCall
from fastloop.sims.run_result import Progress, RunResult, Times
from fastloop.sims.summary import Outcome
from fastloop.sims.video import Filming
from fastloop.sims.worker import Act, Begin, Film, Open, Tick, Worker, WorkerError
from fastloop.sims.worklist import WorkItem, WorkList

__all__ = ["Progress", "RunConfig", "RunResult", "SimStartError", "Times", "run"]

POLL_S = 0.2  # how soon a request to stop is noticed while all simulators are busy


class SimStartError(RuntimeError):
    """A simulator could not be built at all, so there is nothing to run."""


@dataclass(frozen=True)
class RunConfig:
    """How to run; nothing here but `seed` and `plan_batch` can change an episode.

    Attributes:
        num_envs: simulators at a time, each in a process.
        plan_batch: rows of every policy call, filled up when fewer environments wait, so that an
            episode does not depend on its neighbors; 0 plans with exactly those that wait.
        seed: root of the policy's noise.
        retries: how often an episode whose simulator broke is tried again.
        start_timeout_s: longest silence of a simulator that starts or resets.
        step_timeout_s: longest silence of a simulator that steps.
        filming: which episodes leave a video.
    """

    num_envs: int = 4
    plan_batch: int = 8
    seed: int = 0
    retries: int = 2
    start_timeout_s: float = 120.0
    step_timeout_s: float = 30.0
    filming: Filming = field(default_factory=Filming)

    def __post_init__(self) -> None:
        if self.num_envs < 1 or self.plan_batch < 0 or self.retries < 0:
            raise ValueError(
                "num_envs must be 1 or more, plan_batch and retries 0 or more; got "
                f"{self.num_envs}, {self.plan_batch} and {self.retries}"
            )
        if not min(self.start_timeout_s, self.step_timeout_s) > 0:
            raise ValueError(
                "start_timeout_s and step_timeout_s must be above 0, got "
                f"{self.start_timeout_s:g} and {self.step_timeout_s:g}"
            )


def run(
    policy: Policy,
    sims: Mapping[str, SimConfig],
    items: Iterable[WorkItem],
    *,
    run_dir: Path,
    digest: str,
    config: RunConfig | None = None,
    clock: Clock | None = None,
    chunking: Chunking | None = None,
    arm: str = "plain",
    progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Run every item to its end exactly once, going on where an earlier process was stopped.

    The world stands still until every simulator waits for a plan, so that one policy call serves
    all; `clock` says how late the plans are. ``episodes.jsonl`` in `run_dir` is then the same for
    any number of simulators; ``timing.jsonl`` holds what is not. The first SIGINT or SIGTERM ends
    the run with a partial result, and the same call later resumes it.

    Args:
        policy: what decides.
        sims: task to its simulator.
        items: the work list.
        run_dir: made when it does not exist; one arm and configuration only.
        digest: identifies the configuration (policy, accelerator, simulators, seed, clock).
        config: how to run.
        clock: frozen by default.
        chunking: how plans are executed; receding horizon by default.
        arm: name of the policy in the videos.
        progress: called after every policy call and every episode.

    Raises:
        ValueError: for an item of an unknown task, two equal items, or a `run_dir` that belongs to
            another configuration.
        SpecMismatchError: when the policy does not fit a simulator.
        SimStartError: when a simulator cannot be built; its extra may be missing.
        LogWriteError: when the disk is full; finished episodes are safe.
        AcceleratorIdleError: when an accelerator was configured and never engaged.
    """
    config = config or RunConfig()
    run_dir.mkdir(parents=True, exist_ok=True)
    items = tuple(items)
    unknown = {item.task for item in items} - set(sims)
    if unknown:
        raise ValueError(f"no simulator for tasks {sorted(unknown)}; have: {sorted(sims)}")
    with ExitStack() as stack:
        log = EpisodeLog(run_dir / "episodes.jsonl", digest)
        stack.callback(log.close)
        timing = JsonLines(run_dir / "timing.jsonl")
        stack.callback(timing.close)
        calls = [PlanCall(**line) for line in timing.lines]
        work = WorkList(items, finished=log.records, retries=config.retries)
        loop = _Loop(
            policy=policy,
            sims=sims,
            work=work,
            log=log,
            timing=timing,
            calls=calls,
            run_dir=run_dir,
            config=config,
            clock=clock or Frozen(),
            session=Session(
                policy,
                num_envs=config.num_envs,
                chunking=chunking,
                seed=config.seed,
                plan_batch=config.plan_batch,
            ),
            arm=arm,
            progress=progress,
        )
        interrupted = loop.run() if work.missing else False
        keys = [item.key for item in items]
        if not work.missing:
            log.sort(keys)
    videos = {item.key: _video(run_dir, item) for item in items}
    result = RunResult(
        episodes=tuple(log.records[key] for key in keys if key in log.records),
        missing=work.missing,
        calls=tuple(calls),
        videos={key: path for key, path in videos.items() if path.is_file()},
        times=loop.times,
        interrupted=interrupted,
    )
    if result.accel.plans:
        result.accel.check_engaged()
    return result


@dataclass
class _Slot:
    """One environment of the session, its process and the episode that runs in it."""

    env: int
    worker: Worker
    item: WorkItem | None = None
    ticks_due: int = 0
    filmed: bool = False
    steps: int = 0
    rewards: list[float] = field(default_factory=list)
    actions: Iterator[torch.Tensor] = field(default_factory=lambda: iter(()))
    moments: ActionMoments = field(default_factory=ActionMoments)
    reports: list[AccelReport] = field(default_factory=list)


@dataclass
class _Loop:
    policy: Policy
    sims: Mapping[str, SimConfig]
    work: WorkList
    log: EpisodeLog
    timing: JsonLines
    calls: list[PlanCall]
    run_dir: Path
    config: RunConfig
    clock: Clock
    session: Session
    arm: str
    progress: Callable[[Progress], None] | None
    times: Times = field(default_factory=Times)
    slots: list[_Slot] = field(default_factory=list)
    warm: set[int] = field(default_factory=set)
    successes: int = 0
    ticks: int = 0
    start: float = field(default_factory=time.perf_counter)
    cpu_start: float = field(default_factory=time.thread_time)

    def __post_init__(self) -> None:
        ended = [self.log.records[key] for key in self.work.finished]
        self.successes = sum(episode.outcome == "success" for episode in ended)

    def run(self) -> bool:
        """Work until nothing is left or somebody asks to stop; whether that was so."""
        with ExitStack() as stack, catch_interrupts() as interrupts:
            stack.callback(self._close)
            for env in range(min(self.config.num_envs, len(self.work.missing))):
                self.slots.append(_Slot(env, self._worker()))
            self._check_specs()
            for slot in self.slots:
                self._next(slot)
            while not interrupts.requested:
                busy = [slot for slot in self.slots if slot.item]
                acting = [slot for slot in busy if slot.ticks_due]
                if acting:
                    self._listen(acting)
                elif busy:
                    self._plan(busy)
                else:
                    break
            return interrupts.requested and bool(self.work.missing)

    def _worker(self) -> Worker:
        return Worker(
            self.run_dir / "simulators.log",
            start_timeout_s=self.config.start_timeout_s,
            step_timeout_s=self.config.step_timeout_s,
        )

    def _check_specs(self) -> None:
        for task in sorted({item.task for item in self.work.missing}):
            worker = self.slots[0].worker
            try:
                worker.send(Open(self.sims[task]))
                spec: EnvSpec = worker.receive()
            except WorkerError as error:
                raise SimStartError(f"the simulator of {task!r} does not start: {error}") from error
            check_specs(self.policy.spec, spec)

    def _next(self, slot: _Slot) -> None:
        """Begin the next episode in `slot`, if there is one."""
        slot.item = item = self.work.take()
        if item is None:
            return
        slot.steps, slot.ticks_due, slot.rewards, slot.reports = 0, 1, [], []
        slot.moments = ActionMoments()
        self.session.begin(slot.env, item.episode)
        index = self.work.items.index(item)
        slot.filmed = self.config.filming.films(index)
        film = None
        if slot.filmed:
            path = _video(self.run_dir, item)
            film = Film(path, self.config.filming, self._caption(0, "first plan"))
        keys = tuple(self.policy.spec.inputs)
        request = Begin(self.sims[item.task], item.seed, item.initial_state, keys, film)
        try:
            slot.worker.send(request)
        except WorkerError as error:
            self._broken(slot, str(error))

    def _listen(self, acting: Collection[_Slot]) -> None:
        """Take in what the simulators have to say; end those that have been silent too long."""
        connections = [slot.worker.connection for slot in acting]
        patience = min(slot.worker.deadline for slot in acting) - time.monotonic()
        talking = wait(connections, timeout=max(0.0, min(patience, POLL_S)))
        now = time.monotonic()
        for slot in acting:
            ready = slot.worker.connection in talking
            if ready or slot.worker.deadline <= now:
                try:
                    ticks: list[Tick] = slot.worker.receive(ready=ready)
                except WorkerError as error:
                    self._broken(slot, str(error))
                else:
                    for tick in ticks:
                        self._tick(slot, tick)

    def _tick(self, slot: _Slot, tick: Tick) -> None:
        first = not slot.reports and slot.steps == 0
        slot.ticks_due -= 1
        self.times.simulators_s += tick.sim_s
        self.session.observe(slot.env, tick.observation)
        if first:
            return
        self.ticks += 1
        slot.steps += 1
        slot.rewards.append(tick.reward)
        action = next(slot.actions)
        if self.policy.spec.action.kind != "plan":  # plans lie in a frame that moves
            slot.moments.add(action)
        if tick.outcome:
            self._finish(slot, tick.outcome, tick.figures or {})

    def _plan(self, due: Sequence[_Slot]) -> None:
        """One policy call for each full batch of environments, and their next actions."""
        rows = self.config.plan_batch or len(due)
        for first in range(0, len(due), rows):
            slots = due[first : first + rows]
            padded = max(len(slots), self.config.plan_batch)
            cold = padded not in self.warm
            start, cpu_start = time.perf_counter(), time.thread_time()
            with recording() if cold else nullcontext():
                plan = self.session.plan([slot.env for slot in slots])
            seconds = time.perf_counter() - start
            self.times.policy_s += seconds
            self.times.runner_s -= time.thread_time() - cpu_start
            self.warm.add(padded)
            call = PlanCall(seconds * 1000, len(slots), cold, dict(plan.report.stage_ms))
            self.timing.append(asdict(call), durable=False)
            self.calls.append(call)
            for row, (slot, actions) in enumerate(zip(slots, plan.actions, strict=False)):
                slot.reports.append(plan.report_of(row))
                self._act(slot, actions, seconds)
        self._report()

    def _act(self, slot: _Slot, actions: torch.Tensor, seconds: float) -> None:
        """Send the actions until the next plan: first those of the ticks that planning took."""
        assert slot.item
        session, env = self.session, slot.env
        latency_s, number = 0.0, len(slot.reports) - 1
        if number:
            latency_s = self.clock.latency_s(seconds, episode=slot.item.episode, plan=number)
        late = late_ticks(latency_s, self.policy.spec.control_hz)
        queue = [session.act(env) for _ in range(late)]
        session.install(env, actions, late=late)
        while not session.due(env):
            queue.append(session.act(env))
        captions: tuple[str, ...] = ()
        if slot.filmed:
            latency_ms = 1000 * (latency_s or seconds)
            sources = ["waiting"] * late
            sources += [f"its action {i + 1}" for i in range(late, len(queue))]
            captions = tuple(
                self._caption(slot.steps + 1 + i, f"plan in {latency_ms:.0f} ms, {source}")
                for i, source in enumerate(sources)
            )
        slot.ticks_due, slot.actions = len(queue), iter(queue)
        try:
            slot.worker.send(Act(torch.stack(queue).float().numpy(), captions))
        except WorkerError as error:
            self._broken(slot, str(error))

    def _caption(self, tick: int, doing: str) -> str:
        return f"{self.arm}  tick {tick}\n{doing}"

    def _broken(self, slot: _Slot, reason: str) -> None:
        """Replace the simulator of `slot`, and try its episode again or count it as an error."""
        item = slot.item
        assert item
        slot.worker.close()
        slot.worker = self._worker()
        if self.work.retry(item):
            self._next(slot)
        else:
            retries = self.config.retries
            record = EpisodeRecord(item.task, item.seed, "error", retries=retries, error=reason)
            self._record(slot, item, record)

    def _finish(self, slot: _Slot, outcome: Outcome, figures: Mapping[str, float]) -> None:
        assert slot.item
        accel = asdict(AccelReport.total(slot.reports))
        del accel["stage_ms"]
        record = EpisodeRecord(
            task=slot.item.task,
            seed=slot.item.seed,
            outcome=outcome,
            steps=slot.steps,
            total_reward=sum(slot.rewards),
            max_reward=max(slot.rewards),
            plans=len(slot.reports),
            retries=self.work.failures[slot.item.key],
            accel=accel,
            figures=dict(figures),
            moments=slot.moments.packed(),
        )
        self._record(slot, slot.item, record)

    def _record(self, slot: _Slot, item: WorkItem, record: EpisodeRecord) -> None:
        """Write down how `item` ended in `slot` and begin the next one there."""
        start = time.perf_counter()
        self.log.append(record)
        self.times.runner_s += time.perf_counter() - start
        self.work.finish(item)
        self.successes += record.outcome == "success"
        self._report()
        self._next(slot)

    def _report(self) -> None:
        if self.progress:
            done, total = len(self.work.finished), len(self.work.items)
            elapsed_s = time.perf_counter() - self.start
            self.progress(Progress(done, total, self.successes, self.ticks, elapsed_s))

    def _close(self) -> None:
        for slot in self.slots:
            slot.worker.connection.close()
        for slot in self.slots:
            slot.worker.close(grace_s=0.0 if slot.ticks_due else 2.0)
        for unfinished in (self.run_dir / "videos").glob("*.part.mp4"):
            unfinished.unlink()
        self.times.total_s = time.perf_counter() - self.start
        self.times.runner_s += time.thread_time() - self.cpu_start


def _video(run_dir: Path, item: WorkItem) -> Path:
    task = re.sub(r"[^A-Za-z0-9._-]+", "-", item.task)
    return run_dir / "videos" / f"{task}-{item.seed}.mp4"
