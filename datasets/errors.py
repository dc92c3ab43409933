"""What goes wrong with data, and how a reader goes on beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["DatasetError", "OnFault", "os_errors_are_faults", "raise_fault"]


class DatasetError(ValueError):
    """A file of a data set is missing, damaged, hostile or of another layout."""


OnFault = Callable[[DatasetError], None]
"""What a reader does with a record that it cannot read: raise (the default), or note and go on."""


def raise_fault(fault: DatasetError) -> None:
    """The default `OnFault`: nothing is passed over in silence."""
    raise fault


@contextmanager
def os_errors_are_faults() -> Iterator[None]:
    """Around what looks at files, or above a function that does: a file or folder that cannot be
    read, for instance for want of a permission, becomes a fault that names it."""
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{error.filename} cannot be read ({error.strerror})") from error
