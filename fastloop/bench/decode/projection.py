"""What a plan would take at another time of a pass; nothing of it was measured."""

from __future__ import annotations

from collections.abc import Sequence

from fastloop.bench.config import ProjectionConfig
from fastloop.bench.decode.findings import DecodeFindings
from fastloop.bench.report import Table
from fastloop.sims.report.text import milliseconds

__all__ = ["projections"]


def projections(arms: Sequence[DecodeFindings], config: ProjectionConfig) -> Table | None:
    """Milliseconds of a plan by the passes that were counted here, and by published ones; None
    where no time of a pass is given."""
    if config.ms_per_forward is None:
        return None
    counted = {one.name: (one.work.forwards.value, "counted here") for one in arms}
    counted |= {name: (count, "given") for name, count in config.forwards.items()}
    rows = [
        [name, f"{count:.4g}", how, milliseconds(config.prefill_ms + count * config.ms_per_forward)]
        for name, (count, how) in counted.items()
        if not any(one.refused for one in arms if one.name == name)
    ]
    title = (
        f"PROJECTION, not measured: {config.prefill_ms:g} ms and {config.ms_per_forward:g} ms a "
        "forward"
    )
    return Table(title, ("what", "forwards", "whose count", "a plan"), rows)
