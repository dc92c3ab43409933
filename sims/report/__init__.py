"""Shows what a run found: tables in the terminal, one HTML page, and JSON for scripts."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from fastloop.sims.findings import result_json
from fastloop.sims.report.console import print_report
from fastloop.sims.report.html import render_html
from fastloop.sims.summary import RunSummary

__all__ = ["print_report", "render_html", "write_report"]


def write_report(summary: RunSummary, folder: Path, console: Console | None = None) -> Path:
    """Write ``result.json``, ``summary.json`` and ``report.html``, and print the tables.

    Args:
        summary: what the run left behind; video paths are relative to `folder`.
        folder: made when it is not there.
        console: prints there when given.

    Returns:
        The path of the HTML page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The observations first: whatever happens after this, nothing measured is lost.
    (folder / "summary.json").write_text(summary.to_json(), encoding="utf-8")
    result = json.dumps(result_json(summary), indent=2, default=str)
    (folder / "result.json").write_text(result + "\n", encoding="utf-8")
    if console:
        print_report(summary, console)
    page = folder / "report.html"
    page.write_text(render_html(summary, folder), encoding="utf-8")
    return page
