"""One network, all arms: how far off they are, and how long passes take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.fixed import FixedKV
from fastloop.accel.decoding.model import LanguageModel
from fastloop.accel.graph import recording
from fastloop.bench.shape.arms import EAGER, EXACT, widened
from fastloop.bench.shape.config import ShapeBenchConfig
from fastloop.bench.shape.network import random_prompt
from fastloop.bench.shape.passes import Pass, time_in_turns
from fastloop.bench.shape.work import pass_bytes
from fastloop.policies.vla.qwen25vl import Qwen25VL

__all__ = ["Cell", "Found", "measure_context", "measure_errors"]

LEAST = 1e-10  # of an error that is no rounding of the network's dtype


@dataclass(frozen=True)
class Cell:
    """Passes of one arm over one context.

    Attributes:
        queued_ms, waited_ms: medians of a pass, in blocks that queue up, and waited for singly.
        n: blocks.
        bytes: the fewest that it reads.
    """

    queued_ms: float
    waited_ms: float
    n: int
    bytes: int


@dataclass
class Found:
    """What was measured.

    Attributes:
        errors: of each arm's logits, relative to those of the wider network.
        agreement: share of tokens whose likeliest successor is that of the wider network.
        passes: by arm, context and new tokens.
        branches: by arm, context and number of branches.
        prefill_ms, fork_ms: medians, by arm and context, and number of branches.
        kept_bytes: by context: keys and values of a row.
        fork_bytes, reserved_bytes: by context and branches: what all branches add to that, and
            what is set aside for them at fixed addresses.
    """

    errors: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    passes: dict[tuple[str, int, int], Cell] = field(default_factory=dict)
    branches: dict[tuple[str, int, int], Cell] = field(default_factory=dict)
    prefill_ms: dict[tuple[str, int], float] = field(default_factory=dict)
    fork_ms: dict[tuple[str, int, int], float] = field(default_factory=dict)
    kept_bytes: dict[int, int] = field(default_factory=dict)
    fork_bytes: dict[tuple[int, int], int] = field(default_factory=dict)
    reserved_bytes: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """Arms that should be right but for rounding, and are off by more than twice as much as
        transformers' own passes."""
        most = 2 * self.errors[EAGER] + LEAST
        return [name for name in EXACT if name in self.errors and not self.errors[name] <= most]


def measure_errors(
    found: Found, arms: Mapping[str, LanguageModel], model: Qwen25VL, config: ShapeBenchConfig
) -> None:
    """How far logits of a row, and of branches, are from those of the wider network."""
    told = {name: _logits(arm, model, config) for name, arm in arms.items()}
    expected = _logits(widened(model), model, config)
    for name, logits in told.items():
        pairs = list(zip(logits, expected, strict=True))
        found.errors[name] = max(
            float((one.to(right.dtype) - right).norm() / right.norm()) for one, right in pairs
        )
        same = [(one.argmax(-1) == right.argmax(-1)).double().mean() for one, right in pairs]
        found.agreement[name] = float(sum(same) / len(same))


def _logits(arm: LanguageModel, model: Qwen25VL, config: ShapeBenchConfig) -> list[torch.Tensor]:
    """Of every prompt, of a row and then of as many branches as are asked for first."""
    said = []
    for index in range(config.prompts):
        seed = config.seed + index
        prompt = random_prompt(model, config.contexts[0], config.pictures, seed)
        context = arm.prefill([prompt], room=config.room)
        contexts = [context, *(context.fork(count) for count in config.forks[:1])]
        with recording():
            said += [Pass(arm, one, config.fork_tokens, seed)() for one in contexts]
    return said


def measure_context(
    found: Found,
    arms: Mapping[str, LanguageModel],
    model: Qwen25VL,
    config: ShapeBenchConfig,
    tokens: int,
    told: Callable[[str], None],
) -> None:
    """Times of prefill, of passes by new tokens, and of forks, over a context of so many tokens.

    Args:
        found: is filled in.
        arms: that are to be timed.
        model: that they are made of.
        config: what else to measure.
        tokens: of the prompt.
        told: hears what is being timed.
    """
    prompt = random_prompt(model, tokens, config.pictures, config.seed)
    reads = {name: partial(arm.prefill, [prompt], room=config.room) for name, arm in arms.items()}
    contexts = {name: read() for name, read in reads.items()}
    found.kept_bytes[tokens] = contexts[EAGER].kv.bytes
    told("prefill")
    for name, (_, spent) in time_in_turns(reads, config.repeats, 1, model.device).items():
        found.prefill_ms[name, tokens] = median(spent)
    for new in config.tokens:
        told(f"passes over {new} new ones")
        for name, cell in _cells(arms, contexts, new, model, config).items():
            found.passes[name, tokens, new] = cell
    for count in config.forks:
        told(f"{count} branches")
        forks = {name: partial(context.fork, count) for name, context in contexts.items()}
        branches = {name: fork() for name, fork in forks.items()}
        for fork in forks.values():
            fork()  # whatever is set aside for them is there from here on
        for name, (_, spent) in time_in_turns(forks, config.repeats, 1, model.device).items():
            found.fork_ms[name, tokens, count] = median(spent)
        for name, cell in _cells(arms, branches, config.fork_tokens, model, config).items():
            found.branches[name, tokens, count] = cell
        held = _held(arms[EAGER], branches[EAGER], config.fork_tokens)
        found.fork_bytes[tokens, count] = held - found.kept_bytes[tokens]
        for branch in branches.values():
            if isinstance(branch.kv, FixedKV) and branch.kv.buffers is not None:
                found.reserved_bytes[tokens, count] = branch.kv.buffers.bytes


def _cells(
    arms: Mapping[str, LanguageModel],
    contexts: Mapping[str, Context],
    new: int,
    model: Qwen25VL,
    config: ShapeBenchConfig,
) -> dict[str, Cell]:
    """Passes of every arm over so many new tokens of each row of its context."""
    passes = {name: Pass(arm, contexts[name], new) for name, arm in arms.items()}
    for one in passes.values():
        one.prepare()
    timed = time_in_turns(passes, config.repeats, config.block, model.device)
    return {
        name: Cell(
            median(queued), median(waited), len(queued),
            pass_bytes(name, model, contexts[name].kv),
        )
        for name, (queued, waited) in timed.items()
    }  # fmt: skip


def _held(model: LanguageModel, context: Context, new: int) -> int:
    """Bytes of keys and values, so many new tokens of each row included."""
    one = Pass(model, context, new)
    model.forward(one.ids, positions=one.positions, mask=one.mask, kv=context.kv)
    held = context.kv.bytes
    context.kv.crop(new)
    return held
