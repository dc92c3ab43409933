"""`fastloop serve`: a policy for remote clients, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from rich.console import Console

from fastloop.accel.apply import accelerate
from fastloop.config import ServeConfig
from fastloop.deploy.server.server import LOOPBACK, PolicyServer, ServerConfig
from fastloop.extras import require
from fastloop.policies.base import Policy
from fastloop.policies.best_of import BestOf
from fastloop.policies.diffusion.policy import DiffusionPolicy
from fastloop.policies.prepare import prepare
from fastloop.run_folder import make_run_dir, write_result
from fastloop.setup import denoiser_of, load, read_key, set_up

__all__ = ["make_server", "run"]


def run(config: ServeConfig) -> int:
    """Serve; what was answered and refused is in the run folder afterwards."""
    require("websockets", extra="serve")
    require("msgpack", extra="serve")
    console = Console()
    with console.status("loading and warming up"):
        server = make_server(config)
    folder = make_run_dir("serve", config.run_dir)
    if config.host not in LOOPBACK:
        reach = "asks for the key" if config.api_key_file else "answers whoever can reach it"
        console.print(f"{config.host} is not loopback: the server {reach}", style="yellow")

    def opened(port: int) -> None:
        console.print(
            f"serving {config.policy.checkpoint} at ws://{config.host}:{port}; also /healthz and "
            "/metrics; Ctrl-C ends it",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip

    asyncio.run(_serve(server, opened))
    counted = server.metrics
    metrics = {"answers": {"value": counted.answers, "unit": "1"}}
    for kind, count in sorted(counted.errors.items()):
        metrics[f"errors_{kind}"] = {"value": count, "unit": "1"}
    write_result(folder, "serve", config, metrics)
    refused = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.errors.items()))
    console.print(
        f"{counted.answers} answers; errors: {refused or 'none'}\nrun folder: {folder}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def make_server(config: ServeConfig) -> PolicyServer:
    """The configured policy behind the configured port, which is not open yet.

    Raises:
        ValueError: for settings out of range, and as `set_up` and `accelerate`.
    """
    settings = ServerConfig(
        host=config.host, port=config.port, max_clients=config.max_clients,
        max_hz=config.max_hz, max_batch=config.max_batch, max_wait_ms=config.max_wait_ms,
        plan_batch=config.plan_batch, deadline_ms=config.deadline_ms,
        max_message_mb=config.max_message_mb, send_timeout_s=config.send_timeout_s,
        stall_s=config.stall_s, seed=config.seed, names=config.names,
        api_key=read_key(config.api_key_file),
    )  # fmt: skip
    return PolicyServer(_policy(config), settings, name=config.policy.checkpoint)


def _policy(config: ServeConfig) -> Policy:
    """Loaded with its exact savings on; another accelerator is put on here."""
    if config.sim:
        setup = set_up(config.policy, config.sim)
        setup.sim.close()
        if config.accel.kind == "exact" or (config.accel.kind == "none" and not setup.denoises):
            return setup.policy
        return setup.driving(accelerate(setup.denoiser, config.accel))
    policy = load(config.policy, None, config.policy.sampler)
    prepare(policy, threads=config.policy.threads)
    if isinstance(policy, DiffusionPolicy | BestOf) and config.accel.kind != "exact":
        return accelerate(policy, config.accel)
    if config.accel.kind not in ("none", "exact"):
        denoiser_of(policy)  # says why there is nothing to accelerate
    return policy


async def _serve(server: PolicyServer, opened: Callable[[int], None]) -> None:
    stop = asyncio.Event()
    for wanted in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(wanted, stop.set)
    await server.serve(stop, opened)
