"""`fastloop run`: a policy on a vehicle or an arm, at a fixed rate, or over a recorded drive."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from fastloop.config import RunVerbConfig
from fastloop.deploy.health.prometheus import serve_metrics
from fastloop.deploy.node import Node
from fastloop.deployment import make_deployment
from fastloop.run_folder import make_run_dir, write_result

__all__ = ["node_metrics", "run"]

RUNGS = ("fresh plan", "shifted plan", "comfort stop", "hard stop or hold")


def run(config: RunVerbConfig, *, listening: Callable[[], None] = lambda: None) -> int:
    """Run the node, then say what it did.

    Args:
        listening: called once, when the node hears what is sent.

    Returns:
        0 after SIGTERM or the end of the drive, 1 when the policy cannot be loaded or a recorded
        drive moved it to nothing, 130 after Ctrl-C.
    """
    if config.duration_s is not None and config.duration_s <= 0:
        raise ValueError(f"duration_s must be positive seconds, got {config.duration_s}")
    console = Console()
    folder = make_run_dir("run", config.run_dir)
    deployment = make_deployment(config, folder)
    node = deployment.node
    node.lifecycle.listeners.append(
        lambda transition, before, after: listening() if transition == "activate" else None
    )
    heard = deployment.deploy.replay.bag or "the world"
    long = "" if config.duration_s is None else f" for {config.duration_s:g} s"
    console.print(
        f"{config.policy.checkpoint} listens to {heard}{long}, beginning with the first "
        f"{deployment.deploy.state.topic}; Ctrl-C ends it",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    port = deployment.deploy.metrics_port
    end_metrics = serve_metrics(node, port) if port else lambda: None
    ticks = (
        None if config.duration_s is None else math.ceil(config.duration_s * deployment.deploy.hz)
    )
    try:
        code = deployment.run(ticks)
    finally:
        end_metrics()
    if code == 0 and node.loop and deployment.replay and not node.loop.rungs.total():
        code, node.error = 1, f"nothing was planned: {node.loop.ready()}"
    if code == 1:
        console.print(node.error, style="red", markup=False, soft_wrap=True)
    write_result(folder, "run", config, node_metrics(node), errors=node.error)
    _print(node, console)
    if deployment.film is not None:
        console.print(
            f"film, for Foxglove with foxglove.json as layout: {deployment.film}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    return code


def node_metrics(node: Node) -> dict[str, dict[str, Any]]:
    """What a node counted and timed, as a result's metrics."""
    loop = node.loop
    if loop is None:
        return {}
    metrics: dict[str, dict[str, Any]] = {
        "ticks": {"value": loop.rungs.total(), "unit": "1"},
        "skipped_ticks": {"value": node.schedule.skipped if node.schedule else 0, "unit": "1"},
        "unsent": {"value": node.unsent, "unit": "1"},
    }
    for rung in range(4):
        metrics[f"rung_{rung}"] = {"value": loop.rungs[rung], "unit": "1"}
    for name, count in sorted(loop.counts.items()):
        metrics["count_" + name.replace(" ", "_")] = {"value": count, "unit": "1"}
    for stage, told in loop.stages.summary().items():
        for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms"):
            metrics[f"{stage}_{name}"] = {"value": told[name], "unit": "ms", "n": int(told["n"])}
    return metrics


def _print(node: Node, console: Console) -> None:
    loop = node.loop
    if loop is None or not loop.rungs.total():
        return
    table = Table("stage", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "n")
    for stage, told in loop.stages.summary().items():
        names = ("p50_ms", "p99_ms", "p999_ms", "max_ms")
        table.add_row(stage, *(f"{told[name]:.2f}" for name in names), f"{told['n']:.0f}")
    console.print(table)
    rungs = ", ".join(f"{loop.rungs[k]} {RUNGS[k]}" for k in range(4))
    told = f"{loop.rungs.total()} messages: {rungs}; the last one of all ends at rest"
    console.print(told, highlight=False, soft_wrap=True)
    if loop.last_error:
        told = f"last error: {loop.last_error}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
