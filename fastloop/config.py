"""The structured configuration of the verbs: Hydra composes it from `configs/`, these check it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from fastloop.accel.config import AccelConfig, RefineConfig
from fastloop.accel.samplers import SamplerConfig
from fastloop.deploy.config import DeployConfig
from fastloop.policies.diffusion.scene import SceneConfig
from fastloop.policies.diffusion.state import StateConfig
from fastloop.policies.diffusion.vision import VisionConfig
from fastloop.policies.real_time import RealTimeConfig
from fastloop.policies.training import TrainConfig
from fastloop.policies.vla.training import StageConfig

__all__ = [
    "CalibrateConfig",
    "DecodingOverrides",
    "EvalConfig",
    "InfoConfig",
    "PolicyConfig",
    "RecordConfig",
    "RemoteConfig",
    "RunVerbConfig",
    "SamplerOverrides",
    "ScoreConfig",
    "ServeConfig",
    "SubmissionConfig",
    "TrainVerbConfig",
    "VLAConfig",
]


@dataclass
class SamplerOverrides:
    """The fields of `SamplerConfig`; null leaves what the checkpoint says."""

    kind: str | None = None
    num_train_timesteps: int | None = None
    num_inference_steps: int | None = None
    beta_schedule: str | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    prediction_type: str | None = None
    clip_sample: bool | None = None
    clip_sample_range: float | None = None


@dataclass
class DecodingOverrides:
    """The fields of `DecodingConfig`; null leaves its default."""

    driver: str | None = None
    commit: str | None = None
    threshold: float | None = None
    filter: str | None = None
    skip: list[int] | None = None
    prune: str | None = None
    kept: float | None = None
    guidance: float | None = None
    captured: bool | None = None
    temperature: float | None = None
    rollouts: int | None = None
    selector: str | None = None


@dataclass
class RemoteConfig:
    """What a policy server is asked; for a checkpoint that begins with ``ws://``.

    Attributes:
        names: our observation keys to what the server calls them; another server than ours gets
            exactly these, where some are given.
        constants: what else goes into every request, such as ``prompt``.
        timeout_s: for an answer.
        api_key_file: a file that holds the server's key.
    """

    names: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 10.0
    api_key_file: str | None = None


@dataclass
class PolicyConfig:
    """Which weights decide, and how they are run.

    Attributes:
        checkpoint: a shipped policy's name, one of our folders, a LeRobot policy folder, or a
            ``.ckpt`` of diffusion_policy. Or the address of a policy server, ``ws://...``.
        n_action_steps: actions executed before planning again; null as the checkpoint says.
        sampler: what replaces the checkpoint's.
        decoding: how a vision-language model writes.
        device: torch device; `best` is CUDA where there is one, else the CPU.
        dtype: of a vision-language model's weights; empty for bfloat16 on a GPU and float32
            elsewhere.
        threads: torch threads inside a process; 0 measures which number is fastest.
        samples: plans that a denoising policy draws for each environment, of which one is executed.
        selector: by what it is chosen, `past` (PTP's self-verification), `past_partial` (that, on
            as much of the past as there is), `coherence` (with the plan under way) or `medoid`.
        remote: what a policy server is asked.
    """

    checkpoint: str = MISSING
    n_action_steps: int | None = None
    sampler: SamplerOverrides = field(default_factory=SamplerOverrides)
    decoding: DecodingOverrides = field(default_factory=DecodingOverrides)
    device: str = "cpu"
    dtype: str = ""
    threads: int = 0
    samples: int = 1
    selector: str = "past"
    remote: RemoteConfig = field(default_factory=RemoteConfig)


@dataclass
class ClockConfig:
    """What the world does while a plan is made.

    Attributes:
        kind: `frozen` (it waits), `replay` (a latency trace in virtual time), `measured` (each
            policy's own latencies as this run times them, replayed) or `wall` (as late as each plan
            really is).
        latency_ms: the trace that `replay` repeats.
        scale: of the latencies; 5 drives as on a computer that is five times slower than this one.
    """

    kind: str = "frozen"
    latency_ms: list[float] = field(default_factory=list)
    scale: float = 1.0


@dataclass
class EvalConfig:
    """Closed-loop evaluation: the policy as published, and accelerated, over the same episodes.

    Attributes:
        episodes: paired episodes.
        first_seed: seed of the first; they count up.
        seed: root of the policy's noise.
        num_envs: simulators at once, each in a process of its own.
        plan_batch: rows of every policy call; results do not depend on `num_envs`, only on this.
        chunking: `receding`, `ensemble` or `real_time`, whose settings stand under `real_time`.
        margin: largest loss of success that counts as none, as a fraction.
        timed_plans: plans timed back to back for each arm, on the same observations.
        calibration_observations: observations that a cache plan is decided on.
        video: `none`, `first-k`, `failures` or `all`; `video_count` is the k.
        retries, step_timeout_s: for simulators that crash or hang.
        allow_partial: exit with 0 although episodes are missing.
        baselines: other policies, by name or path, that run over the same episodes, to be compared
            with the policy as published; such as stand_still, idm.
        demonstrations: robomimic HDF5 of an expert in this simulator; the report then says how
            predictable the policy's actions are beside the expert's.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    accel: AccelConfig = field(default_factory=AccelConfig)
    sim: dict[str, Any] = field(default_factory=dict)
    clock: ClockConfig = field(default_factory=ClockConfig)
    episodes: int = 100
    first_seed: int = 0
    seed: int = 0
    num_envs: int = 8
    plan_batch: int = 8
    chunking: str = "receding"
    real_time: RealTimeConfig = field(default_factory=RealTimeConfig)
    margin: float = 0.05
    timed_plans: int = 30
    calibration_observations: int = 8
    video: str = "first-k"
    video_count: int = 3
    retries: int = 2
    step_timeout_s: float = 60.0
    allow_partial: bool = False
    baselines: list[str] = field(default_factory=list)
    demonstrations: str | None = None
    run_dir: str | None = None


