"""What comes back from a run: episodes, what is missing, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fastloop.accel.report import AccelReport
from fastloop.sims.results import EpisodeRecord, PlanCall
from fastloop.sims.summary import Arm, Key, PlanMask
from fastloop.sims.worklist import WorkItem

__all__ = ["Progress", "RunResult", "Times"]


@dataclass(frozen=True)
class Progress:
    """How far a run is: episodes ended out of all, successes, ticks and seconds of this process."""

    done: int
    total: int
    successes: int
    ticks: int
    elapsed_s: float


@dataclass
class Times:
    """Where the time of one process went, in seconds; what is left of the total is waiting.

    Attributes:
        total_s: wall time from the first simulator's start to the last one's end.
        policy_s: wall time inside policy calls.
        runner_s: the loop's own work (processor time, so that a busy machine does not count as
            work) and its waiting for the disk.
        simulators_s: wall time inside the simulators, summed over their processes.
    """

    total_s: float = 0.0
    policy_s: float = 0.0
    runner_s: float = 0.0
    simulators_s: float = 0.0

    @property
    def overhead(self) -> float:
        """Share of the time that the runner itself took, 0 to 1."""
        return self.runner_s / self.total_s if self.total_s else 0.0


@dataclass(frozen=True)
class RunResult:
    """What the run folder holds of one work list.

    Attributes:
        episodes: those that ended, in the order of the list.
        missing: items that did not.
        calls: every policy call, those of interrupted earlier processes included.
        videos: (task, seed) to its file.
        times: of this process.
        interrupted: stopped by Ctrl-C.
    """

    episodes: tuple[EpisodeRecord, ...]
    missing: tuple[WorkItem, ...]
    calls: tuple[PlanCall, ...]
    videos: Mapping[Key, Path]
    times: Times
    interrupted: bool

    @property
    def coverage(self) -> float:
        """Share of the list that ended in a verdict on the policy: neither missing nor an error."""
        verdicts = sum(episode.outcome != "error" for episode in self.episodes)
        return verdicts / max(1, len(self.episodes) + len(self.missing))

    @property
    def accel(self) -> AccelReport:
        """The reports of all episodes; a plan counts for each episode, its time only once."""
        reports = [AccelReport(**episode.accel) for episode in self.episodes if episode.accel]
        if not reports:
            return AccelReport(plans=0)
        stages = [AccelReport(stage_ms=call.stage_ms) for call in self.calls]
        stage_ms = AccelReport.total(stages).stage_ms if stages else {}
        return replace(AccelReport.total(reports), stage_ms=stage_ms)

    def arm(self, name: str, plan: PlanMask | None = None) -> Arm:
        """What the statistics and the report need."""
        return Arm(
            name=name,
            episodes=[episode.summary for episode in self.episodes],
            latencies_ms=[call.ms for call in self.calls],
            cold=[call.cold for call in self.calls],
            accel=asdict(self.accel),
            plan=plan,
        )
