"""Where a run leaves what it made, and what it ran with."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

__all__ = [
    "claim",
    "config_digest",
    "config_yaml",
    "make_run_dir",
    "provenance",
    "write_result",
    "write_whole",
]

PACKAGES = (
    "fastloop", "torch", "numpy", "gymnasium", "gym-pusht", "mujoco", "robosuite",
    "metadrive-simulator", "nuscenes-devkit", "shapely",
)  # fmt: skip


def make_run_dir(verb: str, run_dir: str | None) -> Path:
    """The folder of this run: `run_dir`, old or new, or else a new ``runs/<verb>/<time>``."""
    if run_dir:
        path = Path(run_dir)
        path.mkdir(parents=True, exist_ok=True)
        return path
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        path = Path("runs") / verb / (stamp if number == 1 else f"{stamp}_{number}")
        with contextlib.suppress(FileExistsError):  # another run began within the same second
            path.mkdir(parents=True)
            break
    return path


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, whenever the process ends."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def claim(folder: Path, digest: str, refusal: str) -> None:
    """Let a folder belong to one configuration from its first file on, whenever that goes on.

    Args:
        folder: new, or old.
        digest: of the configuration.
        refusal: what is said to another one, and what it can do.

    Raises:
        ValueError: the folder holds what another one has made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "digest"
    made = any(path != mark and path.suffix != ".partial" for path in folder.iterdir())
    if made and not (mark.exists() and mark.read_text(encoding="utf-8") == digest):
        raise ValueError(refusal)
    write_whole(mark, digest)


def config_yaml(config: Any) -> str:
    """A verb's configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def config_digest(config: Any, *, without: tuple[str, ...] = ()) -> str:
    """A digest of everything that decides a result.

    Args:
        config: a verb's configuration.
        without: fields that decide only speed, place or presentation.
    """
    fields = dataclasses.asdict(config)
    kept = {key: value for key, value in fields.items() if key not in without}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance(**extra: Any) -> dict[str, Any]:
    """Versions, hardware and revision, with `extra` facts of the run in front."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "revision": _revision(),
        **{f"version/{name}": number for name, number in versions.items()},
    }
    return extra | facts


def write_result(
    folder: Path,
    verb: str,
    config: Any,
    metrics: dict[str, dict[str, Any]],
    coverage: dict[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """Write a verb's ``result.json`` and return its path.

    Args:
        metrics: name to ``value``, ``unit``, ``n``, ``low`` and ``high`` (null where they are
            absent, or nan, which JSON does not know).
        coverage: how much of what was asked for was done.
        facts: of the run, for its provenance.
    """
    blank = {"value": None, "unit": "", "n": None, "low": None, "high": None}
    result = {
        "schema": 1,
        "verb": verb,
        "config": dataclasses.asdict(config),
        "provenance": provenance(**facts),
        "metrics": {
            name: {what: None if x != x else x for what, x in (blank | metric).items()}
            for name, metric in metrics.items()
        },
        "coverage": coverage or {"value": 1.0, "complete": True},
    }
    path = folder / "result.json"
    write_whole(path, json.dumps(result, indent=2, default=str) + "\n")
    return path


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    """The git revision of the source tree, None for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
