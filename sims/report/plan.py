"""A cache plan as a picture: how alike the steps are, and where each branch is computed anew."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastloop.accel.block_cache.plan import CachePlan
from fastloop.sims.report.markup import Html, element, join

__all__ = ["render_plan"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1040px; padding: 0 1rem;
  background: #f6f7f9; color: #17202b; }
svg text { font-size: 12px; fill: #5d6876; }
.change { fill: #c2500a; } .update { fill: #0b72d0; } .idle { fill: #e9ecf0; }
@media (prefers-color-scheme: dark) {
  body { background: #10151c; color: #e6ebf1; } .idle { fill: #26303b; } svg text { fill: #97a3b2; }
  .update { fill: #58a6ff; } .change { fill: #f0883e; }
}
"""


def render_plan(plan: CachePlan, distance: NDArray[np.float64] | None) -> str:
    """One self-contained HTML page.

    Args:
        plan: drawn as a row a branch and a column a denoise step; dots are updates.
        distance: (N, K, K) as `Calibration.distance`; colors each step by how far the branch's
            value has moved from the step before, on a scale of its own for each branch.
    """
    made = plan.provenance
    facts = f"S = {made.budget}, n = {made.union}, {made.observations} observations"
    if made.stability is not None:
        facts += f", agreement of two halves {made.stability:.2f}"
    share = plan.reused / (plan.computed + plan.reused)
    body = [
        element("h1", f"Cache plan: {made.algorithm}"),
        element("p", f"{facts}. {share:.0%} of branch evaluations are reused."),
        _map(plan, distance),
        element("p", "Orange: how much a branch changes at a step. Blue dots: computed anew."),
    ]
    head = join([element("meta", charset="utf-8"), element("title", "Cache plan")])
    page = element("html", element("head", head, element("style", Html(STYLE))), *body, lang="en")
    return "<!doctype html>\n" + page


def _map(plan: CachePlan, distance: NDArray[np.float64] | None) -> Html:
    left, cell, row = 190, 800 / plan.steps, 18
    parts = []
    for n, (branch, updates) in enumerate(zip(plan.branches, plan.updates, strict=True)):
        top = n * row
        parts.append(element("text", branch.name, x=left - 8, y=top + 13, text_anchor="end"))
        parts.append(element("rect", x=left, y=top + 1, width=800, height=row - 2, class_="idle"))
        if distance is not None:
            moved = np.concatenate([[0.0], np.diagonal(distance[n], offset=1)])
            scale = moved.max() or 1.0
            parts += [
                element(
                    "rect", x=f"{left + k * cell:.2f}", y=top + 1, width=f"{cell:.2f}",
                    height=row - 2, class_="change", opacity=f"{value / scale:.2f}",
                )
                for k, value in enumerate(moved)
            ]  # fmt: skip
        parts += [
            element("circle", cx=f"{left + (k + 0.5) * cell:.2f}", cy=top + row / 2, r=3,
                    class_="update")
            for k in updates
        ]  # fmt: skip
    base = len(plan.branches) * row + 16
    for k in range(0, plan.steps, max(plan.steps // 10, 1)):
        parts.append(element("text", k + 1, x=f"{left + k * cell:.2f}", y=base))
    return element("svg", join(parts), viewBox=f"0 0 1000 {base + 10}", role="img",
                   aria_label="Updates of each branch by denoise step")  # fmt: skip
