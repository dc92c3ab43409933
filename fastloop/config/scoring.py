"""Scores of plans on recorded drives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastloop.config.policy import PolicyConfig

__all__ = ["ScoreConfig", "SubmissionConfig"]


@dataclass
class SubmissionConfig:
    """What a WOD-E2E challenge submission says of itself.

    Attributes:
        account_name: e-mail address of the account that submits.
        unique_method_name: of the method, on the leaderboard.
        authors, affiliation, description, method_link: of the method.
        uses_public_model_pretraining: whether a public model was the starting point; the rules want
            an answer.
        public_model_names: which.
        num_model_parameters: in words, for instance ``3B``; the rules want it.
        frames: file of the frames that must be answered (``test_sequence_frames_for_submission``,
            JSON or list); null asks for the frames that were scored.
    """

    account_name: str | None = None
    unique_method_name: str | None = None
    authors: list[str] = field(default_factory=list)
    affiliation: str = ""
    description: str = ""
    method_link: str = ""
    uses_public_model_pretraining: bool | None = None
    public_model_names: list[str] = field(default_factory=list)
    num_model_parameters: str | None = None
    frames: str | None = None


@dataclass
class ScoreConfig:
    """Score a policy's plans, or a file of them, on recorded data.

    Attributes:
        predictions: a file of plans (JSON, NPZ, pickle of arrays, WOD-E2E submission) to score
            instead of a policy's.
        batch: rows of every policy call.
        piece: samples that a worker does at a time, and that an interruption loses.
        worker: `process` or `ray`; figures do not depend on it, nor on `workers` (0: one a
            core for a policy, and one for a file).
        seed: root of the policy's noise.
        worst: how many of the worst samples are drawn in the report.
        submit: also write a WOD-E2E challenge submission, which says of itself what stands under
            `submission`.
        allow_partial: exit with 0 although samples are missing.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    dataset: dict[str, Any] = field(default_factory=dict)
    predictions: str | None = None
    batch: int = 32
    piece: int = 128
    worker: str = "process"
    workers: int = 0
    seed: int = 0
    worst: int = 12
    submit: bool = False
    submission: SubmissionConfig = field(default_factory=SubmissionConfig)
    allow_partial: bool = False
    run_dir: str | None = None
