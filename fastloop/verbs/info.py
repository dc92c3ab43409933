"""`fastloop info`: what a checkpoint holds, in a table, and its conversion to our format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastloop.config import InfoConfig
from fastloop.language_model_description import describe_language_model
from fastloop.policies.cacheflow.folder import describe_cacheflow, is_cacheflow
from fastloop.policies.checkpoints import convert, describe
from fastloop.policies.dlm.conformance import table
from fastloop.policies.driving.planners import describe_planner, is_planner
from fastloop.policies.load import find_checkpoint, policy_names
from fastloop.policies.vla.checkpoint import is_vlm
from fastloop.run_folder import make_run_dir, write_result
from fastloop.vlm_description import describe_vlm

__all__ = ["run"]


def run(config: InfoConfig) -> int:
    """Print the description and write it to the run folder; convert or check when asked.

    Returns:
        0, or 1 when a check of a language model has failed.
    """
    console = Console()
    if config.model is not None:
        return _language_model(config, console)
    if config.check:
        raise ValueError("check is for a diffusion language model: say model=FOLDER")
    if config.ckpt is None:
        raise ValueError(f"say which checkpoint: ckpt=PATH, or ckpt=NAME; {policy_names()}")
    path = config.ckpt if is_planner(config.ckpt) else find_checkpoint(config.ckpt)
    what, described = _kind(path)
    if what and config.convert:
        raise ValueError(
            f"{config.ckpt} is a {what}: only checkpoints of policies are converted, those that "
            "denoise"
        )
    facts = described(path, keys=config.keys)
    _print(console, str(path), facts)
    for key, shape in facts.get("keys", {}).items():
        console.print(f"  {key} {shape}", markup=False, highlight=False, soft_wrap=True)
    if config.convert:
        out = convert(path, config.convert, half=config.half)
        console.print(f"converted: {out}", markup=False, highlight=False, soft_wrap=True)
    _write(config, console, facts)
    return 0


def _kind(path: str | Path) -> tuple[str, Callable[..., dict[str, Any]]]:
    """What it is, empty for a policy that denoises; and who describes it."""
    if is_planner(path):
        return "planner", describe_planner
    if is_vlm(Path(path)):
        return "vision-language model", describe_vlm
    if is_cacheflow(path):
        return "CacheFlow policy", describe_cacheflow
    return "", describe


def _language_model(config: InfoConfig, console: Console) -> int:
    if config.ckpt or config.keys or config.convert:
        raise ValueError("model= goes with check= alone; ckpt=, keys= and convert= are of policies")
    facts, checks = describe_language_model(str(config.model), check=config.check)
    _print(console, str(config.model), facts)
    if checks:
        console.print(table(checks), markup=False, highlight=False, soft_wrap=True)
    facts["checks"] = {check.name: check.found for check in checks if not check.passed}
    _write(config, console, facts)
    return int(bool(facts["checks"]))


def _print(console: Console, title: str, facts: Mapping[str, Any]) -> None:
    shown = Table(title=Text(title), title_justify="left", show_header=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in facts.items():
        if name != "keys":
            shown.add_row(name, Text(_line(value)))
    console.print(shown)


def _write(config: InfoConfig, console: Console, facts: Mapping[str, Any]) -> None:
    folder = make_run_dir("info", config.run_dir)
    metrics = {"parameters": {"value": facts["parameters"], "unit": "1"}}
    write_result(folder, "info", config, metrics, checkpoint=facts)
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {item}" for key, item in value.items()) or "none"
    return "none" if value is None or value == "" else str(value)
