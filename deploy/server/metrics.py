"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

__all__ = ["Metrics"]

BUCKETS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """Counts of one server. Only its event loop touches them.

    Attributes:
        answers: that were sent.
        errors: by kind.
        clients: that are connected now.
    """

    def __init__(self) -> None:
        self.answers = 0
        self.errors: Counter[str] = Counter()
        self.clients = 0
        self._seconds = 0.0
        self._within: Counter[float] = Counter()

    def answered(self, seconds: float) -> None:
        """An answer was sent, `seconds` after its request had come."""
        self.answers += 1
        self._seconds += seconds
        for bound in BUCKETS_MS:
            self._within[bound] += 1e3 * seconds <= bound

    def text(self, busy_s: float) -> str:
        """In Prometheus' text format.

        Args:
            busy_s: for how long the policy's call in progress has been running.
        """
        return "\n".join([*self._lines(busy_s), ""])

    def _lines(self, busy_s: float) -> Iterator[str]:
        yield "# TYPE fastloop_server_clients gauge"
        yield f"fastloop_server_clients {self.clients}"
        yield "# TYPE fastloop_server_plan_busy_seconds gauge"
        yield f"fastloop_server_plan_busy_seconds {busy_s:.6f}"
        yield "# TYPE fastloop_server_errors_total counter"
        for kind, count in sorted(self.errors.items()):
            yield f'fastloop_server_errors_total{{kind="{kind}"}} {count}'
        yield "# TYPE fastloop_server_answer_seconds histogram"
        name = "fastloop_server_answer_seconds"
        for bound in BUCKETS_MS:
            yield f'{name}_bucket{{le="{bound / 1e3:g}"}} {self._within[bound]}'
        yield f'{name}_bucket{{le="+Inf"}} {self.answers}'
        yield f"{name}_sum {self._seconds:.6f}"
        yield f"{name}_count {self.answers}"
