"""`fastloop bench train`: a head on kept embeddings beside the same policy trained end to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from fastloop.bench.config import TrainBenchConfig
from fastloop.datasets.embeddings import Embeddings
from fastloop.policies.training import Trainer
from fastloop.progress import bar
from fastloop.recipe import Recipe
from fastloop.run_folder import make_run_dir, write_result
from fastloop.sims.config import SimConfig
from fastloop.sims.report.console import text_table
from fastloop.sims.report.text import milliseconds, times
from fastloop.sims.stats import ratio_of_medians

__all__ = ["run"]


def run(config: TrainBenchConfig) -> int:
    """Time steps of both in turns, on batches of the same size and context; returns 0.

    Raises:
        ValueError: no encoder is taken over, or none can be.
    """
    if not config.network.encoder or config.repeats < 1:
        raise ValueError(
            "say whose encoder is taken over with network.encoder, and repeats of at least 1; got "
            f"{config.network.encoder} and {config.repeats}"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    console = Console()
    sim = SimConfig.from_config(config.sim).build()
    sim.close()
    head = Recipe(config, sim.env_spec)
    network = replace(config.network, encoder=None, embeddings=None)
    whole = Recipe(replace(config, network=network, vision=head.vision), sim.env_spec)
    samples = len(head.samples)
    _ = head.model, whole.model  # refused before there is a folder
    folder = make_run_dir("bench", config.run_dir)
    arms: dict[str, Trainer] = {}
    written_s = 0.0
    for name, recipe in (("end_to_end", whole), ("head", head)):
        for _, stage in recipe.stages(folder):
            if isinstance(stage, Embeddings):
                written_s = _write(stage, console)
            else:
                arms[name] = stage
    steps_ms = _time(arms, config.repeats, console)
    gain = ratio_of_medians(steps_ms["end_to_end"], steps_ms["head"], paired=True)
    metrics: dict[str, dict[str, Any]] = {"speedup": asdict(gain)}
    rows = []
    for name, taken in steps_ms.items():
        step_ms = median(taken)
        epoch_s = step_ms / 1e3 * samples / config.train.batch_size
        metrics[f"{name}_step_ms"] = {"value": step_ms, "unit": "ms", "n": len(taken)}
        metrics[f"{name}_epoch_s"] = {"value": epoch_s, "unit": "s"}
        rows.append([name, milliseconds(step_ms), f"{epoch_s:.3g} s"])
    metrics["embeddings_s"] = {"value": written_s, "unit": "s"}
    write_result(folder, "bench", config, metrics, samples=samples)
    title = f"Training on {samples} samples of {config.network.n_obs_steps} frames"
    console.print(text_table(title, ("arm", "a step", "an epoch"), rows))
    told = (
        f"{times(gain.value)} ({gain.ends(unit='x')}); embeddings, once: "
        f"{written_s:.3g} s\nrun folder: {folder}"
    )
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    return 0


def _write(embeddings: Embeddings, console: Console) -> float:
    """Seconds that it takes; next to none where they are kept already."""
    started = perf_counter()
    with bar("writing embeddings", len(embeddings), console) as advance:
        for done in embeddings.write():
            advance(done, "")
    return perf_counter() - started


def _time(arms: Mapping[str, Trainer], repeats: int, console: Console) -> dict[str, list[float]]:
    """Milliseconds of `repeats` steps of each, after a cold one."""
    timed: dict[str, list[float]] = {name: [] for name in arms}
    with bar("training in turns", repeats, console) as advance:
        for turn in range(repeats + 1):
            for name, trainer in arms.items():
                started = perf_counter()
                trainer.advance()
                if trainer.device.type == "cuda":
                    torch.cuda.synchronize()
                timed[name].append(1e3 * (perf_counter() - started))
            advance(turn, "")
    return {name: taken[1:] for name, taken in timed.items()}
