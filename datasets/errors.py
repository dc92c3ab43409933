"""What goes wrong with data, and how a reader goes on beside it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["DatasetError", "OnFault", "raise_fault"]


class DatasetError(ValueError):
    """A file of a data set is missing, damaged, hostile or of another layout."""


OnFault = Callable[[DatasetError], None]
"""What a reader does with a record that it cannot read: raise (the default), or note and go on."""


def raise_fault(fault: DatasetError) -> None:
    """The default `OnFault`: nothing is passed over in silence."""
    raise fault
