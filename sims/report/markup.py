"""HTML and SVG elements whose text and attributes are always escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["Html", "element", "join", "table"]


class Html(str):
    """Text that is markup already; every other string is escaped where it is placed."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Html:
    """Build ``<name attributes>children</name>``.

    Args:
        name: tag name.
        children: markup where it is `Html`, else text to be escaped.
        attributes: ``class_`` is class, ``stroke_width`` is stroke-width, True has no value, and
            None or False leaves the attribute out.
    """
    written = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written += " " + key.rstrip("_").replace("_", "-")
        written += "" if value is True else f'="{html.escape(str(value))}"'
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Concatenate children, escaping those that are not `Html`."""
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children))


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> Html:
    """A table in a box that scrolls sideways on narrow screens; the first column names the row.

    Without a `head` it has no header line.
    """
    cells = [element("th", cell, scope="col") for cell in head]
    body = []
    for row in rows:
        first, *rest = row
        named = element("th", first, scope="row")
        body.append(element("tr", named, *(element("td", cell) for cell in rest)))
    header = element("thead", element("tr", *cells)) if cells else Html()
    return element("div", element("table", header, element("tbody", *body)), class_="scroll")
