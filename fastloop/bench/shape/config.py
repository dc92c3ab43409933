"""The structured configuration of `fastloop bench shape`; see `fastloop.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ShapeBenchConfig"]


@dataclass
class ShapeBenchConfig:
    """What passes of a Qwen2.5-VL of some size take: by the number of new tokens, over a context,
    and of branches that share it; as transformers makes them, as CUDA graphs, and in float8.

    The weights are random, so nothing is said of answers; what a plan would take is projected from
    counts of passes, and marked so.

    Attributes:
        arch: fields of transformers' ``Qwen2_5_VLConfig``; `text` and `vision` those of its parts.
        arms: of ``eager``, ``graphs``, ``compiled``, ``float8``, the first of them ``eager``.
        contexts: tokens of a prompt, pictures included.
        pictures: patches [rows, columns] of each picture of a prompt; four are a token.
        tokens: new ones of a pass.
        forks: branches of one prompt.
        fork_tokens: new ones of each branch in a pass; of a row, those of a projection.
        room: tokens that an answer takes.
        repeats: blocks of `block` passes that are timed, in turns.
        prompts: random ones over which logits are compared.
        bandwidth_mib: of the copy that measures the device's memory.
        forwards: passes of a plan, by where they were counted.
        dtype: of the weights; empty for bfloat16 on a GPU and float32 elsewhere.
        device, threads: as in `PolicyConfig`.
    """

    arch: dict[str, Any] = field(default_factory=dict)
    arms: list[str] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    pictures: list[list[int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    forks: list[int] = field(default_factory=list)
    fork_tokens: int = 32
    room: int = 404
    repeats: int = 20
    block: int = 10
    prompts: int = 4
    bandwidth_mib: int = 4096
    forwards: dict[str, float] = field(default_factory=dict)
    dtype: str = ""
    device: str = "best"
    threads: int = 1
    seed: int = 0
    run_dir: str | None = None
