"""What a run's report says, and that it says it safely and offline."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fastloop.accel.report import AccelReport
from fastloop.sims.findings import analyze, result_json
from fastloop.sims.predictability import moments_of
from fastloop.sims.report import print_report, render_html, rollouts, write_report
from fastloop.sims.summary import Arm, Episode, PlanMask, RunSummary, Video

VOID = {"meta", "br", "img", "input", "link", "hr"}


def episodes(wins: int, n: int, task: str = "pusht") -> list[Episode]:
    return [Episode(task, i, "success" if i < wins else "timeout") for i in range(n)]


def arm(name: str, wins: int, ms: float, n: int = 100, **more) -> Arm:
    jitter = np.random.default_rng(0).uniform(0.9, 1.1, 40)
    return Arm(name, episodes(wins, n), [9 * ms, *(ms * jitter)], [True] + [False] * 40, **more)


@pytest.fixture
def summary() -> RunSummary:
    report = AccelReport(
        "bac", exact=False, plans=40, computed=400, reused=3600, stage_ms={"denoise": 400.0}
    )
    return RunSummary(
        verb="eval",
        arms=[
            arm("plain", 80, 30.0),
            arm(
                "bac",
                79,
                10.0,
                accel=vars(report),
                plan=PlanMask(["0.sa", "0.ffn"], [[True, True], [False, True], [False, False]]),
            ),
        ],
        planned=[("pusht", i) for i in range(100)],
        interleaved_ms={"plain": [30.0, 31.0, 60.0], "bac": [10.0, 10.0, 20.0]},
        provenance={"torch": "2.13.0", "threads": 1},
        config="accel:\n  name: bac\n",
    )


class Page(HTMLParser):
    """Checks nesting, and collects what the page loads and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in {"src", "href", "poster", "srcset", "data"}]
        assert not any(k.startswith("on") for k, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text += data + "\n"


def printed(summary: RunSummary) -> str:
    out = io.StringIO()
    print_report(summary, Console(file=out, width=200))
    return out.getvalue()


def test_result_has_the_metrics_that_scripts_read(summary):
    result = json.loads(json.dumps(result_json(summary), allow_nan=False))
    assert set(result) == {"schema", "verb", "config", "provenance", "metrics", "coverage"}
    assert (result["schema"], result["verb"]) == (1, "eval")
    assert result["config"] == {"accel": {"name": "bac"}}
    metrics = result["metrics"]
    for metric in metrics.values():
        assert set(metric) == {"value", "unit", "n", "low", "high"}
    assert metrics["success_difference"]["value"] == pytest.approx(-0.01)
    assert metrics["success_difference"]["n"] == 100
    assert metrics["success_difference"]["low"] < -0.01 < metrics["success_difference"]["high"]
    assert metrics["speedup"]["value"] == pytest.approx(3.1)
    assert metrics["speedup"]["low"] <= 3.1 <= metrics["speedup"]["high"]
    assert metrics["success/plain"]["value"] == 0.8
    assert metrics["latency_p50/bac"]["value"] == pytest.approx(10, rel=0.1)
    assert metrics["latency_p50/bac"]["n"] == 40
    assert metrics["latency_cold_max/bac"]["value"] == 90
    assert {"latency_p90/plain", "latency_p99/plain", "latency_max/plain"} <= set(metrics)
    assert result["coverage"]["complete"] is True


def moved(name: str, noise: float, **more) -> Arm:
    """An arm whose actions follow from each other but for noise."""
    random = np.random.default_rng(0)
    done = [np.cumsum(0.1 + noise * random.normal(size=(30, 2)), 0) for _ in range(20)]
    return Arm(
        name,
        [Episode("t", i, "success", moments=moments_of(actions)) for i, actions in enumerate(done)],
        **more,
    )


def test_predictability_is_told_in_one_line():
    run = RunSummary(
        "eval", [moved("plain", 0.1), moved("[b]", 0.3)], [("t", i) for i in range(20)]
    )
    assert RunSummary.from_json(run.to_json()).to_json() == run.to_json()
    metrics = result_json(run)["metrics"]
    errors = [metrics[f"action_prediction_error/{name}"] for name in ("plain", "[b]")]
    assert errors[0]["n"] == 56
    assert 0 < errors[0]["value"] < errors[1]["value"] < 1
    assert "action_predictability/plain" not in metrics
    line = f"of its variance: plain {errors[0]['value']:.3g}; [b] {errors[1]['value']:.3g}."
    assert line in printed(run)
    assert line in Page(render_html(run, folder=Path())).text

    expert = [episode.moments for episode in moved("expert", 0.1).episodes]
    run = replace(run, demonstrations=expert)
    metrics = result_json(run)["metrics"]
    assert metrics["action_predictability/plain"]["value"] == pytest.approx(1)
    assert metrics["action_predictability/[b]"]["value"] < 0.5
    assert "(predictability 1.00 of the expert's); [b]" in printed(run)


def test_what_was_not_measured_is_null(summary):
    quiet = [replace(a, latencies_ms=[], cold=[]) for a in summary.arms]
    metrics = result_json(replace(summary, arms=quiet, interleaved_ms={}))["metrics"]
    assert metrics["speedup"] == {"value": None, "unit": "x", "n": 0, "low": None, "high": None}
    assert metrics["latency_p50/plain"]["value"] is None


def test_speedup_falls_back_to_the_warm_calls(summary):
    comparison = analyze(replace(summary, interleaved_ms={})).comparisons[0]
    assert not comparison.interleaved
    assert comparison.speedup.value == pytest.approx(3)


def test_summary_round_trips(summary):
    again = RunSummary.from_json(summary.to_json())
    assert again.to_json() == summary.to_json()
    assert result_json(again) == result_json(summary)


def test_numpy_is_welcome(summary):
    plain, bac = summary.arms
    odd = replace(bac, latencies_ms=np.array([3.0, 4.0]), cold=[np.bool_(True), np.bool_(False)])
    times = {name: np.array(ms) for name, ms in summary.interleaved_ms.items()}
    run = replace(summary, arms=[plain, odd], interleaved_ms=times, provenance={"at": Path("x")})
    again = RunSummary.from_json(run.to_json())
    assert again.arms[1].latencies_ms == [3.0, 4.0]
    assert again.provenance == {"at": "x"}
    assert result_json(again)["metrics"] == result_json(run)["metrics"]
    assert "4 ms" in Page(render_html(run, folder=Path())).text


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"arms": [{}]}'])
def test_a_foreign_file_is_refused(text):
    with pytest.raises(ValueError, match=r"summary|Expecting"):
        RunSummary.from_json(text)


