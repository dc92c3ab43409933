"""The bench as one HTML file that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastloop.bench.decode.findings import DecodeFindings
from fastloop.bench.decode.picture import GROUPS, accepted_bars, time_bars
from fastloop.bench.decode.report import CAPTION
from fastloop.bench.report import Table
from fastloop.sims.report.markup import Html, element, join, table
from fastloop.sims.report.page import fill_page, legend_key, provenance_section

__all__ = ["render_decode_bench"]


def render_decode_bench(
    arms: Sequence[DecodeFindings],
    found: Sequence[Table],
    about: str,
    facts: Mapping[str, Any],
    config: str,
) -> str:
    """The whole page.

    Args:
        arms: plain token by token first.
        found: all tables; the first goes before the pictures.
        about: what was measured, in a few words.
        facts: of the run, for its provenance.
        config: the configuration as YAML.
    """
    title = f"Decoding sooner: {about}"
    timed = [one for one in arms if one.timed and not one.refused]
    drafting = [one for one in arms if one.work.cycles]
    legend = element("div", *(legend_key(n, name) for name, n in GROUPS.items()), class_="legend")
    note = element("p", "Share of cycles by the slots that they accepted, given ones included; the "
                   "tallest bar of each arm is of one height.", class_="note")  # fmt: skip
    first, *others = map(_table, found)
    return fill_page(
        title,
        [
            element("header", element("p", "fastloop bench decode", class_="eyebrow"),
                    element("h1", title), element("p", CAPTION)),
            *(_warning(one) for one in arms if one.refused),
            first,
            _figure("Where the time of a plan goes", legend, time_bars(timed)) if timed else Html(),
            _figure("Accepted a cycle", accepted_bars(drafting), note) if drafting else Html(),
            *others,
            provenance_section(facts, config),
        ],
    )  # fmt: skip


def _table(found: Table) -> Html:
    return element("section", element("h2", found.title), table(found.head, found.rows))


def _warning(one: DecodeFindings) -> Html:
    red = [gate for gate in one.gates if not gate.holds]
    told = ", ".join(f"{gate.name} ({gate.wrong} of {gate.compared})" for gate in red)
    sentence = f"{one.name}: {one.refused}: {told}; no speed-up is claimed."
    return element("section", element("p", sentence), class_="warning")


def _figure(title: str, *parts: Html) -> Html:
    return element("section", element("h2", title), join(parts))
