"""`fastloop train`: demonstrations in, a policy folder out; a killed run goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastloop.cacheflow_recipe import KIND, CacheFlowRecipe
from fastloop.config import TrainVerbConfig
from fastloop.config.ranges import at_least
from fastloop.datasets import robomimic
from fastloop.datasets.embeddings import Embeddings
from fastloop.policies.base import Policy
from fastloop.policies.driving.whole_plans import WholePlans
from fastloop.policies.load import make_policy
from fastloop.policies.spec import EnvSpec
from fastloop.policies.training import Trainer
from fastloop.policies.vla.manifest import STOCK
from fastloop.progress import bar
from fastloop.recipe import Recipe
from fastloop.run_folder import make_run_dir, write_result, write_whole
from fastloop.sims.config import SimConfig
from fastloop.sims.interrupts import Interrupts, catch_interrupts
from fastloop.sims.runner import RunConfig
from fastloop.sims.runner import run as run_closed_loop
from fastloop.sims.stats import wilson
from fastloop.sims.worklist import WorkItem
from fastloop.vla_recipe import VLARecipe

__all__ = ["run"]

AnyRecipe = Recipe | VLARecipe | CacheFlowRecipe

READ = f"{robomimic.__name__}.read"
OUT = "out"  # a file of a run folder, which says where the policy goes
CHECKS = "checks"  # under a run folder, by stage and step
CHECK_SEED = 500_000  # closed-loop checks never touch the seeds that evaluations use


def run(config: TrainVerbConfig) -> int:
    """Train, check in closed loop now and then, and write the policy folder.

    Returns:
        0, or 130 after Ctrl-C; the same command with this run folder then goes on.
    """
    console = Console()
    at_least(config, 1, "save_every", "train.batch_size", "train.steps", "network.horizon")
    at_least(config, 0, "train.seed", "pretrain.steps", "check_every")
    _check_place(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    sim_config = SimConfig.from_config(config.sim)
    sim = sim_config.build()
    recipe = _recipe(config, sim.env_spec)
    sim.close()
    samples, _ = len(recipe.samples), recipe.model  # refused before there is a folder
    folder = make_run_dir("train", config.run_dir)
    out = Path(config.out) if config.out else folder / "policy"
    if config.out:
        out.mkdir(parents=True, exist_ok=True)  # fails now, or not after hours
        write_whole(folder / OUT, str(out.resolve()))
    for told in _recorded_elsewhere(config):
        console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)
    with catch_interrupts() as stop:
        running = _Stage(config, folder, console, stop)
        for name, stage in recipe.stages(folder):
            if isinstance(stage, Embeddings):
                done = running.write(stage)
            else:
                trainer = stage
                check = partial(_check, config, sim_config, recipe, name, trainer, folder)
                done = running.run(name, trainer, None if name == "encoder" else check)
            if not done:
                return running.stopped()
    recipe.save(out, trainer)
    metrics = {"loss": {"value": running.loss, "unit": "1", "n": trainer.step}}
    if not isinstance(recipe, Recipe):
        metrics |= {key: {"value": value} for key, value in recipe.check(name, trainer).items()}
    write_result(folder, "train", config, metrics, samples=samples)
    console.print(
        f"policy: {out}\nrun folder: {folder}", markup=False, highlight=False, soft_wrap=True
    )
    return 0


@dataclass
class _Stage:
    """Runs trainers, each with its saved state, log lines and progress bar."""

    config: TrainVerbConfig
    folder: Path
    console: Console
    stop: Interrupts
    loss: float | None = None

    def run(
        self,
        name: str,
        trainer: Trainer,
        check: Callable[[], dict[str, float] | None] | None,
    ) -> bool:
        """Train to the end, or until somebody asks to stop; whether it came to the end."""
        state, total = self.folder / f"{name}.pt", trainer.config.steps
        if state.exists():
            trainer.resume(state)
            self.console.print(f"{name} resumed at step {trainer.step}", markup=False)
        self._forget(name, trainer.step)
        losses: list[float] = []
        with bar(f"training {name}", total, self.console) as advance:
            while trainer.step < total and not self.stop.requested:
                losses.append(trainer.advance())
                self.loss = sum(losses) / len(losses)
                advance(trainer.step, f"loss {self.loss:.4f}")
                if trainer.step % 100 == 0 or trainer.step == total:
                    self._write(stage=name, step=trainer.step, loss=self.loss)
                    losses = []
                if trainer.step % self.config.save_every == 0:
                    trainer.save(state)
                every = self.config.check_every
                if check and every and trainer.step % every == 0:
                    found = check()
                    if found is None:  # its Ctrl-C is ours
                        break
                    self._write(stage=name, step=trainer.step, **found)
                    self.console.print(f"step {trainer.step}: {found}", markup=False)
        trainer.save(state)
        return trainer.step >= total

    def write(self, embeddings: Embeddings) -> bool:
        """Have every demonstration embedded, or as many until somebody asks to stop; whether all
        are."""
        with bar("writing embeddings", len(embeddings), self.console) as advance:
            for done in embeddings.write():
                advance(done, str(embeddings.path))
                if self.stop.requested:
                    return False
        return True

    def stopped(self) -> int:
        """Say how to go on; the exit code."""
        told = f"stopped; add run_dir={self.folder} to go on"
        self.console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 130

    @property
    def _log(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _write(self, **line: Any) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _forget(self, name: str, step: int) -> None:
        """Drop the lines and checks of what a kill undid; they are about to be made again."""
        text = self._log.read_text(encoding="utf-8") if self._log.exists() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
        facts = [json.loads(line) for line in whole]
        stays = [fact["stage"] != name or fact["step"] <= step for fact in facts]
        write_whole(self._log, "".join(compress(whole, stays)))
        for made in self.folder.glob(f"{CHECKS}/{name}/*"):
            if made.name.isdigit() and int(made.name) > step:
                shutil.rmtree(made)


def _check_place(config: TrainVerbConfig) -> None:
    """A policy takes nobody's place, but for what the same run has put there before."""
    out = Path(config.out) if config.out else None
    if out is None or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    mark = Path(config.run_dir or "") / OUT
    if not config.run_dir or not mark.exists() or mark.read_text() != str(out.resolve()):
        raise ValueError(f"{out} exists already; remove it, or choose another out=")


