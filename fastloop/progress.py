"""Progress bars for long work, on a terminal and in a log file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["bar"]

Advance = Callable[[int, str], None]


@contextmanager
def bar(title: str, total: int, console: Console) -> Iterator[Advance]:
    """A progress bar for the block; yields a function that takes (done, note).

    Where there is no terminal, a line is printed whenever another tenth is done.
    """
    if not console.is_terminal:
        yield _lines(title, total, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


def _lines(title: str, total: int, console: Console) -> Advance:
    printed = -1

    def advance(done: int, note: str) -> None:
        nonlocal printed
        tenth = 10 * done // max(total, 1)
        if tenth > printed:
            printed = tenth
            console.print(f"{title}: {done}/{total} {note}", markup=False)

    return advance
