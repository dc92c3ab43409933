"""The `fastloop` command: a verb, and Hydra overrides of its configuration."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn, get_args

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from rich.console import Console

from fastloop import schemas
from fastloop.accel.report import AcceleratorIdleError
from fastloop.extras import MissingExtraError

__all__ = ["command", "configure", "main"]

VERBS = {
    "eval": "run a policy in a simulator, plain and accelerated, and report what was lost and won",
    "calibrate": "decide what an accelerator computes and what it reuses, and draw it",
    "bench": "measure every way to decide sooner: speed, error, success",
    "score": "judge plans on recorded drives: nuScenes, the Waymo end-to-end challenge",
    "run": "drive a vehicle or an arm at a fixed rate, as a ROS 2 node without ROS",
    "serve": "answer remote clients, in openpi's protocol",
    "record": "let a scripted expert make demonstrations",
    "train": "train a diffusion policy on demonstrations",
    "info": "say what a checkpoint holds, or convert it",
}

# Verbs that are followed by a word for what they are about, and the configuration of each.
TASKS = {
    "bench": {
        "denoise": "bench",
        "decode": "bench_decode",
        "shape": "bench_shape",
        "train": "bench_train",
        "forecast": "bench_forecast",
        "plans": "bench_plans",
        "window": "bench_window",
        "vehicle": "bench_vehicle",
        "server": "bench_server",
    },
}

USER_ERRORS = (
    ValueError, OSError, FloatingPointError, AcceleratorIdleError, MissingExtraError,
    HydraException, OmegaConfBaseException,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the process's exit code (2 for a user's mistake, 130 for Ctrl-C)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console(stderr=True)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(version("fastloop"))
        return 0
    verb, overrides = argv[0], argv[1:]
    if verb not in VERBS:
        told = f"unknown verb {verb!r}; have: {', '.join(VERBS)}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 2
    try:
        if {"-h", "--help"} & set(overrides):
            print(_verb_usage(verb, overrides[0]))
            return 0
        name, overrides = _named(verb, overrides)
        module = importlib.import_module(f"fastloop.verbs.{verb}")
        return int(module.run(configure(name, overrides)))
    except KeyboardInterrupt:
        console.print("interrupted; what was finished is kept")
        return 130
    except USER_ERRORS as error:
        told = f"fastloop {verb}: {_message(error)}"
        console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)
        return 2


def _named(verb: str, words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The configuration that is meant, and the overrides that follow the verb and its task."""
    if verb not in TASKS:
        return verb, words
    have = ", ".join(f"`fastloop {verb} {task}`" for task in TASKS[verb])
    if not words or "=" in words[0] or words[0].startswith("~"):
        raise ValueError(f"say what to {verb}; have: {have}")
    if words[0] not in TASKS[verb]:
        raise ValueError(f"cannot {verb} {words[0]!r}; have: {have}")
    return TASKS[verb][words[0]], words[1:]


def configure(name: str, overrides: Sequence[str]) -> object:
    """The configuration `name` with `overrides`, an object of its schema.

    Raises:
        HydraException, OmegaConfBaseException, ValueError: an override does not fit.
    """
    schemas.register()
    with initialize_config_module("fastloop.configs", version_base="1.3"):
        composed = compose(name, overrides=list(overrides))
    _refuse_unknown(composed)
    return OmegaConf.to_object(composed)


def _refuse_unknown(config: DictConfig, path: str = "") -> None:
    """What ``+name=value`` added where nothing reads it."""
    schema = OmegaConf.get_type(config)
    if dataclasses.is_dataclass(schema):
        known = [field.name for field in dataclasses.fields(schema)]
        if unknown := [f"{path}{key}" for key in config if key not in known]:
            raise ValueError(f"unknown setting {unknown[0]!r}; have: {', '.join(known)}")
    for key in config:
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            _refuse_unknown(config[key], f"{path}{key}.")


def _message(error: Exception) -> str:
    """The error with what Hydra knows about it: the choices stand in its cause."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no default; say {error.full_key}=..."
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        siblings = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
        have = ", ".join(str(key) for key in siblings if key not in ("_target_", "hydra"))
        typed = any(map(dataclasses.is_dataclass, get_args(cause.ref_type)))
        free = cause.object_type is dict and not typed
        add = f"; +{cause.full_key}=... adds it, where what is built takes it" if free else ""
        return f"unknown setting {cause.full_key!r}; have: {have or 'none'}{add}"
    return f"{error}\n{cause}" if isinstance(error, HydraException) and cause else str(error)


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            "usage: fastloop VERB [key=value ...]",
            "",
            *lines,
            "",
            "`fastloop VERB --help` shows settings and choices. `fastloop eval` is the demo.",
        ]
    )


def _verb_usage(verb: str, task: str) -> str:
    """Of a verb, and of its task where that is one."""
    tasks = TASKS.get(verb, {})
    name = tasks.get(task, verb)
    schemas.register()
    with initialize_config_module("fastloop.configs", version_base="1.3"):
        composed = compose(name, return_hydra_config=True)
        from hydra.core.global_hydra import GlobalHydra

        loader = GlobalHydra.instance().config_loader()
        groups = [g for g in composed.hydra.runtime.choices if not g.startswith("hydra/")]
        choices = {group: loader.get_group_options(group) for group in groups}
        settings = OmegaConf.to_yaml(compose(name))
    doc = ((schemas.SCHEMAS | schemas.TASK_SCHEMAS)[name].__doc__ or "").strip()
    word = "" if not tasks else f"{task} " if task in tasks else "|".join(tasks) + " "
    lines = [f"usage: fastloop {verb} {word}[key=value ...]", "", VERBS[verb], "", doc, ""]
    lines += [f"{group}= one of {', '.join(names)}" for group, names in choices.items()]
    return "\n".join([*lines, "", "Settings and their defaults:", "", settings])


def command() -> NoReturn:
    """The command itself: ends the process with the code of `main`, whatever hangs in a thread."""
    code = main()
    worker = sys.modules.get("fastloop.deploy.worker")
    if worker is not None and worker.hangs():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # an interpreter that ends in order aborts where a thread is inside of torch
    sys.exit(code)


if __name__ == "__main__":
    command()
