"""What people see of a scoring run."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fastloop.datasets.benchmark import Metric
from fastloop.score.findings import Case, Coverage, ScoreFindings, metric_table
from fastloop.score.page import render_score
from fastloop.score.scene import draw


def metrics():
    return {
        "l2_uniad_1s": Metric(0.4, "m", 334, 0.3, 0.5),
        "l2_uniad_avg": Metric(1.0, "m", 404, 0.9, 1.1),
        "collision_uniad_1s": Metric(0.009, "fraction", 334, 0.0, 0.02),
        "rfs": Metric(float("nan"), "1", 0, float("nan"), float("nan")),
    }


def test_figures_stand_in_one_row_by_horizon():
    head, rows = metric_table(metrics())
    assert head == ["", "1s", "avg", "value", "unit", "n"]
    assert rows[0] == [
        "l2_uniad",
        "0.400 (0.30 to 0.50)",
        "1.000 (0.90 to 1.10)",
        "",
        "m",
        "334 to 404",
    ]
    assert rows[1][1] == "0.900 (0.00 to 2.00)"
    assert rows[1][-2:] == ["%", "334"]
    assert rows[2][3] == "-"


def test_what_is_missing_is_said():
    whole = Coverage(3, 3)
    assert whole.complete
    part = Coverage(9, 3, {f"s{k}": "torn" for k in range(6)}, ["shard 2 at byte 17"], ["x"])
    assert not part.complete
    told = "\n".join(part.sentences(most=2))
    for words in ("3 of 9", "s0: torn", "byte 17", "no sample scored here: x", "4 more"):
        assert words in told
    assert Coverage(3, 3, strangers=["of the same split, not scored"]).complete
    assert not Coverage(0, 0).complete


def test_a_scene_is_drawn_with_the_front_upwards(straight):
    benchmark = straight()
    plan = np.array([[2.0, 1.0], [4.0, 2.0], [6.0, 3.0], [8.0, 4.0]])
    svg = ElementTree.fromstring(draw(benchmark.moment("sample-3"), plan))
    marks = [
        (float(circle.get("cx")), float(circle.get("cy")))
        for group in svg.iter("g")
        if group.findtext("title") == "plan"
        for circle in group.iter("circle")
    ]
    assert marks == [(-y, -x) for x, y in plan]
    far = ElementTree.fromstring(draw(benchmark.moment("sample-3"), plan * [20, 1]))
    left, top, width, height = map(float, far.get("viewBox").split())
    assert (top, top + height) == pytest.approx((-168, 8))  # 160 m ahead, and the margins
    assert left + width / 2 == pytest.approx(-2)  # as wide, about the middle of the plan
    left, top, width, height = map(float, svg.get("viewBox").split())
    assert width == pytest.approx(height)
    assert all(left < x < left + width and top < y < top + height for x, y in marks)


def test_the_page_escapes_and_names_everything(straight):
    benchmark = straight()
    case = Case("sample-3", benchmark.truth("sample-3"), {"l2 2s": 7.0})
    found = ScoreFindings(
        "mine", benchmark.name, metrics(), {"sample set": "a & b"}, Coverage(2, 1), [case, case]
    )
    page = render_score(found, [benchmark.moment("sample-3"), None], {"seed": 0}, "a: 1")
    for words in ("&lt;sample-3&gt;", "a &amp; b", "1 of 2 samples", "l2 2s 7", "img-src"):
        assert words in page
    assert page.count("<svg") == 1
    assert "http://" not in page.replace("http://www.w3.org", "")