def _recorded_elsewhere(config: TrainVerbConfig) -> Iterator[str]:
    """Of demonstrations that were recorded in another simulator: what a mistake could look like."""
    if config.dataset["_target_"] != READ:
        return
    paths, ours = config.dataset["path"], config.sim["_target_"]
    for path in [paths] if isinstance(paths, str) else paths:
        if (theirs := robomimic.recorded_in(path)) and theirs != ours:
            yield f"{path} was recorded in {theirs}, and the policy will act in {ours} (sim=)"


def _recipe(config: TrainVerbConfig, env: EnvSpec) -> AnyRecipe:
    own = {STOCK: VLARecipe, KIND: CacheFlowRecipe}
    return own.get(config.network.kind, Recipe)(config, env)


def _check(
    config: TrainVerbConfig,
    sim: SimConfig,
    recipe: AnyRecipe,
    stage: str,
    trainer: Trainer,
    folder: Path,
) -> dict[str, float] | None:
    """Success of the averaged weights with its Wilson interval, or how they do on held-out moments;
    None when interrupted."""
    if not isinstance(recipe, Recipe):
        return recipe.check(stage, trainer)
    checkpoint = recipe.checkpoint(trainer)
    policy: Policy = make_policy(checkpoint, device=config.device)
    if recipe.plans:
        policy = WholePlans(policy, recipe.env)
    name = checkpoint.training["environment"]
    items = [WorkItem(name, CHECK_SEED + i) for i in range(config.check_episodes)]
    step = checkpoint.training["steps"]
    result = run_closed_loop(
        policy, {name: sim}, items, run_dir=folder / CHECKS / stage / str(step), digest=str(step),
        config=RunConfig(num_envs=8, plan_batch=8),
    )  # fmt: skip
    if result.interrupted:
        return None
    successes = sum(episode.outcome == "success" for episode in result.episodes)
    interval = wilson(successes, len(result.episodes))
    return {"success": interval.value, "low": interval.low, "high": interval.high}
