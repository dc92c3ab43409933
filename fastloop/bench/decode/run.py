"""From a configuration to the findings: answers, gates, timed plans, errors; then the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastloop.bench.config import DecodeBenchConfig
from fastloop.bench.decode.arms import BASELINES, JUMP_FORWARD, DecodeArm, make_arms, widened
from fastloop.bench.decode.compare import Found, compare_errors, compare_times
from fastloop.bench.decode.findings import DecodeFindings, metrics
from fastloop.bench.decode.gates import Answers, check, violations, write_all
from fastloop.bench.decode.page import render_decode_bench
from fastloop.bench.decode.projection import projections
from fastloop.bench.decode.report import print_tables, tables
from fastloop.bench.decode.subject import Subject, open_subject
from fastloop.bench.decode.timing import time_in_turns
from fastloop.bench.decode.validity import measure_validity
from fastloop.bench.decode.work import agreement, measure_work, passes, ratio
from fastloop.config.ranges import at_least
from fastloop.progress import bar
from fastloop.run_folder import config_yaml, make_run_dir, provenance, write_result

__all__ = ["run"]


def run(config: DecodeBenchConfig) -> int:
    """Measure, write the run folder and print the tables.

    Returns:
        0, or 1 when a gate is red.
    """
    _check(config)
    console = Console()
    with console.status("loading, and looking at moments"):
        subject = open_subject(config)
        arms, left_out = make_arms(config, subject)
    folder = make_run_dir("bench", config.run_dir)
    found, answers = _write(arms, subject, config, console)
    green = [arm for arm in arms if not found[arm.name].refused]
    if green:
        with bar("timing plans in turns", config.repeats * len(subject.moments), console) as told:
            timed = time_in_turns(green, subject.moments, config.repeats, config.seed, told)
        compare_times(found, answers, timed, subject)
        compare_errors(found, timed, subject)
    return _report(list(found.values()), left_out, subject, config, folder, console)


def _check(config: DecodeBenchConfig) -> None:
    """Refuse what would only come out minutes later."""
    at_least(config, 1, "prompts", "episode_prompts", "repeats", "sampled_prompts")
    decoding = dataclasses.asdict(config.policy.decoding)
    if said := [name for name, value in decoding.items() if value is not None]:
        raise ValueError(
            f"policy.decoding.{said[0]} is not heard here, where every arm writes in its own way: "
            f"say arms.NAME.{said[0]}=..."
        )
    for name in ("apart_s", "plan_hz"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")
    for name in config.arms:
        if name in BASELINES or not name.isidentifier():
            raise ValueError(
                f"an arm cannot be called {name!r}: its name is part of metric names, and "
                f"{', '.join(BASELINES)} are taken"
            )


def _write(
    arms: Sequence[DecodeArm], subject: Subject, config: DecodeBenchConfig, console: Console
) -> tuple[Found, Answers]:
    """Every arm's answers at all moments, what they took, and the gates."""
    model = subject.planner.model
    prompts = [subject.planner.prompts(moment.history)[0] for moment in subject.moments]
    episodes = [moment.episode for moment in subject.moments]
    total = len(arms) * len(prompts)
    with bar("answers", total, console) as told:
        answers = write_all(arms, prompts, model, told)
    exact, checked = widened(model), answers
    if exact is not model:
        with bar("answers in float32", total, console) as told:
            checked = write_all(arms, prompts, exact, told)
    with console.status("the same token by token, for the gates"):
        gates = check(arms, checked, prompts, exact, sampled=config.sampled_prompts)
    found, plain = {}, answers[arms[0].name]
    fewest = [passes(one) for one in answers.get(JUMP_FORWARD, plain)]
    for arm in arms:
        own, layout = answers[arm.name], arm.planner.layout
        found[arm.name] = DecodeFindings(
            arm,
            measure_work(own, episodes),
            gates[arm.name],
            measure_validity(layout, own),
            sum(violations(one.tokens, layout.canvas) for one in own),
            agreement=agreement(own, plain, layout.canvas.to("cpu"), episodes),
            fewer_forwards=ratio(fewest, [passes(one) for one in own], episodes),
        )  # fmt: skip
    return found, answers if exact is model else {}


def _report(
    arms: Sequence[DecodeFindings],
    left_out: Mapping[str, str],
    subject: Subject,
    config: DecodeBenchConfig,
    folder: Path,
    console: Console,
) -> int:
    facts: dict[str, Any] = {
        "checkpoint": config.policy.checkpoint,
        "checkpoint_digest": subject.planner.digest,
        "observations": subject.source,
        "device": subject.device,
        "threads": subject.threads,
        "refused": {one.name: one.refused for one in arms if one.refused},
        "left_out": left_out,
        "accepted_a_cycle": {
            one.name: dict(sorted(one.work.cycles.items())) for one in arms if one.work.cycles
        },
    }
    write_result(folder, "bench", config, metrics(arms), **facts)
    found = tables(arms, left_out)
    if (projected := projections(arms, config.projection)) is not None:
        found.append(projected)
    about = f"{config.policy.checkpoint}, {config.prompts} prompts of {subject.source}"
    page = folder / "bench.html"
    text = render_decode_bench(arms, found, about, provenance(**facts), config_yaml(config))
    page.write_text(text, encoding="utf-8")
    print_tables(arms, found, console)
    console.print(
        f"report: {page}\nrun folder: {folder}", markup=False, highlight=False, soft_wrap=True
    )
    return int(any(one.refused for one in arms))
