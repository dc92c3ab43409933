"""How one of several candidates is chosen.

Those in `SELECTORS` need nothing but the policy, and are known by name; `Contrast`, `Density`,
`Feasible` and `Weighted` are put together in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastloop.policies.selectors.base import Candidates, Scores, Selection, Selector, select
from fastloop.policies.selectors.coherence import Coherence
from fastloop.policies.selectors.contrast import Contrast
from fastloop.policies.selectors.density import Density
from fastloop.policies.selectors.feasible import Feasible
from fastloop.policies.selectors.medoid import Medoid
from fastloop.policies.selectors.past import PastConsistency
from fastloop.policies.selectors.weighted import Weighted

__all__ = [
    "SELECTORS",
    "Candidates",
    "Coherence",
    "Contrast",
    "Density",
    "Feasible",
    "Medoid",
    "PastConsistency",
    "Scores",
    "Selection",
    "Selector",
    "Weighted",
    "make_selector",
    "select",
]

SELECTORS: Mapping[str, Callable[[], Selector]] = {
    "past": PastConsistency,
    "past_partial": lambda: PastConsistency(warm_up="partial"),
    "coherence": Coherence,
    "medoid": Medoid,
}


def make_selector(name: str) -> Selector:
    """A selector as published, by name.

    Raises:
        ValueError: for an unknown name; all are listed.
    """
    if name not in SELECTORS:
        raise ValueError(f"unknown selector {name!r}; choose one of {', '.join(SELECTORS)}")
    return SELECTORS[name]()
