"""The node's health for Prometheus, over HTTP on this computer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastloop.deploy.health.histogram import BOUNDS
from fastloop.deploy.health.status import health_of
from fastloop.extras import require

if TYPE_CHECKING:
    from fastloop.deploy.node import Node

__all__ = ["serve_metrics"]


def serve_metrics(node: Node, port: int, *, host: str = "127.0.0.1") -> Callable[[], None]:
    """Answer ``http://host:port/metrics`` in a thread.

    Returns:
        what ends it.

    Raises:
        OSError: the port is taken.
        MissingExtraError: without ``prometheus-client``.
    """
    client = require("prometheus_client", extra="ros")
    registry = client.CollectorRegistry()
    registry.register(_Collector(node))
    server, thread = client.start_http_server(port, addr=host, registry=registry)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


class _Collector:
    def __init__(self, node: Node) -> None:
        self.node = node

    def collect(self) -> Iterator[Any]:
        core = require("prometheus_client.core", extra="ros")
        level = core.GaugeMetricFamily("fastloop_level", "0 ok, 1 warning, 2 error")
        level.add_metric([], health_of(self.node).level)
        yield level
        loop = self.node.loop
        if loop is None:
            return
        rungs = core.CounterMetricFamily("fastloop_ticks", "messages by rung", labels=["rung"])
        for rung in range(4):
            rungs.add_metric([str(rung)], loop.rungs[rung])
        yield rungs
        events = core.CounterMetricFamily("fastloop_events", "what was counted", labels=["event"])
        for event, count in sorted(dict(loop.counts).items()):
            events.add_metric([event], count)
        yield events
        messages = core.CounterMetricFamily(
            "fastloop_messages", "messages that came", labels=["topic", "verdict"]
        )
        for labels, count in sorted(dict(loop.inputs.counts).items()):
            messages.add_metric(list(labels), count)
        yield messages
        ages = core.GaugeMetricFamily(
            "fastloop_input_age_seconds", "of the newest message", labels=["topic"]
        )
        for topic, age in loop.inputs.ages().items():
            ages.add_metric([topic], age)
        yield ages
        stages = core.HistogramMetricFamily(
            "fastloop_stage_seconds", "where the time goes", labels=["stage"]
        )
        for stage, histogram in loop.stages.histograms.items():
            below, buckets = 0, []
            for bound, count in zip(BOUNDS, histogram.counts, strict=False):
                below += count
                buckets.append((f"{bound:.3e}", below))
            buckets.append(("+Inf", histogram.count))
            stages.add_metric([stage], buckets, sum_value=histogram.total)
        yield stages
