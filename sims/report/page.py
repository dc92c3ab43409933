"""What every page shares: its frame, the colors of its series, and where its figures come from."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from fastloop.sims.report.markup import Html, element, join, table

__all__ = ["SERIES", "fill_page", "legend_key", "provenance_section"]

SERIES = 5  # colors that the page defines


def fill_page(title: str, sections: Iterable[Html], script: str = "") -> str:
    """A page that loads nothing from anywhere and runs nothing but `script`."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=join([title]),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; media-src data: file: 'self'; "
        "img-src data:; "
        f"script-src 'sha256-{digest}'",
        body=join(sections),
        script=script,
    )


def legend_key(series: int, name: str) -> Html:
    """`name` behind the color of its series."""
    return element("span", element("span", class_=f"key s{series % SERIES}"), name)


def provenance_section(facts: Mapping[str, Any], config: str) -> Html:
    """Where and with what a run was made; empty without facts and configuration."""
    parts: list[Html] = [element("h2", "Provenance")]
    if facts:
        rows = [[name, _plain(value)] for name, value in facts.items()]
        title = element("summary", "Versions, hardware, checkpoint")
        parts.append(element("details", title, table([], rows), class_="facts"))
    if config:
        parts.append(
            element("details", element("summary", "Configuration"), element("pre", config))
        )
    return element("section", *parts) if len(parts) > 1 else Html()


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