def test_bad_observations_are_refused(summary):
    first = summary.arms[0]
    with pytest.raises(ValueError, match="have: success, failure, timeout, error"):
        Episode("pusht", 0, "won")
    with pytest.raises(ValueError, match="more than one episode"):
        replace(first, episodes=[*first.episodes, first.episodes[0]])
    with pytest.raises(ValueError, match="positive milliseconds"):
        replace(first, latencies_ms=[float("nan")], cold=[False])
    with pytest.raises(ValueError, match="one to one"):
        replace(first, cold=[True])
    with pytest.raises(ValueError, match="not planned"):
        replace(summary, planned=summary.planned[1:])
    with pytest.raises(ValueError, match="different names"):
        replace(summary, arms=[first, first])
    with pytest.raises(ValueError, match="one flag for each"):
        PlanMask(["a", "b"], [[True]])


def test_a_crash_never_flatters_the_candidate(summary):
    def crash(arm: Arm) -> Arm:
        return replace(arm, episodes=[Episode("pusht", 0, "error", "boom"), *arm.episodes[1:]])

    plain, bac = summary.arms
    in_candidate = analyze(replace(summary, arms=[plain, crash(bac)])).comparisons[0].difference
    in_baseline = analyze(replace(summary, arms=[crash(plain), bac])).comparisons[0].difference
    assert (in_candidate.lost, in_candidate.interval.n) == (2, 100)
    assert (in_baseline.gained, in_baseline.interval.n) == (0, 99)


