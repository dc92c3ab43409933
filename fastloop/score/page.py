"""A scoring run as one HTML file that needs nothing but a browser."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from fastloop.datasets.benchmark import Moment
from fastloop.score.findings import Case, ScoreFindings, metric_table
from fastloop.score.scene import draw, legend
from fastloop.sims.report.markup import Html, element, table
from fastloop.sims.report.page import fill_page, legend_key, provenance_section

__all__ = ["render_score"]


def render_score(
    found: ScoreFindings, moments: Sequence[Moment | None], facts: Mapping[str, Any], config: str
) -> str:
    """The whole page.

    Args:
        found: what was found.
        moments: the worst cases in their order; None where one cannot be shown.
        facts: of the run, for its provenance.
        config: the configuration as YAML.
    """
    title = f"{found.planner} on {found.benchmark}"
    head, rows = metric_table(found.metrics)
    conditions = [[name, told] for name, told in found.conditions.items()]
    return fill_page(
        title,
        [
            element("header", element("p", "fastloop score", class_="eyebrow"),
                    element("h1", title)),
            _coverage(found),
            element("section", element("h2", "Scores, with 95% intervals"), table(head, rows)),
            element("section", element("h2", "What these figures are"),
                    element("div", table([], conditions), class_="facts")),
            _worst(found.worst, moments),
            provenance_section(facts, config),
        ],
    )  # fmt: skip


def _coverage(found: ScoreFindings) -> Html:
    told = [element("p", sentence) for sentence in found.coverage.sentences()]
    return element("section", *told, class_=None if found.coverage.complete else "warning")


def _worst(cases: Sequence[Case], moments: Sequence[Moment | None]) -> Html:
    if not cases:
        return Html()
    colors = element(
        "div", *(legend_key(series, name) for name, series in legend().items()), class_="legend"
    )
    drawn = [
        _case(case, moment)
        for case, moment in zip(cases, moments, strict=True)
        if moment is not None
    ]
    return element(
        "section", element("h2", "The worst cases"), colors,
        element("div", *drawn, class_="rollouts"),
    )  # fmt: skip


def _case(case: Case, moment: Moment) -> Html:
    figures = ", ".join(f"{name} {value:.3g}" for name, value in case.figures.items())
    camera = Html()
    if moment.image:
        source = "data:image/jpeg;base64," + base64.b64encode(moment.image).decode()
        camera = element("img", src=source, alt="front camera", loading="lazy")
    return element(
        "figure", element("h3", moment.title), camera, draw(moment, case.plan),
        element("figcaption", f"{case.key}: {figures}"), class_="rollout",
    )  # fmt: skip
