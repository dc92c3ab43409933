"""What Prometheus reads of a server."""

import pytest

from fastloop.deploy.server.metrics import Metrics


@pytest.mark.parametrize(("bound", "count"), [("0.001", 0), ("0.005", 1), ("0.05", 2), ("+Inf", 3)])
def test_a_bucket_counts_all_answers_up_to_its_bound(bound, count):
    metrics = Metrics()
    for seconds in (0.003, 0.05, 9.0):
        metrics.answered(seconds)
    told = metrics.text(0.0).splitlines()
    assert f'fastloop_server_answer_seconds_bucket{{le="{bound}"}} {count}' in told
    assert "fastloop_server_answer_seconds_count 3" in told