def test_one_timed_pair_has_no_interval(summary):
    once = replace(summary, interleaved_ms={"plain": [100.0], "bac": [20.0]})
    assert not analyze(once).comparisons[0].speed_differs
    assert "5.00x (-), 1 interleaved pairs" in printed(once)
    page = Page(render_html(once, folder=Path())).text
    assert not re.search(r"\bnan\b", printed(once) + page)
    assert result_json(once)["metrics"]["speedup"]["low"] is None


def test_long_names_take_no_figure_away(summary):
    name = "a_policy_of_the_first_of_june_after_100_epochs"
    long = [replace(arm, name=f"{arm.name}_{name}") for arm in summary.arms]
    out = io.StringIO()
    told = replace(summary, arms=long, interleaved_ms={})
    print_report(told, Console(file=out, width=80))
    for arm in analyze(told).arms:
        assert f"{arm.success.value:.1%} " in out.getvalue()
    assert "…" not in out.getvalue()


def test_partial_coverage_is_said_everywhere(summary):
    plain, bac = summary.arms
    broken = [*bac.episodes[:-3], Episode("pusht", 99, "error", "sim <crashed>")]
    partial = replace(summary, arms=[plain, replace(bac, episodes=broken)])
    coverage = result_json(partial)["coverage"]
    assert coverage["complete"] is False
    assert (coverage["finished"], coverage["planned"]) == (197, 200)
    assert coverage["missing"] == {"plain": [], "bac": [("pusht", 97), ("pusht", 98)]}
    assert coverage["errors"] == {"plain": [], "bac": [("pusht", 99)]}
    sentence = analyze(partial).coverage.sentence()
    assert "197 of 200" in sentence
    assert "bac: not run pusht seed 97, pusht seed 98" in sentence
    assert "bac: error in pusht seed 99 (sim <crashed>)" in sentence
    page = Page(render_html(partial, folder=Path()))
    assert sentence in page.text
    assert "sim <crashed>" in page.text
    assert "98.5%" in page.text
    assert "197 of 200" in printed(partial)


def test_a_run_without_episodes_claims_nothing(summary):
    empty = replace(summary, arms=[Arm("plain", []), Arm("bac", [])], planned=[], interleaved_ms={})
    assert not analyze(empty).coverage.complete
    assert result_json(empty)["coverage"]["value"] == 0
    assert "nothing to claim" in Page(render_html(empty, folder=Path())).text
    assert "nothing to claim" in printed(empty)


def test_console_and_page_show_the_same_figures(summary):
    page, console = Page(render_html(summary, folder=Path())).text, printed(summary)
    for figure in (
        "71.1% to 86.7%", "-1.0 points", "non-inferiority at 5 points", "3.10x", "270 ms", "40",
    ):  # fmt: skip
        assert figure in page
        assert figure in console


@pytest.mark.parametrize(
    ("wins", "margin", "words"),
    [
        (79, 0.1, "not worse by 10 points or more"),
        (79, 0.01, "is open: -1.0 points (-5.4 to +2.7) over 100 pairs; a fresh run of "),
        (70, 0.08, "a loss is shown, and its size is what is open"),
        (40, 0.05, "worse by more than 5 points"),
    ],
)
def test_the_claim_is_no_stronger_than_the_interval(summary, wins, margin, words):
    arms = [summary.arms[0], replace(summary.arms[1], episodes=episodes(wins, 100))]
    assert words in analyze(replace(summary, arms=arms, margin=margin)).comparisons[0].sentence()


def test_no_speedup_is_claimed_when_the_interval_holds_one(summary):
    same = {"plain": [10.0, 11.0, 9.0, 12.0], "bac": [10.0, 9.0, 12.0, 11.0]}
    comparison = analyze(replace(summary, interleaved_ms=same)).comparisons[0]
    assert "no speed-up shown" in comparison.headline()
    assert "no difference is shown" in comparison.sentence()


def test_several_tasks_get_their_own_intervals(summary):
    both = [*episodes(8, 10, "lift"), *episodes(2, 10, "can")]
    planned = [e.key for e in both]
    tasks = replace(summary, arms=[Arm("plain", both)], planned=planned, interleaved_ms={})
    found = analyze(tasks).arms[0]
    assert {task: rate.value for task, rate in found.by_task.items()} == {"can": 0.2, "lift": 0.8}
    assert found.over_tasks.value == pytest.approx(0.5)
    assert "mean over tasks" in Page(render_html(tasks, folder=Path())).text
    assert "mean over tasks" in printed(tasks)


