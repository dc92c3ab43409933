"""A simulator in a process of its own: what it is asked, what it answers, and how it dies."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastloop.sims.base import Observation, Sim, SimState
from fastloop.sims.config import SimConfig
from fastloop.sims.interrupts import die_with_parent
from fastloop.sims.summary import Outcome
from fastloop.sims.video import Filming, Recorder

__all__ = ["Act", "Begin", "Film", "Open", "Tick", "Worker", "WorkerError"]

HEARTBEAT_S = 0.02  # ticks younger than this travel together: messages cost more than fast steps


class Open(NamedTuple):
    """Build the simulator; answered by its `env_spec`."""

    sim: SimConfig


class Film(NamedTuple):
    """Film the episode into `path`, its first frame captioned `caption`."""

    path: Path
    filming: Filming
    caption: str


class Begin(NamedTuple):
    """Begin an episode; answered by a list of one `Tick`.

    Attributes:
        sim: built if the last episode ran in another.
        seed: of the reset.
        initial_state: restored after the reset.
        keys: the observations to send.
        film: None to film nothing.
    """

    sim: SimConfig
    seed: int
    initial_state: SimState | None
    keys: tuple[str, ...]
    film: Film | None


class Act(NamedTuple):
    """Execute `actions` (n, A); answered by lists of ticks, n in all or until the episode ends.

    Attributes:
        actions: float32.
        captions: one an action when the episode is filmed, else empty.
    """

    actions: NDArray[np.float32]
    captions: tuple[str, ...]


class Tick(NamedTuple):
    """What one tick brought; also the sign of life that the parent waits for.

    Attributes:
        observation: the wanted keys.
        reward: of this tick.
        outcome: None while the episode goes on.
        sim_s: seconds that the simulator and the camera took.
        figures: with the outcome, what else the simulator says of the episode.
    """

    observation: Observation
    reward: float
    outcome: Outcome | None
    sim_s: float
    figures: Mapping[str, float] | None = None


class _Broken(NamedTuple):
    reason: str


class WorkerError(RuntimeError):
    """A simulator raised, died or fell silent; the message says which."""


class Worker:
    """The parent's side of one simulator process.

    The process is a fresh interpreter (rendering hangs under fork) in a process group of its own
    (Ctrl-C is the parent's business), and dies with its parent. What it prints goes to `log`.

    Args:
        log: text file for the simulators' own output, appended to.
        start_timeout_s: longest silence while it starts, builds or resets.
        step_timeout_s: longest silence while it steps.
    """

    def __init__(self, log: Path, *, start_timeout_s: float, step_timeout_s: float) -> None:
        self.start_timeout_s = start_timeout_s
        self.step_timeout_s = step_timeout_s
        self.deadline = 0.0
        self._patience = 0.0
        ours, theirs = socket.socketpair()
        with theirs, open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        self.connection = Connection(ours.detach())

    def send(self, request: Open | Begin | Act) -> None:
        """Ask; the answers come through `receive`.

        Raises:
            WorkerError: when the process is dead.
        """
        acting = isinstance(request, Act)
        self._patience = self.step_timeout_s if acting else self.start_timeout_s
        self.deadline = time.monotonic() + self._patience
        try:
            self.connection.send(request)
        except OSError as error:
            raise WorkerError(self._obituary()) from error

    def receive(self, *, ready: bool = False) -> Any:
        """The next answer, waiting for it until the deadline.

        Args:
            ready: the connection is known to have something, so do not ask it again.

        Raises:
            WorkerError: when there is none: the simulator raised, died, or was silent too long.
        """
        try:
            if not ready and not self.connection.poll(max(0.0, self.deadline - time.monotonic())):
                raise WorkerError(f"the simulator did not answer within {self._patience:g} s")
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(self._obituary()) from error
        self.deadline = time.monotonic() + self._patience
        if isinstance(answer, _Broken):
            raise WorkerError(answer.reason)
        return answer

    def close(self, *, grace_s: float = 0.0) -> None:
        """End the process, killing it if it has not left `grace_s` seconds after being let go."""
        self.connection.close()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _obituary(self) -> str:
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "the simulator closed its pipe and did not exit"
        if status < 0:
            return f"the simulator was killed by {signal.Signals(-status).name}"
        return f"the simulator exited with status {status}"


# Run with -c, not -m: else the classes above would exist twice in the child.
_CHILD = "from fastloop.sims.worker import serve; serve()"


def serve() -> None:
    """The child: answer requests until the pipe closes. Arguments are its file and its parent."""
    descriptor, parent = map(int, sys.argv[1:])
    if not die_with_parent(parent):  # a simulator that hangs never sees the pipe close
        return
    faulthandler.enable()
    connection = Connection(descriptor)
    stage = _Stage(connection)
    try:
        while True:
            stage.answer(connection.recv())
    except (EOFError, ConnectionError):  # the parent has no more questions
        stage.close(keep_film=False)
    except Exception as error:
        traceback.print_exc()
        connection.send(_Broken(f"{type(error).__name__}: {error}"))
        stage.close(keep_film=True)


class _Stage:
    """The child's simulator, its episode and its camera."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.config: SimConfig | None = None
        self.sim: Sim | None = None
        self.keys: tuple[str, ...] = ()
        self.filming = Filming()
        self.recorder: Recorder | None = None
        self.ticks: list[Tick] = []
        self.last_sent = 0.0

    def answer(self, request: Open | Begin | Act) -> None:
        if isinstance(request, Open):
            self.connection.send(self._open(request.sim).env_spec)
        elif isinstance(request, Begin):
            self._begin(request)
            self._send()
        else:
            captions = request.captions or ("",) * len(request.actions)
            for action, caption in zip(request.actions, captions, strict=True):
                if self._step(action, caption):
                    break
                if time.perf_counter() - self.last_sent > HEARTBEAT_S:
                    self._send()
            self._send()

    def close(self, *, keep_film: bool) -> None:
        if self.recorder:
            self.recorder.close(keep=keep_film)
        if self.sim:
            self.sim.close()

    def _open(self, config: SimConfig) -> Sim:
        if self.sim is None or config != self.config:
            if self.sim:
                self.sim.close()
            self.sim, self.config = config.build(), config
        return self.sim

    def _begin(self, request: Begin) -> None:
        start = time.perf_counter()
        sim = self._open(request.sim)
        self.keys = request.keys
        observation, _ = sim.reset(seed=request.seed)
        if request.initial_state is not None:
            observation = sim.restore(request.initial_state)
        self.recorder = None
        if request.film:
            self.filming = request.film.filming
            self.recorder = Recorder(request.film.path, sim.env_spec.control_hz)
            self.recorder.frame(sim.render(), request.film.caption)
        self._keep(observation, 0.0, None, start)

    def _step(self, action: NDArray[np.float32], caption: str) -> Outcome | None:
        assert self.sim
        start = time.perf_counter()
        observation, reward, terminated, truncated, info = self.sim.step(action)
        outcome: Outcome | None = None
        if terminated or truncated:
            outcome = "success" if info["is_success"] else "failure" if terminated else "timeout"
        if self.recorder:
            self.recorder.frame(self.sim.render(), caption, outcome)
            if outcome:
                self.recorder.close(keep=self.filming.keeps(outcome))
                self.recorder = None
        figures = info.get("figures") if outcome else None
        self._keep(observation, reward, outcome, start, figures)
        return outcome

    def _keep(
        self,
        observation: Observation,
        reward: float,
        outcome: Outcome | None,
        start: float,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        wanted = {key: observation[key] for key in self.keys}
        seconds = time.perf_counter() - start
        self.ticks.append(Tick(wanted, float(reward), outcome, seconds, figures))

    def _send(self) -> None:
        if self.ticks:
            self.connection.send(self.ticks)
        self.ticks = []
        self.last_sent = time.perf_counter()
