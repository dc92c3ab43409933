"""`fastloop record`: a scripted expert's demonstrations, as one robomimic HDF5 file."""

from __future__ import annotations

import dataclasses
import shutil
from itertools import chain
from pathlib import Path

from rich.console import Console

from fastloop.config import RecordConfig
from fastloop.config.ranges import at_least
from fastloop.datasets import robomimic
from fastloop.progress import bar
from fastloop.run_folder import claim, config_digest, make_run_dir, write_result
from fastloop.sims.config import SimConfig
from fastloop.sims.demos import Recipe, read_part, record
from fastloop.sims.stats import wilson

__all__ = ["run"]


def run(config: RecordConfig) -> int:
    """Record until enough episodes have succeeded, then write the file."""
    at_least(config, 1, "episodes", "num_workers", "burst_every")
    at_least(config, 0, "first_seed", "noise", "bursts")
    if not 0 <= config.disturb <= 1:
        raise ValueError(f"disturb is a probability, 0 to 1, got {config.disturb:g}")
    if config.n_action_steps is not None and not config.student:
        raise ValueError(
            f"n_action_steps={config.n_action_steps} says how often a student plans, and no "
            "student is named: say student=..., or leave it out"
        )
    console = Console()
    out = Path(config.out)
    if out.exists():
        raise ValueError(f"{out} exists already; remove it, or choose another out=")
    folder = make_run_dir("record", config.run_dir)
    parts = _parts(config, out)
    recipe = Recipe(
        SimConfig.from_config(config.sim), config.expert, config.disturb, config.noise,
        config.bursts, config.burst_every, config.student, config.n_action_steps,
    )  # fmt: skip
    attempts = 0
    with bar("recording", config.episodes, console) as advance:

        def show(successes: int, tried: int) -> None:
            nonlocal attempts
            attempts = tried
            advance(successes, f"{tried} attempts")

        paths = list(
            record(
                recipe, parts, episodes=config.episodes, first_seed=config.first_seed,
                num_workers=config.num_workers, progress=show,
            )
        )  # fmt: skip
    demonstrations = chain.from_iterable(read_part(path) for path in paths)
    env_args = {
        "env_name": recipe.sim.target,
        "type": "fastloop",
        "env_kwargs": dict(recipe.sim.arguments),
        "recipe": dataclasses.asdict(recipe),
    }
    robomimic.write(out, demonstrations, env_args=env_args)
    shutil.rmtree(parts)
    rate = wilson(len(paths), attempts)
    success = {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n, "unit": "1"}
    told = "kept" if config.student else "expert_success"  # a student's are kept, come what may
    write_result(folder, "record", config, {told: success})
    console.print(
        f"{told.replace('_', ' ')} {rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}, "
        f"n = {rate.n})\n"
        f"demonstrations: {out}\nrun folder: {folder}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def _parts(config: RecordConfig, out: Path) -> Path:
    """The folder of unfinished work beside `out`, refused when it was made by another recipe."""
    parts = out.with_name(out.name + ".parts")
    claim(
        parts,
        config_digest(config, without=("episodes", "num_workers", "out", "run_dir")),
        f"{parts} holds episodes of another recipe: finish it with its own settings, or remove "
        "the folder, or choose another out=",
    )
    return parts
