"""The vehicle loop, the server, and what is told of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastloop.accel.config import AccelConfig
from fastloop.config.policy import PolicyConfig
from fastloop.deploy.config import DeployConfig

__all__ = ["InfoConfig", "RunVerbConfig", "ServeConfig"]


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
        stall_s: a policy's call that takes longer makes ``/healthz`` say so.
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
    stall_s: float = 10.0
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
        duration_s: of ticking, which begins with the first state, after which it ends by itself;
            null for never.
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
