"""The structured configuration of the verbs: Hydra composes it from `configs/`, these check it."""

from fastloop.config.evaluation import CalibrateConfig, ClockConfig, EvalConfig
from fastloop.config.policy import DecodingOverrides, PolicyConfig, RemoteConfig, SamplerOverrides
from fastloop.config.scoring import ScoreConfig, SubmissionConfig
from fastloop.config.serving import InfoConfig, RunVerbConfig, ServeConfig
from fastloop.config.training import NetworkConfig, RecordConfig, TrainVerbConfig, VLAConfig

__all__ = [
    "CalibrateConfig",
    "ClockConfig",
    "DecodingOverrides",
    "EvalConfig",
    "InfoConfig",
    "NetworkConfig",
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