@dataclass
class CalibrateConfig:
    """Decide a cache plan for a policy on observations of a simulator.

    Attributes:
        refine: a search for a better or cheaper plan that starts from the accelerator's own, on
            observations of further episodes; 0 evaluations for none.
        observations: how many; the first of as many episodes.
        first_seed: seed of the first episode.
        seed: root of the policy's noise.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    accel: AccelConfig = field(default_factory=AccelConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    sim: dict[str, Any] = field(default_factory=dict)
    observations: int = 8
    first_seed: int = 900_000
    seed: int = 0
    run_dir: str | None = None


@dataclass
class RecordConfig:
    """Demonstrations by a scripted expert, as robomimic HDF5.

    Attributes:
        episodes: successful episodes wanted.
        first_seed: seed of the first attempt; they count up.
        disturb: probability that an episode is disturbed by bursts of random actions, which are
            not recorded: the demonstration is split there, so that recovery is learned.
        noise: in disturbed episodes, the largest deviation of the executed action from the recorded
            one, as a fraction of each action's range.
        bursts, burst_every: at most that many of them in an episode, that many ticks apart on
            average.
        student: a policy that drives instead, while the expert says what it would do (DAgger).
        n_action_steps: ticks until the student plans again; null as it says itself.
        num_workers: processes.
        out: the file; a recording that was stopped is continued.
    """

    sim: dict[str, Any] = field(default_factory=dict)
    expert: dict[str, Any] = field(default_factory=dict)
    episodes: int = 200
    first_seed: int = 1_000_000
    disturb: float = 0.0
    noise: float = 0.0
    bursts: int = 3
    burst_every: int = 25
    student: str = ""
    n_action_steps: int | None = None
    num_workers: int = 2
    out: str = MISSING
    run_dir: str | None = None


@dataclass
class VLAConfig:
    """What a vision-language planner is asked, what it answers, and how it is taught.

    Attributes:
        schema: of the answer: the name of one that comes along, or the path of a ``.yaml``.
        prompt: name of the question's template.
        stages: of training, one after the other; their shares of its steps are in all 1.
        compile: train with the decoder's layers compiled: they round differently, and need a C++
            compiler where there is no GPU.
    """

    schema: str = ""
    prompt: str = ""
    stages: dict[str, StageConfig] = field(default_factory=dict)
    compile: bool = False


@dataclass
class NetworkConfig:
    """The network that is trained, a group of its own: ``network=transformer``, for instance.

    Attributes:
        kind: `transformer`, `unet` or `unet_cross`, which denoise, `cacheflow`, which looks plans
            up, or `qwen2_5_vl`, which writes; of what follows, the last one has arch (``text`` and
            ``vision``), inputs and vla.
        arch: arguments of its constructor, without the widths that follow from the data.
        horizon, n_obs_steps, n_action_steps: T, O, and actions executed before planning again.
        inputs: observation keys that condition it, in this order.
        state: encoder of low-dimensional observations; depth 0 lets the denoiser see them as they
            are, as published.
        scene: encoder of the driving vocabulary's vectors; 0 layers for none.
        stride, spacing: ticks between two frames, and whether they are so everywhere (`uniform`) or
            only in the older half of the window (`mixed`).
        past_steps: newest past actions that are learned beside the present and future ones; null
            for all, O - 1.
        contexts: numbers of frames, one of which each batch sees, drawn at random; the policy can
            then be run with any of them. Empty for always O.
        encoder: policy whose image encoder is taken over, frozen, with its `vision` and normalizer:
            a name or a path. Null trains one.
        embeddings: file that keeps what it makes of the demonstrations, so that several trainings
            share it; null for one in the run folder.
        relative_to: observation that the network's actions are relative to; null for none.
        cumulative: inside the network an action is the step from the one before.
        vla: of a vision-language planner.
    """

    kind: str = "transformer"
    arch: dict[str, Any] = field(default_factory=dict)
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    stride: int = 1
    spacing: str = "uniform"
    past_steps: int | None = None
    contexts: list[int] = field(default_factory=list)
    inputs: list[str] = field(default_factory=lambda: ["observation.state"])
    state: StateConfig = field(default_factory=lambda: StateConfig(depth=0))
    scene: SceneConfig = field(default_factory=lambda: SceneConfig(layers=0))
    encoder: str | None = None
    embeddings: str | None = None
    relative_to: str | None = None
    cumulative: bool = False
    vla: VLAConfig = field(default_factory=VLAConfig)


@dataclass
class TrainVerbConfig:
    """Train a diffusion policy, or a vision-language planner, on demonstrations.

    Attributes:
        sim: where the policy will act: it gives the shapes, and runs the checks.
        dataset: where the demonstrations are.
        sampler: how noise is added in training and taken away afterwards.
        vision: how images become features, for policies with cameras.
        init: policy of the same network to start from, its normalizer included; by default from
            random weights.
        mirror: train planners also on every drive with left and right changed.
        pretrain: how the encoder of a state or a scene is trained by itself, before the denoiser;
            0 steps for not at all. It is frozen afterwards.
        check_every: steps between checks, 0 for none: `check_episodes` in closed loop; for a
            vision-language planner moments of as many of the last drives, which are not trained on.
        save_every: steps between saved states, from which a killed run goes on.
        out: folder of the finished policy (half precision), beside the run folder by default.
    """

    sim: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pretrain: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=0, batch_size=1024, lr=1.5e-3, weight_decay=1e-2, warmup_steps=200
        )
    )
    vision: VisionConfig = field(default_factory=VisionConfig)
    init: str | None = None
    mirror: bool = False
    check_every: int = 0
    check_episodes: int = 20
    save_every: int = 500
    device: str = "cpu"
    threads: int = 0
    out: str | None = None
    run_dir: str | None = None


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


@dataclass
class ServeConfig:
    """A policy for remote clients, in openpi's protocol.

    Attributes:
        accel: whatever accelerates it; a kind that is calibrated needs its saved plan here.
        sim: what it drives, where the policy has to know that.
        names: the policy's observation keys to what clients call them.
        host: of the interface; by default only programs on this computer can connect.
        port: 0 takes a free one.
        max_clients: connections beyond are refused.
        max_hz: requests a second of one connection, beyond which it gets errors; 0 for any number.
        max_batch: clients a plan; the first of a batch waits at most `max_wait_ms` for others.
        plan_batch: rows of every policy call, so that an answer does not depend on who asks at the
            same time; 0 plans with exactly those that wait.
        deadline_ms: of a request that names none; 0 waits as long as it takes.
        max_message_mb: longest request.
        send_timeout_s: after which a client that does not take its answer is cut off.
        seed: root of the policy's noise.
        api_key_file: a file that holds the key which clients must send.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    accel: AccelConfig = field(default_factory=AccelConfig)
    sim: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    max_clients: int = 64
    max_hz: float = 0.0
    max_batch: int = 32
    max_wait_ms: float = 2.0
    plan_batch: int = 0
    deadline_ms: float = 0.0
    max_message_mb: float = 16.0
    send_timeout_s: float = 5.0
    seed: int = 0
    api_key_file: str | None = None
    run_dir: str | None = None


