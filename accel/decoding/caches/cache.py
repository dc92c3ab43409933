"""What a cache of keys and values decides before each pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from fastloop.accel.decoding.caches.progress import Progress

__all__ = ["Cache", "Plan"]


@dataclass(frozen=True)
class Plan:
    """A pass, for B rows over N slots.

    Attributes:
        queried: (B, N) bool, slots that are read anew; their keys and values are kept.
        seen: (B, N) bool, slots whose keys are looked at, with those queried; None for all.
        writable: (B, N) bool, slots of the window that may be written afterwards; None for all.
    """

    queried: torch.Tensor
    seen: torch.Tensor | None = None
    writable: torch.Tensor | None = None


class Cache(Protocol):
    """Which keys and values of an answer are kept from pass to pass: a pure function.

    In models that see all slots at once no key stays right when a token is written, so all of
    these are approximations but for the one that keeps nothing. Two things hold for each of them:
    the first pass is over everything, and a slot that was written is read once more before its key
    is seen. So in a model of one layer, where a key depends on its own token only, all are exact.

    Attributes:
        name: in reports.
        exact: whether answers equal those with nothing kept.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    exact: ClassVar[bool]

    def __call__(self, progress: Progress) -> Plan:
        """What the next pass is over."""
        ...
