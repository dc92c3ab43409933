"""From a configuration to a network, the gate, timed passes, and tables."""

from __future__ import annotations

import torch
from rich.console import Console

from fastloop.accel.decoding.captured import BUCKETS, Captured
from fastloop.accel.decoding.model import LanguageModel
from fastloop.bench.shape.arms import make_arms
from fastloop.bench.shape.config import ShapeBenchConfig
from fastloop.bench.shape.measure import Found, measure_context, measure_errors
from fastloop.bench.shape.network import random_model
from fastloop.bench.shape.passes import bandwidth
from fastloop.bench.shape.report import metrics, tables
from fastloop.config.ranges import at_least
from fastloop.policies.checkpoints.published import weights_dtype
from fastloop.run_folder import make_run_dir, write_result
from fastloop.setup import device_of
from fastloop.sims.report.console import text_table

__all__ = ["run"]


def run(config: ShapeBenchConfig) -> int:
    """Measure, write the run folder and print the tables.

    Returns:
        0, or 1 when an arm gives other logits, or was not replayed on a GPU.
    """
    _check(config)
    console = Console()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = torch.device(device_of(config.device))
    with console.status("making a network of random weights"):
        model = random_model(config.arch, weights_dtype(config.dtype, device), device)
        arms, left_out = make_arms(config.arms, model)
    folder = make_run_dir("bench", config.run_dir)
    found = Found()
    with torch.no_grad(), console.status("copying memory") as status:
        memory = {"weights": _held(device)}
        speed = bandwidth(config.bandwidth_mib, device)
        status.update("comparing logits")
        measure_errors(found, arms, model, config)
        green = {name: arm for name, arm in arms.items() if name not in found.wrong}
        _forget(device)  # the wider network
        for context in config.contexts:
            measure_context(
                found, green, model, config, context,
                lambda told, context=context: status.update(f"{context} tokens: {told}"),
            )  # fmt: skip
        memory["peak"] = _held(device, "max_memory_allocated")
    idle = _idle(arms, device)
    facts = {
        "device": str(device), "threads": torch.get_num_threads(),
        "parameters": sum(weight.numel() for weight in model.network.parameters()),
        "dtype": str(model.network.dtype), "left_out": left_out, "refused": found.wrong,
        "not_replayed": idle,
    }  # fmt: skip
    write_result(folder, "bench", config, metrics(found, speed, memory, config), **facts)
    for table in tables(found, speed, config):
        console.print(text_table(table.title, table.head, table.rows))
    for name, why in (left_out | idle).items():
        console.print(f"{name}: {why}", markup=False, highlight=False, soft_wrap=True)
    for name in found.wrong:
        told = f"{name}: its logits are off by {found.errors[name]:.2g}; it was not timed"
        console.print(told, style="bold red", markup=False)
    console.print(f"run folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    return int(bool(found.wrong) or (device.type == "cuda" and bool(idle)))


def _check(config: ShapeBenchConfig) -> None:
    """Refuse what would only come out minutes later."""
    at_least(
        config, 1, "fork_tokens", "room", "repeats", "block", "prompts", "bandwidth_mib", "threads"
    )
    for name in ("contexts", "tokens"):
        if not getattr(config, name):
            raise ValueError(f"{name} names none")
    for name in ("contexts", "tokens", "forks"):
        given = getattr(config, name)
        if min(given, default=1) < 1 or len(set(given)) < len(given):
            raise ValueError(f"{name} must be numbers from 1 on, each once; got {given}")
    if max(config.tokens) > BUCKETS[-1]:
        raise ValueError(f"passes are recorded of up to {BUCKETS[-1]} tokens; got {config.tokens}")
    if config.fork_tokens not in config.tokens:
        raise ValueError(f"fork_tokens={config.fork_tokens} is none of tokens={config.tokens}")
    if config.room < (most := max(config.tokens)):
        raise ValueError(f"an answer of {config.room} tokens has no room for a pass over {most}")


def _idle(arms: dict[str, LanguageModel], device: torch.device) -> dict[str, str]:
    """Arms whose passes were not all replayed, and why the others were not."""
    told = {}
    for name, arm in arms.items():
        if isinstance(arm, Captured) and (arm.unrecorded or not arm.replayed):
            whys = ", ".join(f"{count}: {why}" for why, count in arm.unrecorded.items())
            told[name] = f"{arm.replayed} passes were replayed, others not ({whys})"
    return told


def _held(device: torch.device, how: str = "memory_allocated") -> int | None:
    """Bytes that a GPU holds; None of a CPU, where nobody counts."""
    return int(getattr(torch.cuda, how)(device)) if device.type == "cuda" else None


def _forget(device: torch.device) -> None:
    """What is freed counts no longer, and the most that is held is counted from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
