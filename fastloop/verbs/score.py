"""`fastloop score`: plans on recorded data, judged as the field judges, with what to say beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fastloop.arms import policy_digest
from fastloop.config import ScoreConfig
from fastloop.config.ranges import at_least
from fastloop.datasets import predictions
from fastloop.datasets.benchmark import Benchmark, Moment
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.prediction import NuScenesPrediction
from fastloop.progress import bar
from fastloop.run_folder import config_digest, config_yaml, make_run_dir, provenance, write_result
from fastloop.score.findings import Coverage, ScoreFindings, metric_table
from fastloop.score.forecasts import score_forecasts
from fastloop.score.page import render_score
from fastloop.score.pieces import Job, load_planner, open_benchmark
from fastloop.score.planner import Planner
from fastloop.score.run import Outcome, divide, do_run
from fastloop.score.submission import check_submission, write_submission
from fastloop.score.workers import WORKERS
from fastloop.sims.report.console import text_table
from fastloop.sims.targets import find

__all__ = ["run"]

# Fields that decide speed, place and pictures, and no figure.
NEUTRAL = ("run_dir", "worker", "workers", "worst", "allow_partial", "submit", "submission")
EGO = "observation.ego_states"
WEIGHTS = "checkpoint digest"
SEEN = "observation."  # a benchmark's remarks on an observation matter to who reads it


def run(config: ScoreConfig) -> int:
    """Score, write the run folder and print the table.

    Returns:
        0, or 1 when samples are missing, or 130 after Ctrl-C.
    """
    _check(config)
    console = Console()
    if find(config.dataset, "dataset") is NuScenesPrediction:
        return _run_forecasts(config, console)
    with console.status("opening the data set") as status:

        def show(done: int, total: int) -> None:
            status.update(f"opening the data set: {done} of {total} files")

        benchmark = open_benchmark(config.dataset, show)
    given = _given(config, benchmark)
    conditions = _conditions(config, benchmark)
    pieces = divide(benchmark.keys, config.piece, given and given.trajectories, benchmark.steps)
    folder = make_run_dir("score", config.run_dir)
    job = Job(
        config.dataset, None if given is not None else config.policy, config.batch, config.seed
    )
    # Another checkpoint may come to lie at the same path.
    settings = f"{config_digest(config, without=NEUTRAL)}/{conditions.get(WEIGHTS, '')}"
    try:
        with bar("scoring", len(benchmark.keys), console) as advance:
            done = do_run(
                job, pieces, folder, settings, worker=config.worker, workers=config.workers,
                progress=lambda count: advance(count, ""), benchmark=benchmark,
            )  # fmt: skip
    except KeyboardInterrupt:
        told = f"interrupted; the same command with run_dir={folder} goes on from here"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 130
    outcome = Outcome.of(pieces, done)
    predictions.check_heading(outcome.plans)
    plans = dict(zip(outcome.keys, outcome.plans, strict=True))
    predictions.write(folder / "predictions.npz", plans, hz=benchmark.hz)
    if config.submit:
        sent = write_submission(folder / "submission.tar.gz", plans, config.submission)
        console.print(f"submission: {sent}", markup=False, highlight=False, soft_wrap=True)
    found = ScoreFindings(
        _name(config),
        benchmark.name,
        outcome.metrics(benchmark),
        conditions,
        _coverage(benchmark, given, outcome),
        outcome.worst(benchmark, config.worst),
    )
    moments = [_moment(benchmark, case.key) for case in found.worst]
    return _report(config, found, moments, folder, console)


def _run_forecasts(config: ScoreConfig, console: Console) -> int:
    if config.predictions is None:
        raise ValueError(
            "nuScenes prediction is of other agents, which no policy here forecasts; say "
            "predictions=FILE, a submission in the challenge's JSON"
        )
    folder = make_run_dir("score", config.run_dir)
    with console.status("opening the data set") as status:

        def show(done: int, total: int) -> None:
            status.update(f"scoring: {done} of {total} agents")

        found = score_forecasts(config.predictions, config.dataset, show)
    return _report(config, found, [], folder, console)


def _check(config: ScoreConfig) -> None:
    """Refuse what would only come out minutes later."""
    if config.worker not in WORKERS:
        raise ValueError(f"unknown worker {config.worker!r}; have: {', '.join(WORKERS)}")
    at_least(config, 1, "batch", "piece")
    at_least(config, 0, "workers", "worst", "seed")
    if config.submit:
        check_submission(config.submission)


def _name(config: ScoreConfig) -> str:
    return Path(config.predictions or config.policy.checkpoint).name


def _given(config: ScoreConfig, benchmark: Benchmark) -> predictions.Predictions | None:
    """The plans of a file; None where a policy is asked.

    Raises:
        DatasetError: it cannot be read, has no plan for this benchmark, or is of other axes.
    """
    if config.predictions is None:
        return None
    given = predictions.read(config.predictions, steps=benchmark.steps, hz=benchmark.hz)
    if not set(given.trajectories) & set(benchmark.keys):
        raise DatasetError(
            f"{config.predictions} has no plan for any sample of {benchmark.name}: its names are "
            f"like {next(iter(given.trajectories), 'nothing')!r}, those wanted like "
            f"{next(iter(benchmark.keys), 'nothing')!r}"
        )
    predictions.check_heading(given.trajectories.values())
    return given


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
        told[WEIGHTS] = policy_digest(policy)
    return told | {
        name: remark
        for name, remark in benchmark.conditions.items()
        if not name.startswith(SEEN) or name in reads
    }


def _coverage(
    benchmark: Benchmark, given: predictions.Predictions | None, outcome: Outcome
) -> Coverage:
    known, faults, strangers = set(benchmark.keys), dict(outcome.faults), []
    if given is not None:
        faults |= {key: why for key, why in given.faults.items() if key in known}
        strangers = [key for key in given.trajectories if key not in known]
    return Coverage(
        len(benchmark.keys), len(outcome.keys), faults, list(benchmark.faults), strangers
    )


def _moment(benchmark: Benchmark, key: str) -> Moment | None:
    try:
        return benchmark.moment(key)
    except DatasetError:
        return None  # a picture is worth no failure


def _report(
    config: ScoreConfig,
    found: ScoreFindings,
    moments: Sequence[Moment | None],
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
    page = folder / "report.html"
    page.write_text(
        render_score(found, moments, provenance(**facts), config_yaml(config)), encoding="utf-8"
    )
    head, rows = metric_table(found.metrics, between="\n")
    table = text_table(f"{found.planner} on {found.benchmark}", head, rows)
    table.columns[0].no_wrap = True  # names of figures, which are copied from here
    console.print(table)
    for name, told in found.conditions.items():
        console.print(Text(f"{name}: {told}", style="dim"))
    style = "" if coverage.complete else "bold red"
    for sentence in coverage.sentences():
        console.print(Text(sentence, style=style))
    console.print(
        f"report: {page}\nrun folder: {folder}", markup=False, highlight=False, soft_wrap=True
    )
    return 0 if coverage.complete or config.allow_partial else 1
