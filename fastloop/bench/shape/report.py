"""The findings as metrics and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastloop.bench.report import Table
from fastloop.bench.shape.config import ShapeBenchConfig
from fastloop.bench.shape.measure import Cell, Found
from fastloop.sims.report.text import milliseconds, percent

__all__ = ["metrics", "projected", "tables"]


def projected(found: Found, config: ShapeBenchConfig) -> dict[tuple[str, str], float]:
    """Milliseconds that plans would take, by arm and by whose count of passes: prefill, and each
    pass as long as one over `fork_tokens` tokens after the first context. Not measured."""
    context = config.contexts[0]
    return {
        (name, whose): found.prefill_ms[name, context] + count * cell.queued_ms
        for (name, tokens, new), cell in found.passes.items()
        if (tokens, new) == (context, config.fork_tokens)
        for whose, count in config.forwards.items()
    }


def metrics(
    found: Found, bandwidth: float, memory: Mapping[str, int | None], config: ShapeBenchConfig
) -> dict[str, dict[str, Any]]:
    """Name to value, unit and n.

    Args:
        found: what was measured.
        bandwidth: of the device, bytes a second.
        memory: of a GPU, in bytes, by when it was looked at.
        config: of the run.
    """
    made: dict[str, dict[str, Any]] = {"bandwidth": {"value": bandwidth / 1e9, "unit": "GB/s"}}
    for what, size in memory.items():
        made[f"memory_{what}"] = {"value": size, "unit": "byte"}
    for name, error in found.errors.items():
        made[f"logit_error_{name}"] = {"value": error, "unit": "1", "n": config.prompts}
        made[f"agreement_{name}"] = {"value": found.agreement[name], "unit": "1"}
    for kind, cells in (("forward", found.passes), ("branches", found.branches)):
        for (name, context, count), cell in cells.items():
            end = f"{name}_{context}_{count}"
            ms = {"unit": "ms", "n": cell.n}
            made[f"{kind}_ms_{end}"] = {"value": cell.queued_ms, **ms}
            made[f"{kind}_waited_ms_{end}"] = {"value": cell.waited_ms, **ms}
            made[f"{kind}_bytes_{end}"] = {"value": cell.bytes, "unit": "byte"}
            made[f"{kind}_bandwidth_share_{end}"] = {"value": _share(cell, bandwidth), "unit": "1"}
    for (name, context), ms in found.prefill_ms.items():
        made[f"prefill_ms_{name}_{context}"] = {"value": ms, "unit": "ms", "n": config.repeats}
    for (name, context, count), ms in found.fork_ms.items():
        made[f"fork_ms_{name}_{context}_{count}"] = {
            "value": ms, "unit": "ms", "n": config.repeats,
        }  # fmt: skip
    for context, size in found.kept_bytes.items():
        made[f"kept_bytes_{context}"] = {"value": size, "unit": "byte"}
    for what, sizes in (("fork", found.fork_bytes), ("fork_reserved", found.reserved_bytes)):
        for (context, count), size in sizes.items():
            made[f"{what}_bytes_{context}_{count}"] = {"value": size, "unit": "byte"}
    for (name, whose), ms in projected(found, config).items():
        made[f"projection_plan_ms_{name}_{whose}"] = {"value": ms, "unit": "ms (projection)"}
    return made


def tables(found: Found, bandwidth: float, config: ShapeBenchConfig) -> list[Table]:
    """What people read."""
    names = list(dict.fromkeys(name for name, _, _ in found.passes))
    made = [
        Table(
            "Logits beside those of the same weights in a wider dtype, over random prompts",
            ("arm", "relative error", "same likeliest token"),
            [[name, f"{error:.2g}", percent(found.agreement[name])]
             for name, error in found.errors.items()],
        )
    ]  # fmt: skip
    for context in config.contexts:
        cells = {new: f"{new} new" for new in config.tokens}
        made.append(
            Table(
                f"A pass after {context} tokens: queued up, and waited for",
                ("arm", *cells.values()),
                [[name, *(_times(found.passes[name, context, new]) for new in cells)]
                 for name in names],
            )
        )  # fmt: skip
        made.append(
            Table(
                f"Share of {bandwidth / 1e9:.4g} GB/s, a copy's, that it comes to",
                ("arm", *cells.values()),
                [[name, *(percent(_share(found.passes[name, context, new], bandwidth))
                          for new in cells)] for name in names],
            )
        )  # fmt: skip
        made.append(
            Table(
                f"{context} tokens: prefill, and branches of {config.fork_tokens} new tokens",
                ("arm", "prefill", *(f"fork {n}, a pass of {n}" for n in config.forks)),
                [_branches(name, context, found, config.forks) for name in names],
            )
        )
        rows = [
            [str(count), _mib(found.kept_bytes[context]), _mib(found.fork_bytes[context, count]),
             _mib(found.reserved_bytes.get((context, count))),
             _mib((count - 1) * found.kept_bytes[context])]
            for count in config.forks
        ]  # fmt: skip
        head = ("branches", "the row", "all branches add", "set aside for them", "copies would add")
        made.append(Table(f"Keys and values after {context} tokens, MiB", head, rows))
    plans = projected(found, config)
    made.append(
        Table(
            f"PROJECTION, not measured: a plan of so many passes over {config.fork_tokens} tokens",
            ("whose count", "passes", *names),
            [[whose, f"{count:g}", *(milliseconds(plans[name, whose]) for name in names)]
             for whose, count in config.forwards.items()],
        )
    )  # fmt: skip
    return [table for table in made if table.rows]


def _branches(name: str, context: int, found: Found, forks: Sequence[int]) -> list[str]:
    return [
        name, milliseconds(found.prefill_ms[name, context]),
        *(f"{milliseconds(found.fork_ms[name, context, count])}, "
          f"{milliseconds(found.branches[name, context, count].queued_ms)}" for count in forks),
    ]  # fmt: skip


def _share(cell: Cell, bandwidth: float) -> float:
    """Of the device's bandwidth."""
    return cell.bytes / (1e-3 * cell.queued_ms) / bandwidth


def _times(cell: Cell) -> str:
    return f"{cell.queued_ms:.3g}, {cell.waited_ms:.3g} ms"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.3g}"
