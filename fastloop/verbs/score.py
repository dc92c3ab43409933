"""`fastloop score`: plans on recorded data, judged as the field judges, with what to say beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from fastloop.config import ScoreConfig
from fastloop.datasets import predictions
from fastloop.datasets.benchmark import Benchmark, Moment
from fastloop.datasets.errors import DatasetError
from fastloop.progress import bar
from fastloop.run_folder import config_digest, config_yaml, make_run_dir, provenance, write_result
from fastloop.score.findings import Coverage, ScoreFindings, metric_table
from fastloop.score.page import render_score
from fastloop.score.pieces import Job, load_planner, open_benchmark
from fastloop.score.planner import Planner
from fastloop.score.run import Outcome, divide, do_run
from fastloop.score.submission import write_submission
from fastloop.score.workers import WORKERS
from fastloop.sims.report.console import text_table

__all__ = ["run"]

# Fields that decide speed, place and pictures, and no figure.
NEUTRAL = ("run_dir", "worker", "workers", "worst", "allow_partial", "submit", "submission")
EGO = "observation.ego_states"
SEEN = "observation."  # a benchmark's remarks on an observation matter to who reads it


def run(config: ScoreConfig) -> int:
    """Score, write the run folder and print the table.

    Returns:
        0, or 1 when samples are missing, or 130 after Ctrl-C.
    """
    _check(config)
    console = Console()
    with console.status("opening the data set"):
        benchmark = open_benchmark(config.dataset)
    given = _given(config, benchmark)
    conditions = _conditions(config, benchmark)
    pieces = divide(benchmark.keys, config.piece, given, benchmark.steps)
    folder = make_run_dir("score", config.run_dir)
    job = Job(
        config.dataset, None if given is not None else config.policy, config.batch, config.seed
    )
    settings = config_digest(config, without=NEUTRAL)
    try:
        with bar("scoring", len(benchmark.keys), console) as advance:
            done = do_run(
                job, pieces, folder, settings, worker=config.worker, workers=config.workers,
                progress=lambda count: advance(count, ""),
            )  # fmt: skip
    except KeyboardInterrupt:
        told = f"interrupted; the same command with run_dir={folder} goes on from here"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 130
    outcome = Outcome.of(pieces, done)
    predictions.check_heading(outcome.plans)
    known = set(benchmark.keys)
    strangers = [key for key in given or () if key not in known]
    found = ScoreFindings(
        _name(config),
        benchmark.name,
        outcome.metrics(benchmark),
        conditions,
        Coverage(
            len(benchmark.keys), len(outcome.keys), outcome.faults, benchmark.faults, strangers
        ),
        outcome.worst(benchmark, config.worst),
    )
    predictions.write(
        folder / "predictions.npz", dict(zip(outcome.keys, outcome.plans, strict=True))
    )
    if config.submit:
        plans = dict(zip(outcome.keys, outcome.plans, strict=True))
        sent = write_submission(folder / "submission.tar.gz", plans, config.submission)
        console.print(f"submission: {sent}", markup=False, highlight=False, soft_wrap=True)
    return _report(config, benchmark, found, folder, console)


def _check(config: ScoreConfig) -> None:
    """Refuse what would only come out minutes later."""
    if config.worker not in WORKERS:
        raise ValueError(f"unknown worker {config.worker!r}; have: {', '.join(WORKERS)}")
    for name in ("batch", "piece"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("workers", "worst"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)}")


def _name(config: ScoreConfig) -> str:
    return Path(config.predictions or config.policy.checkpoint).name


def _given(config: ScoreConfig, benchmark: Benchmark) -> Mapping[str, NDArray[np.float64]] | None:
    """The plans of a file by sample; None where a policy is asked.

    Raises:
        DatasetError: it cannot be read, or has no plan for this benchmark.
    """
    if config.predictions is None:
        return None
    given = predictions.read(config.predictions, steps=benchmark.steps)
    if not set(given.trajectories) & set(benchmark.keys):
        raise DatasetError(
            f"{config.predictions} has no plan for any sample of {benchmark.name}: its names are "
            f"like {next(iter(given.trajectories), 'nothing')!r}, those wanted like "
            f"{next(iter(benchmark.keys), 'nothing')!r}"
        )
    return given.trajectories


def _conditions(config: ScoreConfig, benchmark: Benchmark) -> dict[str, str]:
    """What a table must say beside its figures; a policy that does not fit is refused here."""
    told = {"waypoints": f"{benchmark.steps} at {benchmark.hz:g} Hz, of {benchmark.frame}"}
    if config.predictions is not None:
        reads = list(benchmark.inputs)
        told["ego status"] = "unknown: the plans come from a file"
    else:
        policy = load_planner(config.policy, benchmark)
        Planner(policy, benchmark, batch=config.batch, seed=config.seed)
        reads = list(policy.spec.inputs)
        told["ego status"] = "read" if EGO in reads else "not read"
        told["observations"] = ", ".join(reads) or "none"
    return told | {
        name: remark
        for name, remark in benchmark.conditions.items()
        if not name.startswith(SEEN) or name in reads
    }


def _moment(benchmark: Benchmark, key: str) -> Moment | None:
    try:
        return benchmark.moment(key)
    except DatasetError:
        return None  # a picture is worth no failure


def _report(
    config: ScoreConfig,
    benchmark: Benchmark,
    found: ScoreFindings,
    folder: Path,
    console: Console,
) -> int:
    coverage = found.coverage
    facts = {
        "plans_of": found.planner,
        "benchmark": found.benchmark,
        "conditions": found.conditions,
    }
    metrics = {name: dataclasses.asdict(metric) for name, metric in found.metrics.items()}
    kept = dataclasses.asdict(coverage) | {"value": coverage.value, "complete": coverage.complete}
    write_result(folder, "score", config, metrics, kept, **facts)
    moments = [_moment(benchmark, case.key) for case in found.worst]
    page = folder / "report.html"
    page.write_text(
        render_score(found, moments, provenance(**facts), config_yaml(config)), encoding="utf-8"
    )
    head, rows = metric_table(found.metrics)
    console.print(text_table(f"{found.planner} on {found.benchmark}", head, rows))
    for name, told in found.conditions.items():
        console.print(Text(f"{name}: {told}", style="dim"))
    style = "" if coverage.complete else "bold red"
    for sentence in coverage.sentences():
        console.print(Text(sentence, style=style))
    console.print(
        f"report: {page}\nrun folder: {folder}", markup=False, highlight=False, soft_wrap=True
    )
    return 0 if coverage.complete or config.allow_partial else 1
