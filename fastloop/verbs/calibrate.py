"""`fastloop calibrate`: a cache plan for one policy, its picture, and how stable it is."""

from __future__ import annotations

from rich.console import Console

from fastloop.accel.apply import stack_of
from fastloop.accel.block_cache.calibrate import calibrate, make_plan
from fastloop.accel.block_cache.plan import CachePlan
from fastloop.accel.block_cache.search import Refinement, refine
from fastloop.config import CalibrateConfig
from fastloop.config.ranges import at_least
from fastloop.progress import bar
from fastloop.run_folder import make_run_dir, write_result
from fastloop.setup import Setup, calibration_data, set_up
from fastloop.sims.report.plan import render_plan

__all__ = ["run"]

STABLE = 0.7  # Jaccard overlap of two halves below which a schedule is called unstable


def run(config: CalibrateConfig) -> int:
    """Write ``plan.json`` and ``plan.html`` to the run folder and print the verdict."""
    console = Console()
    at_least(config, 1, "observations")
    at_least(config, 0, "first_seed", "seed")
    setup = set_up(config.policy, config.sim)
    policy = setup.denoiser
    stack, distance = stack_of(policy, config.accel), None
    if config.accel.kind in ("unified", "bac"):
        data = calibration_data(setup, config.observations, config.first_seed, config.seed)
        seeds = range(config.first_seed, config.first_seed + config.observations)
        with bar("calibrating", config.observations, console) as advance:
            found = calibrate(
                stack, policy.sampler, *data, config.accel,
                digest=policy.digest, seeds=seeds,
                progress=lambda done, _: advance(done, "observations"),
            )  # fmt: skip
        plan, distance = found.plan, found.distance
        if found.warning:
            console.print(found.warning, style="yellow")
    else:
        plan = make_plan(config.accel, stack, policy.sampler, digest=policy.digest)
    search = _refine(config, setup, plan, console) if config.refine.evaluations else None
    if search is not None:
        plan = search.plan
    setup.sim.close()
    folder = make_run_dir("calibrate", config.run_dir)
    path = folder / "plan.json"
    plan.save(path)
    (folder / "plan.html").write_text(render_plan(plan, distance), encoding="utf-8")
    stability = plan.provenance.stability
    total = plan.computed + plan.reused
    console.print(
        f"{config.accel.kind}: {plan.computed} of {total} branch evaluations computed, "
        f"{plan.reused / total:.0%} reused",
        markup=False,
    )
    if stability is not None:
        verdict = "stable" if stability >= STABLE else "UNSTABLE: use more observations"
        console.print(f"agreement of two halves (Jaccard): {stability:.2f}, {verdict}")
    if search is not None:
        console.print(_verdict(search, config.refine.held_out), markup=False, soft_wrap=True)
    metrics = {
        "reused": {"value": plan.reused / total, "unit": "1", "n": total},
        "stability": {"value": stability, "unit": "1", "n": plan.provenance.observations},
    }
    if search is not None:
        for name, error in (("before", search.before), ("after", search.after)):
            metrics[f"action_error_{name}"] = {
                "value": error, "unit": "mean square, normalized", "n": config.refine.held_out,
            }  # fmt: skip
        metrics["evaluations"] = {"value": search.evaluations, "unit": "1", "n": 1}
    write_result(folder, "calibrate", config, metrics, checkpoint_digest=policy.digest)
    console.print(
        f"use it with: fastloop eval accel={config.accel.kind} accel.plan={path}\n"
        f"run folder: {folder}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def _refine(config: CalibrateConfig, setup: Setup, plan: CachePlan, console: Console) -> Refinement:
    """Search on the episodes after those that the plan was decided on."""
    wanted, first = config.refine, config.first_seed + config.observations
    data = calibration_data(setup, wanted.observations + wanted.held_out, first, config.seed)
    stack = stack_of(setup.denoiser, config.accel)
    with bar("refining", wanted.evaluations, console) as advance:
        return refine(plan, stack, setup.denoiser.sampler, *data, wanted, progress=advance)


def _verdict(search: Refinement, held_out: int) -> str:
    found = "no better plan was found" if search.after == search.before else "refined"
    return (
        f"{found}: action error {search.before:.1e} -> {search.after:.1e} (mean square, "
        f"normalized, {held_out} held-out observations) after {search.evaluations} plan evaluations"
    )