def test_page_loads_nothing(summary):
    text = render_html(summary, folder=Path())
    page = Page(text)
    assert page.loads == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert {"svg", "path", "details"} <= set(page.tags)


def test_heat_map_draws_every_computed_cell(summary):
    text = render_html(summary, folder=Path())
    assert "1 of 3" in text
    assert "2 of 3" in text
    runs = re.findall(r'<path d="([^"]*)" class="computed">', text)
    assert runs == ["M49.00 1h240.00v13h-240.00z", "M49.00 16h480.00v13h-480.00z"]


def test_hostile_names_stay_text(summary, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'$title [bold]{0}"
    hostile = replace(
        summary,
        verb=evil,
        arms=[
            replace(summary.arms[0], name=evil, accel={"name": evil, "stage_ms": {evil: 1.0}}),
            replace(summary.arms[1], plan=PlanMask([evil], [[True]])),
        ],
        interleaved_ms={},
        provenance={evil: evil},
        config=f"name: |\n  {evil}\n",
        videos=[Video(evil, evil, "pusht", 0), Video("javascript:alert(1)", "bac", "pusht", 0)],
    )
    page = Page(write_report(hostile, tmp_path).read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.loads == []
    assert evil in page.text
    assert "alert(1)" in printed(hostile)


def test_videos_are_embedded_while_small_then_linked(summary, tmp_path, monkeypatch):
    for name in ("plain 0.mp4", "bac #0.mp4"):
        (tmp_path / name).write_bytes(b"\x00" * 60)
    monkeypatch.setattr(rollouts, "EMBED_LIMIT", 100)
    videos = [
        Video("bac #0.mp4", "bac", "pusht", 0),
        Video("plain 0.mp4", "plain", "pusht", 0),
        Video("gone.mp4", "bac", "pusht", 1),
    ]
    page = Page(write_report(replace(summary, videos=videos), tmp_path).read_text("utf-8"))
    embedded, linked = page.loads
    assert embedded.startswith("data:video/mp4;base64,AAAA")
    assert linked == "./bac%20%230.mp4"
    assert "video not found: gone.mp4" in page.text


def test_write_report_leaves_three_files(summary, tmp_path):
    page = write_report(summary, tmp_path / "new" / "run")
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html", "result.json", "summary.json",
    }  # fmt: skip
    assert json.loads((page.parent / "result.json").read_text())["schema"] == 1


def test_a_single_arm_needs_no_comparison(summary):
    alone = replace(summary, arms=summary.arms[:1], interleaved_ms={})
    assert "speedup" not in result_json(alone)["metrics"]
    assert "plain: 80.0% success over 100 episodes" in Page(render_html(alone, folder=Path())).text


def test_figures_of_episodes_are_averaged_and_paired(summary):
    def told(arm, base, left_out=()):
        episodes = [
            replace(e, figures={} if e.seed in left_out else {"progress_m": base + e.seed})
            for e in arm.episodes
        ]
        return replace(arm, episodes=episodes)

    plain, fast = summary.arms
    driven = replace(summary, arms=[told(plain, 10), told(fast, 12.5, left_out={0, 1})])
    findings = analyze(driven)
    assert findings.arms[0].figures["progress_m"].value == pytest.approx(10 + 99 / 2)
    assert findings.arms[1].figures["progress_m"].n == 98
    gap = findings.comparisons[0].figures["progress_m"]
    assert (gap.value, gap.low, gap.high, gap.n) == (2.5, 2.5, 2.5, 98)
    metrics = result_json(driven)["metrics"]
    assert metrics["progress_m/plain"]["n"] == 100
    assert metrics["progress_m_difference"]["value"] == 2.5
    console = Console(file=io.StringIO(), width=120)
    print_report(driven, console)
    assert "progress_m" in console.file.getvalue()
    assert "Means over episodes" in render_html(driven, Path("."))
    assert "Means over episodes" not in render_html(summary, Path("."))
    assert RunSummary.from_json(driven.to_json()).arms[1].episodes == driven.arms[1].episodes
