"""Which accelerator, in words: the structured config behind `configs/accel/`."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "KERNELS",
    "KINDS",
    "METRICS",
    "OBJECTIVES",
    "PREDICTORS",
    "SCORES",
    "VARIABLES",
    "AccelConfig",
    "PredictorConfig",
    "RefineConfig",
]

KINDS = ("none", "exact", "uniform", "unified", "bac", "delta", "zeus")
KERNELS = ("attention", "ffn", "reused_run")
METRICS = ("cosine", "l1", "relative_l2")
OBJECTIVES = ("anchor", "consecutive")
SCORES = ("volatility", "scheduled")
PREDICTORS = ("reuse", "taylor1", "taylor2", "adams_bashforth", "zeus")
VARIABLES = ("step", "log_snr")


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class PredictorConfig:
    """How branches that are reused are forecast.

    Attributes:
        kind: one of `PREDICTORS`: the last value (`reuse`), the line or parabola through the last
            two or three (`taylor1`, `taylor2`), a mean of slopes (`adams_bashforth`, HAS), or the
            line, held where the first reused step meets it (`zeus`).
        damping: 0 to 1, what every forecast change is multiplied by; 0 is plain reuse. Noise that
            a stochastic sampler adds at every step makes slopes unreliable.
        variable: what the chain is seen as a function of, the `step` or `log_snr`.
        guard: watch the forecast of the first branch: whenever it is computed again and differs by
            more than this share (CG-Taylor's gate), the chunk's report counts a violation. 0
            watches nothing.
    """

    kind: str = "reuse"
    damping: float = 1.0
    variable: str = "step"
    guard: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("predictor", self.kind, PREDICTORS)
        _check_choice("predictor variable", self.variable, VARIABLES)
        if not 0 <= self.damping <= 1:
            raise ValueError(f"damping must be between 0 and 1, got {self.damping}")
        if self.guard < 0:
            raise ValueError(f"guard must be a share of 0 or more, got {self.guard}")


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class AccelConfig:
    """One block cache.

    Attributes:
        kind: `none`, as published; `exact`, the same answer with nothing computed twice, which is
            part of every other kind too; `uniform`, all branches every K/S steps; `unified`, all
            branches on the schedule of the first one; `bac`, a schedule per branch (Block-wise
            Adaptive Caching); `delta`, the rear layers every K/S steps early in the chain and the
            front layers late in it, the other layers always (Delta-DiT); `zeus`, whole evaluations
            skipped (ZEUS).
        budget: S, updates of each branch in one chunk, the first step included.
        union: n, the volatile branches that are also updated with every feed-forward branch
            downstream (Bubbling Union); 0 for none. Only `bac` uses it.
        budgets: S of single kinds of branches, such as `{sa: 8, ffn: 6}`; those that are not
            named, or None, have `budget`. Only for `uniform` and `bac`.
        metric: distance between a branch's values at two steps, one of `METRICS`.
        objective: what the schedule makes smallest, the distance of reused steps to the `anchor`
            that filled the cache, as in the released code, or to the step before (`consecutive`),
            as in the paper.
        score: by what `union` picks branches; `volatility`, as published, or `scheduled`, the
            error of their caches when a feed-forward branch downstream is updated.
        force_last: update every branch at the last step too, beyond its budget, as the published
            code does; the last evaluation decides most where a network predicts the sample.
        depth: share of the layers that `delta` reuses at a time; 1 reuses all, like `uniform`.
        boundary: share of the chain after which `delta` goes over from rear to front layers.
        predictor: what stands in for a branch that is reused.
        plan: path of a saved `CachePlan` of this kind to run as it is; the settings above make a
            plan, and a saved one brings its own.
        graph: on a CUDA device, record the whole chain for each number of environments that is
            prepared for, and replay it. Elsewhere it changes nothing.
        kernels: which of `KERNELS` stand in for torch's own, on a CUDA device in float32 or
            bfloat16; elsewhere their references do. Only for `TransformerForDiffusion`.
    """

    kind: str = "none"
    budget: int = 10
    union: int = 5
    budgets: dict[str, int | None] = field(default_factory=dict)
    metric: str = "cosine"
    objective: str = "anchor"
    score: str = "volatility"
    force_last: bool = True
    depth: float = 0.5
    boundary: float = 0.5
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    plan: str | None = None
    graph: bool = True
    kernels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_choice("accelerator", self.kind, KINDS)
        for kernel in self.kernels:
            _check_choice("kernel", kernel, KERNELS)
        _check_choice("metric", self.metric, METRICS)
        _check_choice("objective", self.objective, OBJECTIVES)
        _check_choice("score", self.score, SCORES)
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1 update a branch, got {self.budget}")
        budgets = {kind: s for kind, s in self.budgets.items() if s is not None}
        for kind, s in budgets.items():
            if s < 1:
                raise ValueError(f"budgets.{kind} must be at least 1 update a branch, got {s}")
        self.budgets = {**budgets}
        if budgets and self.kind not in ("uniform", "bac"):
            raise ValueError(
                f"accel={self.kind} has no budgets for kinds of branches; choose uniform or bac, "
                "or leave budgets empty"
            )
        if self.union < 0:
            raise ValueError(f"union must be 0 or more branches, got {self.union}")
        if not 0 < self.depth <= 1:
            raise ValueError(
                f"depth must be a share of the layers, above 0 and up to 1, got {self.depth}"
            )
        if not 0 <= self.boundary <= 1:
            raise ValueError(f"boundary must be a share of the chain, 0 to 1, got {self.boundary}")


@dataclass  # not frozen: Hydra writes a composed configuration field by field
class RefineConfig:
    """A search for a better plan, or a cheaper one, against the error of the action itself.

    Attributes:
        evaluations: plans that are measured at most; 0 searches nothing.
        budget: branch evaluations in one chunk; None for as many as the plan that it starts from.
        error: instead of a budget: the plan of the fewest branch evaluations whose actions differ
            by no more than this, as mean square in the network's normalized units.
        observations: each with its noise, that plans are compared on.
        held_out: further ones, which decide whether what was found is better.
        seed: of the search.
    """

    evaluations: int = 0
    budget: int | None = None
    error: float | None = None
    observations: int = 32
    held_out: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluations < 0:
            raise ValueError(f"refine.evaluations must be 0 or more, got {self.evaluations}")
        if self.budget is not None and self.error is not None:
            raise ValueError(
                f"refine.budget={self.budget} and refine.error={self.error} exclude each other: "
                "the one asks for the least error, the other for the fewest branch evaluations"
            )
        if self.evaluations == 0 and (self.budget is not None or self.error is not None):
            raise ValueError(
                "refine.budget and refine.error do nothing without a search; set "
                "refine.evaluations, such as 150"
            )
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"refine.budget must be at least 1, got {self.budget}")
        if self.error is not None and not self.error > 0:
            raise ValueError(f"refine.error must be above 0, got {self.error}")
        if self.observations < 1 or self.held_out < 1:
            raise ValueError(
                "refinement needs observations to compare plans on, and some held out: got "
                f"{self.observations} and {self.held_out}"
            )


def _check_choice(what: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ValueError(f"unknown {what} {given!r}; choose one of {', '.join(choices)}")
