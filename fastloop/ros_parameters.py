"""Parameter files of ROS 2 as settings of a node."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastloop.deploy.config import DeployConfig

__all__ = ["with_parameters"]

PARAMETERS = "ros__parameters"


def with_parameters(deploy: DeployConfig, path: str | Path) -> DeployConfig:
    """`deploy` with what a parameter file says of its node: under the node's name, or ``/**`` for
    every node, which counts less.

    Raises:
        ValueError: the file is no YAML, says nothing of this node, or what no setting takes.
        OSError: it cannot be read.
    """
    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    nodes = said if isinstance(said, dict) else {}
    found = [_parameters(nodes, name) for name in ("/**", deploy.node.strip("/"), deploy.node)]
    if not any(isinstance(one, dict) for one in found):
        have = ", ".join(map(str, nodes)) or "nothing"
        raise ValueError(
            f"{path} has no {PARAMETERS} of {deploy.node} or of /**; it speaks of {have}"
        )
    try:
        merged = OmegaConf.structured(deploy)
        for one in found:
            merged = OmegaConf.merge(merged, one or {})
        settled = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        told = str(error).splitlines()[0]
        have = ", ".join(one.name for one in dataclasses.fields(DeployConfig))
        raise ValueError(f"{path}: {told}; have: {have}") from None
    assert isinstance(settled, DeployConfig)
    return settled


def _parameters(nodes: dict[str, Any], name: str) -> dict[str, Any] | None:
    node = nodes.get(name)
    found = node.get(PARAMETERS) if isinstance(node, dict) else None
    return found if isinstance(found, dict) else None
