"""What all ways of decoding have in common."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Choice
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.result import Decoded, Exactness

__all__ = ["Driver", "Unconditional"]


class Driver(Protocol):
    """A way of decoding: a frozen dataclass, without state.

    Attributes:
        name: in reports; ``none`` for token by token.
        exactness: what its answers equal.
        regimes: of the models that it is right for.
        refusal: why not for others; "" where `compose` knows the reason.
        shifts: `ModelSpec.logit_shift` that it can read.
        choice: which token stands in a slot.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    regimes: ClassVar[frozenset[Regime]]
    refusal: ClassVar[str]

    @property
    def exactness(self) -> Exactness:
        """See above."""
        ...

    @property
    def shifts(self) -> frozenset[int]:
        """See above."""
        ...

    @property
    def name(self) -> str:
        """See above."""
        ...

    @property
    def choice(self) -> Choice:
        """See above."""
        ...

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """Refuse a model or a canvas that it is not made for; without a single pass.

        Args:
            model: of one of its regimes.
            canvas: None where it is not known yet.

        Raises:
            ValueError: with the reason.
        """
        ...

    def decode(
        self,
        model: LanguageModel,
        context: Context,
        canvas: Canvas,
        *,
        continued: bool = True,
        debug: bool = False,
    ) -> Decoded:
        """Fill a canvas for all B rows of a context.

        Args:
            model: that made the context.
            context: changed in place. Afterwards it has read the whole answer, and its logits
                speak of what comes next, if `continued`.
            canvas: the same for all rows.
            continued: whether somebody reads on from the context. Where nobody does, passes that
                would only keep the last tokens are left out.
            debug: check that what is kept was read from the tokens that stand.

        Returns:
            the answer; times and counts are of this call.
        """
        ...


class Unconditional:
    """Of drivers that take every model of their regimes, and every canvas."""

    refusal: ClassVar[str] = ""

    def check(self, model: LanguageModel, canvas: Canvas | None) -> None:
        """See `Driver`: there is nothing to refuse."""
