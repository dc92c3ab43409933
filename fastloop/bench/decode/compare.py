"""What arms are beside each other: speed-ups, the cost of forks, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastloop.bench.decode.arms import JUMP_FORWARD
from fastloop.bench.decode.displacement import measure_errors
from fastloop.bench.decode.findings import DecodeFindings
from fastloop.bench.decode.gates import Answers, check_timed
from fastloop.bench.decode.subject import Subject
from fastloop.bench.decode.timing import Timed
from fastloop.bench.decode.work import mean
from fastloop.sims.stats import Interval, ratio_of_medians

__all__ = ["Found", "compare_errors", "compare_times"]

Found = dict[str, DecodeFindings]


def compare_times(
    found: Found, answers: Answers, timed: Mapping[str, Timed], subject: Subject
) -> None:
    """Speed-ups and what forks cost, from plans of the same turns.

    Args:
        found: completed here.
        answers: that timed plans must give again; none in half precision.
        timed: arms that are green.
        subject: what was planned.
    """
    once, plain = len(subject.moments), next(iter(found))
    texts = {name: [(plan.text or ("",))[0] for plan in t.plans] for name, t in timed.items()}
    arms = [found[name].arm for name in timed]
    for name, own in timed.items():
        one = found[name]
        sure = not one.arm.forks and not one.arm.config.temperature
        gates = one.gates
        if sure and answers:
            gates = (*gates, check_timed(one.arm, answers[name], texts[name][:once]))
        pairs = list(zip(texts[name], texts.get(plain, ()), strict=False)) if sure else []
        found[name] = replace(
            one,
            gates=gates,
            timed=own,
            alike=sum(a == b for a, b in pairs) / len(pairs) if pairs else None,
            speedup=_time_ratio(timed.get(plain), own),
        )
        if one.arm.forks and (single := one.arm.single(arms)):
            over = _time_ratio(own, timed[single.name])
            found[name] = replace(found[name], time_ratio=over)
    _hide_ratios_to_red_arms(found)


def _time_ratio(slow: Timed | None, fast: Timed) -> Interval | None:
    if slow is None:
        return None
    return ratio_of_medians(slow.plan_ms, fast.plan_ms, paired=True)


def _hide_ratios_to_red_arms(found: Found) -> None:
    """Nothing is faster than an arm that is wrong."""
    arms = [one.arm for one in found.values()]
    plain = next(iter(found))
    for name, one in found.items():
        if found[plain].refused:
            one = replace(one, speedup=None)
        if found.get(JUMP_FORWARD, found[plain]).refused:
            one = replace(one, fewer_forwards=None)
        if (single := one.arm.single(arms)) and found[single.name].refused:
            one = replace(one, time_ratio=None)
        found[name] = one


def compare_errors(found: Found, timed: Mapping[str, Timed], subject: Subject) -> None:
    """Displacement from the expert; of forks beside one answer, of the others beside the first."""
    moments, once, plain = subject.moments, len(subject.moments), next(iter(found))
    episodes = [moment.episode for moment in moments]
    errors = {name: measure_errors(own.plans[:once], moments) for name, own in timed.items()}
    arms = [found[name].arm for name in timed]
    for name, own in errors.items():
        one = found[name]
        single = one.arm.single(arms) if one.arm.forks else None
        against = single.name if single else plain
        base = errors.get(against, {}) if against != name else {}
        found[name] = replace(
            one,
            errors={s: mean(own[s].tolist(), episodes) for s in own},
            gaps={s: mean((own[s] - base[s]).tolist(), episodes) for s in own if s in base},
            against=against if base else "",
        )
