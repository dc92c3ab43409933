"""What a run writes down while it runs: a durable line per episode, and one per policy call."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from fastloop.sims.summary import Episode, Key, Outcome

__all__ = ["EpisodeLog", "EpisodeRecord", "JsonLines", "LogWriteError", "PlanCall"]

SCHEMA = 1


class LogWriteError(OSError):
    """The log could not be written; what it already held is safe."""


@dataclass(frozen=True)
class EpisodeRecord:
    """How one episode went. Nothing in it depends on the machine or on what ran beside it.

    Attributes:
        task, seed: which episode.
        outcome: ``failure`` when the world ended without success, ``timeout`` after the last tick,
            ``error`` when the simulator broke on every try; an error has no figures, because how
            far a try came depends on timing.
        steps: ticks.
        total_reward, max_reward: over the episode; the max of an error is None.
        plans: policy calls that it took part in.
        retries: tries that broke before this one.
        error: why the last try broke.
        accel: name, exactness and counts of the summed AccelReport of its plans, without times.
        figures: what else the simulator says of it, by name with its unit, for instance
            ``progress_m``; none of an error.
        moments: of the executed actions, see `predictability`; none of plans.
    """

    task: str
    seed: int
    outcome: Outcome
    steps: int = 0
    total_reward: float = 0.0
    max_reward: float | None = None
    plans: int = 0
    retries: int = 0
    error: str = ""
    accel: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    moments: list[float] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.outcome not in get_args(Outcome):
            raise ValueError(f"unknown outcome {self.outcome!r}; have: {get_args(Outcome)}")

    @property
    def key(self) -> Key:
        """(task, seed)."""
        return self.task, self.seed

    @property
    def summary(self) -> Episode:
        """What the statistics need of it."""
        return Episode(self.task, self.seed, self.outcome, self.error, self.figures, self.moments)


@dataclass(frozen=True)
class PlanCall:
    """One timed policy call.

    Attributes:
        ms: wall time in milliseconds.
        rows: environments that it served, padding not counted.
        cold: whether it was the first with its number of rows, warm-up and compilation included.
        stage_ms: wall time a stage, as the policy reports it.
    """

    ms: float
    rows: int
    cold: bool
    stage_ms: dict[str, float] = field(default_factory=dict)


class JsonLines:
    """A file of one JSON object a line that outlives its writer being killed.

    Opening it takes a lock and drops a last line that was not written to its end.

    Args:
        path: made when it does not exist.

    Attributes:
        lines: the objects that the file held when it was opened.

    Raises:
        ValueError: when a line in the middle is no JSON object, or another process writes the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"another process is writing {path}; wait for it or choose another run_dir"
            ) from None
        self._file.seek(0)
        self.lines, self._size = _whole_lines(path, self._file.read())
        self._file.truncate(self._size)

    def append(self, line: dict[str, Any], *, durable: bool) -> None:
        """Write one line.

        Args:
            line: a JSON object.
            durable: return only when it is on the disk.

        Raises:
            LogWriteError: when it could not be written; the file then ends with the line before.
        """
        data = (json.dumps(line) + "\n").encode()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._write(rest) :]
            if durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._size)
            raise LogWriteError(
                error.errno,
                f"cannot write ({error.strerror}); all lines before this one are safe. Make room "
                "and run the same command again: it goes on from there",
                str(self.path),
            ) from error
        self._size += len(data)

    def replace(self, lines: Iterable[dict[str, Any]]) -> None:
        """Put `lines` in place of all, at once, and close: a crash leaves the old file or the new.

        Raises:
            LogWriteError: when they could not be written; the old file stays.
        """
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with open(fresh, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self.path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise LogWriteError(
                error.errno,
                f"cannot sort ({error.strerror}); nothing is lost. Make room and run the same "
                "command again",
                str(self.path),
            ) from error
        self.close()

    def close(self) -> None:
        """Close the file and release its lock."""
        self._file.close()

    def _write(self, data: memoryview) -> int:
        return self._file.write(data) or 0


def _whole_lines(path: Path, data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The objects of the lines that were written to their end, and how many bytes these take."""
    lines: list[dict[str, Any]] = []
    size = 0
    raw_lines = data.splitlines(keepends=True)
    for number, raw in enumerate(raw_lines, start=1):
        try:
            line = json.loads(raw)
            if not isinstance(line, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(raw_lines):
                break
            raise ValueError(
                f"{path}, line {number} is damaged ({error}); remove the line to run its episode "
                "again, or choose another run_dir"
            ) from error
        if not raw.endswith(b"\n"):
            break
        lines.append(line)
        size += len(raw)
    return lines, size


class EpisodeLog:
    """The finished episodes of one configuration: ``episodes.jsonl``.

    The first line holds the configuration's digest, each other line an `EpisodeRecord`.

    Args:
        path: of the file; an existing one is continued.
        digest: identifies everything that makes episodes comparable.

    Raises:
        ValueError: when the file belongs to another configuration, is damaged or is being written.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._header = {"schema": SCHEMA, "digest": digest}
        self._log = JsonLines(path)
        self.records: dict[Key, EpisodeRecord] = {}
        try:
            self._continue()
        except Exception:
            self.close()
            raise

    def _continue(self) -> None:
        if not self._log.lines:
            self._log.append(self._header, durable=True)
            return
        header, *lines = self._log.lines
        if header != self._header:
            raise ValueError(
                f"{self._log.path} holds episodes of another configuration: its header is "
                f"{header}, this run's is {self._header}. Choose another run_dir, or give the "
                "configuration that this one was started with"
            )
        for number, line in enumerate(lines, start=2):
            try:
                record = EpisodeRecord(**line)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{self._log.path}, line {number} is no episode: {error}"
                ) from error
            self.records[record.key] = record

    def append(self, record: EpisodeRecord) -> None:
        """Write down a finished episode; it is on the disk when this returns."""
        self._log.append(asdict(record), durable=True)
        self.records[record.key] = record

    def sort(self, keys: Sequence[Key]) -> None:
        """Bring the file into the order of `keys`, episodes of other lists last, and close it."""
        ordered = [self.records[key] for key in keys if key in self.records]
        rest = [record for key, record in self.records.items() if key not in set(keys)]
        self._log.replace([self._header, *(asdict(record) for record in ordered + rest)])

    def close(self) -> None:
        """Close the file; another process may now write it."""
        self._log.close()
