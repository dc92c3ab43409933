"""Everything that a closed-loop run leaves behind, as plain data that travels as JSON.

A `RunSummary` holds what was observed and nothing derived from it; `fastloop.sims.findings` draws
the conclusions and `fastloop.sims.report` shows them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

__all__ = ["Arm", "Episode", "Key", "Outcome", "PlanMask", "RunSummary", "Video"]

Outcome = Literal["success", "failure", "timeout", "error"]
Key = tuple[str, int]
"""(task, seed): what an episode of one policy is paired by with the same episode of another."""


@dataclass(frozen=True)
class Episode:
    """How one episode ended.

    Attributes:
        task, seed: which one.
        outcome: how.
        detail: why, when it is an error.
        figures: what else the simulator says of it, by name with its unit.
        moments: of the executed actions, see `predictability`.
    """

    task: str
    seed: int
    outcome: Outcome
    detail: str = ""
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)
    moments: Sequence[float] = field(default_factory=list, hash=False, repr=False)

    def __post_init__(self) -> None:
        if self.outcome not in get_args(Outcome):
            choices = ", ".join(get_args(Outcome))
            raise ValueError(f"unknown outcome {self.outcome!r}; have: {choices}")

    @property
    def key(self) -> Key:
        return self.task, self.seed


@dataclass(frozen=True)
class PlanMask:
    """Which residual branches a cache plan computes.

    Attributes:
        branches: names in execution order.
        compute: (K, branches) booleans in denoising order; False is reused.
    """

    branches: Sequence[str]
    compute: Sequence[Sequence[bool]]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.compute}
        if widths - {len(self.branches)}:
            raise ValueError(
                f"plan mask rows must have one flag for each of the {len(self.branches)} branches, "
                f"got rows of {sorted(widths)}"
            )


@dataclass(frozen=True)
class Arm:
    """One policy of a run, plain or accelerated.

    Attributes:
        name: shown to people and used in metric names.
        episodes: at most one for each planned (task, seed).
        latencies_ms: wall time of each `plan()` call.
        cold: for each call, whether it was a first one (warm-up, compilation).
        accel: fields of the summed AccelReport, empty when there is none.
        plan: the cache plan in force, if any.
    """

    name: str
    episodes: Sequence[Episode]
    latencies_ms: Sequence[float] = ()
    cold: Sequence[bool] = ()
    accel: Mapping[str, Any] = field(default_factory=dict)
    plan: PlanMask | None = None

    def __post_init__(self) -> None:
        if len(self.latencies_ms) != len(self.cold):
            raise ValueError(
                f"arm {self.name!r} has {len(self.latencies_ms)} latencies and "
                f"{len(self.cold)} cold flags; they must match one to one"
            )
        _check_latencies(self.name, self.latencies_ms)
        counts = Counter(episode.key for episode in self.episodes)
        twice = sorted(key for key, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"arm {self.name!r} has more than one episode of {twice[:5]}")


@dataclass(frozen=True)
class Video:
    """A recorded rollout; `path` is absolute or relative to the report's folder."""

    path: str
    arm: str
    task: str
    seed: int


# Compared by identity, so that findings can be kept beside a summary instead of computed anew.
@dataclass(frozen=True, eq=False)
class RunSummary:
    """One run of one or more policies over the same planned episodes.

    Attributes:
        verb: the command that ran, for instance ``eval``.
        arms: the baseline first, then what is compared with it.
        planned: every (task, seed) that each arm should have run.
        margin: largest loss of success that is acceptable, as a fraction.
        interleaved_ms: latencies of each arm timed back to back on the same observations, the
            i-th of one beside the i-th of another; the speed-up prefers them to `latencies_ms`.
        demonstrations: moments of an expert's actions, one each demonstration, to compare with.
        videos: rollouts, shown side by side by (task, seed).
        provenance: versions, hardware, thread count, checkpoint digest and so on, by name.
        config: the composed configuration as YAML.
    """

    verb: str
    arms: Sequence[Arm]
    planned: Sequence[Key]
    margin: float = 0.05
    interleaved_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    demonstrations: Sequence[Sequence[float]] = ()
    videos: Sequence[Video] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a run needs arms with different names, got {names or 'none'}")
        unknown = sorted(set(self.interleaved_ms) - set(names))
        if unknown:
            raise ValueError(f"interleaved latencies of unknown arms {unknown}; have: {names}")
        for name, latencies_ms in self.interleaved_ms.items():
            _check_latencies(name, latencies_ms)
        planned = set(self.planned)
        for arm in self.arms:
            stray = sorted({episode.key for episode in arm.episodes} - planned)
            if stray:
                raise ValueError(
                    f"arm {arm.name!r} has episodes that were not planned: {stray[:5]}"
                )

    def to_json(self) -> str:
        """Serialize, to be read back by `from_json`."""
        return json.dumps(asdict(self), default=_plain)

    @classmethod
    def from_json(cls, text: str) -> RunSummary:
        """Read what `to_json` wrote.

        Raises:
            ValueError: when the text is not JSON or fields are missing or unknown.
        """
        try:
            data = json.loads(text)
            data["arms"] = [_arm(arm) for arm in data["arms"]]
            data["planned"] = [(task, seed) for task, seed in data["planned"]]
            data["videos"] = [Video(**video) for video in data["videos"]]
            return cls(**data)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the summary of a run: {error}") from error


def _arm(data: dict[str, Any]) -> Arm:
    plan = data.pop("plan")
    episodes = [Episode(**episode) for episode in data.pop("episodes")]
    return Arm(**data, episodes=episodes, plan=PlanMask(**plan) if plan else None)


def _check_latencies(name: str, latencies_ms: Sequence[float]) -> None:
    wrong = [ms for ms in latencies_ms if not (ms > 0 and math.isfinite(ms))]
    if wrong:
        raise ValueError(f"latencies of {name!r} must be positive milliseconds, got {wrong[:5]}")


def _plain(value: Any) -> Any:
    """numpy's scalars and arrays, which clocks and masks bring along, as Python's; else text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