@dataclass
class RunVerbConfig:
    """A policy on a vehicle or an arm, at a fixed rate, until Ctrl-C or SIGTERM; or over a recorded
    drive.

    Attributes:
        bag: recorded drive, for ``deploy=replay``.
        params: a ROS 2 parameter file whose ``ros__parameters`` are settings of `deploy`; what it
            says holds before everything else.
        duration_s: of ticking, after which it ends by itself; null for never.
        film: keep everything that came and went, as MCAP.
        seed: root of the policy's noise.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    deploy: DeployConfig = field(default_factory=DeployConfig)
    bag: str = ""
    params: str = ""
    duration_s: float | None = None
    film: bool = False
    seed: int = 0
    run_dir: str | None = None


@dataclass
class InfoConfig:
    """What a checkpoint holds.

    Attributes:
        ckpt: its path, or a shipped policy's name.
        model: instead, the folder of a diffusion language model, which is no policy yet.
        check: pass random prompts through that model: is it what decoding takes for granted?
        keys: also list every tensor.
        convert: write it as one of our folders, at this path.
        half: with `convert`, store float16.
    """

    ckpt: str | None = None
    model: str | None = None
    check: bool = False
    keys: bool = False
    convert: str | None = None
    half: bool = False
    run_dir: str | None = None
