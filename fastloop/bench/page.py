"""A bench as one HTML file that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastloop.bench.findings import ArmFindings
from fastloop.bench.picture import GROUPS, KNOWN, speed_over_error, time_bars
from fastloop.bench.report import CAPTION, Table, stage_table, tables
from fastloop.sims.report.markup import Html, element, table
from fastloop.sims.report.page import fill_page, legend_key, provenance_section

__all__ = ["render_bench"]


def render_bench(
    arms: Sequence[ArmFindings], unit: str, about: str, facts: Mapping[str, Any], config: str
) -> str:
    """The whole page.

    Args:
        arms: the policy as published first.
        unit: of the environment's actions.
        about: what was measured, in a few words.
        facts: of the run, for its provenance.
        config: the configuration as YAML.
    """
    title = f"Denoising sooner: {about}"
    red = [arm for arm in arms if arm.refused]
    shown = [arm for arm in arms if arm.shown_speedup and arm.error]
    watched = [arm for arm in arms if arm.stages_ms]
    first, *others = map(_table, tables(arms, unit))
    return fill_page(
        title,
        [
            element("header", element("p", "fastloop bench denoise", class_="eyebrow"),
                    element("h1", title), element("p", CAPTION)),
            *(_warning(arm) for arm in red),
            _figure("Speed over action error", KNOWN, speed_over_error(shown)) if shown else Html(),
            first,
            _figure("Where the time of a plan goes", GROUPS, time_bars(watched)),
            _table(stage_table(watched)),
            *others,
            provenance_section(facts, config),
        ],
    )  # fmt: skip


def _table(found: Table) -> Html:
    return element("section", element("h2", found.title), table(found.head, found.rows))


def _warning(arm: ArmFindings) -> Html:
    told = f"{arm.name}: {arm.refused}; no speed-up is claimed."
    return element("section", element("p", told), class_="warning")


def _figure(title: str, colors: Mapping[str, int], picture: Html) -> Html:
    legend = element("div", *(legend_key(n, name) for name, n in colors.items()), class_="legend")
    return element("section", element("h2", title), legend, picture)
