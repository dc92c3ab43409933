"""The `fastloop` command: a verb, and Hydra overrides of its configuration."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

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

HELP = {"-h", "--help", "help"}
INTERRUPTED = "interrupted; what was finished is kept"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the process's exit code (2 for a user's mistake, 130 for Ctrl-C)."""
    try:
        return _answer(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130


def _answer(words: Sequence[str]) -> int:
    if words[:1] in (["-V"], ["--version"]):
        print(version("fastloop"))
        return 0
    asked, words = not HELP.isdisjoint(words), [word for word in words if word not in HELP]
    if not words:
        print(_usage())
        return 0
    verb, *words = words
    from fastloop import usage  # not before: it imports torch, which takes seconds

    if verb not in VERBS:
        told = f"unknown verb {verb!r}; have: {', '.join(VERBS)}{usage.near(verb, VERBS)}"
        return _refuse(told)
    try:
        if asked:
            print(_verb_usage(verb, words))
            return 0
        config = configure(*_named(verb, words))
        module = importlib.import_module(f"fastloop.verbs.{verb}")
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return int(module.run(config))
    except usage.USER_ERRORS as error:
        return _refuse(f"fastloop {verb}: {usage.message(error, words)}")


def _refuse(told: str) -> int:
    from rich.console import Console

    console = Console(stderr=True)
    console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)
    return 2


def _named(verb: str, words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The configuration that is meant, and the overrides that follow the verb and its task."""
    from fastloop.usage import near

    if verb not in TASKS:
        return verb, words
    have = ", ".join(f"`fastloop {verb} {task}`" for task in TASKS[verb])
    if not words or "=" in words[0] or words[0].startswith("~"):
        raise ValueError(f"say what to {verb}; have: {have}")
    if words[0] not in TASKS[verb]:
        raise ValueError(f"cannot {verb} {words[0]!r}; have: {have}{near(words[0], TASKS[verb])}")
    return TASKS[verb][words[0]], words[1:]


def configure(name: str, overrides: Sequence[str]) -> object:
    """The configuration `name` with `overrides`, an object of its schema.

    Raises:
        HydraException, OmegaConfBaseException, ValueError: an override does not fit.
    """
    from omegaconf import OmegaConf

    from fastloop.usage import composed

    return OmegaConf.to_object(composed(name, overrides))


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


def _verb_usage(verb: str, words: Sequence[str]) -> str:
    """Of a verb, or of its task where that is one."""
    from fastloop.usage import of_tasks, of_verb

    if verb in TASKS and not words:
        return of_tasks(verb, VERBS[verb], TASKS[verb])
    name, overrides = _named(verb, words)
    command = f"{verb} {words[0]}" if verb in TASKS else verb
    return of_verb(command, VERBS[verb], name, overrides)


def _leave(*_: object) -> NoReturn:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


def command() -> NoReturn:
    """The command itself: ends the process with the code of `main`, whatever hangs in a thread."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)  # until a verb runs: imports swallow KeyboardInterrupt
    code = main()
    worker = sys.modules.get("fastloop.deploy.worker")
    if worker is not None and worker.hangs():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # an interpreter that ends in order aborts where a thread is inside of torch
    sys.exit(code)


if __name__ == "__main__":
    command()
