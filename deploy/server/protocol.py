"""What is said on the wire: openpi's requests and answers, and ours under the key ``fastloop``.

A request is a map of observations, an answer ``{"actions": (T, A), "server_timing": {...}}``, and
the first frame of a connection describes the server. Whoever knows no more than that is served. A
request may hold, in a map under ``fastloop``:

- ``reset``: true where a new episode begins; alone or with the episode's first observation;
- ``tick``: of the observation, from 0. The server then keeps the history that the policy reads;
  without it every request stands for itself, as openpi's do;
- ``window``: true where each observation is the whole window (O, ...), the oldest frame first;
- ``key``: three numbers (seed, episode, tick) of the noise;
- ``deadline_ms``: after which the answer is of no use;
- ``executed``: (n, A) actions that were really done since the last request;
- ``late``: ticks that had passed when the last answer's plan was taken up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastloop.policies.base import Plan
from fastloop.policies.spec import PolicySpec, TensorSpec

__all__ = ["OURS", "Request", "RequestError", "answer", "describe", "read_request"]

OURS = "fastloop"
VERSION = 1
MAX_DEPTH = 4
FIELDS = ("reset", "tick", "window", "key", "deadline_ms", "executed", "late")
MAX_COUNT = 2**31


class RequestError(ValueError):
    """A request that the policy cannot be asked; the next one may be better."""


@dataclass(frozen=True)
class Request:
    """One request, checked against what the policy reads.

    Attributes:
        observation: by the policy's keys, one frame each or the whole window (O, ...); None for a
            reset by itself.
        reset, tick, window, key, executed, late: as in the module's description.
        deadline_s: from its arrival.
    """

    observation: Mapping[str, npt.NDArray[Any]] | None
    reset: bool = False
    tick: int | None = None
    window: bool = False
    key: tuple[int, int, int] | None = None
    deadline_s: float | None = None
    executed: npt.NDArray[Any] | None = None
    late: int = 0


def read_request(message: Any, spec: PolicySpec, names: Mapping[str, str] | None = None) -> Request:
    """The request in a decoded message.

    Observations go by the policy's keys, with dots or slashes, flat or in nested maps; what the
    policy does not read is ignored. Images may come with their channels last.

    Args:
        message: as `codec.unpack` gives it.
        spec: of the policy.
        names: the policy's keys to what clients call them.

    Raises:
        RequestError: naming what is missing or wrong.
    """
    if not isinstance(message, dict):
        raise RequestError(f"a request is a map of observations, got {type(message).__name__}")
    ours = message.get(OURS, {})
    if not isinstance(ours, dict):
        raise RequestError(f"{OURS!r} is a map, got {type(ours).__name__}")
    if unknown := sorted(str(key) for key in set(ours) - set(FIELDS)):
        raise RequestError(f"unknown fields {unknown} under {OURS!r}; have: {', '.join(FIELDS)}")
    given = _flat({key: value for key, value in message.items() if key != OURS})
    reset, window = (_flag(ours, name) for name in ("reset", "window"))
    tick = _count(ours["tick"], "tick") if "tick" in ours else None
    if tick is not None and window:
        raise RequestError("a window stands for itself: send either tick or window")
    observation = None
    if given or not reset:
        frames = spec.n_obs_steps if window else None
        observation = {
            key: _read(wanted, given, (names or {}).get(key, key), frames)
            for key, wanted in spec.inputs.items()
        }
    return Request(
        observation, reset, tick, window, _key(ours), _deadline(ours),
        _executed(ours, spec.action.dim), _count(ours.get("late", 0), "late"),
    )  # fmt: skip


def describe(spec: PolicySpec, name: str, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A connection's first frame: what the policy reads and what it answers."""
    return {
        OURS: {
            "protocol": VERSION,
            "policy": name,
            "inputs": {
                key: {
                    "shape": list(value.shape),
                    "dtype": value.dtype,
                    "low": value.low,
                    "high": value.high,
                    "names": list(value.names),
                    "unit": value.unit,
                    "called": (names or {}).get(key, key),
                }
                for key, value in spec.inputs.items()
            },
            "action": {
                "dim": spec.action.dim,
                "kind": spec.action.kind,
                "low": list(spec.action.low),
                "high": list(spec.action.high),
                "names": list(spec.action.names),
                "unit": spec.action.unit,
            },
            "n_obs_steps": spec.n_obs_steps,
            "lags": list(spec.lags),
            "horizon": spec.horizon,
            "n_action_steps": spec.n_action_steps,
            "control_hz": spec.control_hz,
        }
    }


def answer(plan: Plan, row: int, *, infer_ms: float, **ours: Any) -> dict[str, Any]:
    """The answer to the request in row `row` of a plan.

    Args:
        infer_ms: wall time of the policy's call.
        ours: what else is said under ``fastloop``.
    """
    report = plan.report_of(row)
    told: dict[str, Any] = {
        "tick": int(plan.t0[row]),
        "dt": plan.dt,
        "accel": {
            "name": report.name,
            "exact": report.exact,
            "computed": report.computed,
            "reused": report.reused,
            "network_evaluations": report.network_evaluations,
        },
        **ours,
    }
    if plan.text is not None:
        told["text"] = plan.text[row]
    return {
        "actions": plan.actions[row].float().cpu().numpy(),
        "server_timing": {"infer_ms": infer_ms},
        OURS: told,
    }


def _flat(value: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Nested maps by dotted keys; slashes are dots."""
    if depth > MAX_DEPTH:
        raise RequestError(f"observations nest at most {MAX_DEPTH} maps deep")
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise RequestError(f"observations go by texts, got the key {key!r}")
        name = prefix + key.replace("/", ".")
        flat |= _flat(item, f"{name}.", depth + 1) if isinstance(item, dict) else {name: item}
    return flat


def _read(
    wanted: TensorSpec, given: Mapping[str, Any], called: str, frames: int | None
) -> npt.NDArray[Any]:
    name = called.replace("/", ".")
    if name not in given:
        raise RequestError(f"the policy reads {called!r}; the request holds {sorted(given)}")
    try:
        value = np.asarray(given[name])
    except ValueError as error:  # lists of different lengths
        raise RequestError(f"{called}: {error}") from error
    lead = () if frames is None else (frames,)
    shape = (*lead, *wanted.shape)
    last = (*lead, *wanted.shape[1:], *wanted.shape[:1])
    if len(wanted.shape) == 3 and value.shape == last != shape:
        value = np.moveaxis(value, -1, -3)
    if value.shape != shape:
        raise RequestError(f"{called}: the policy reads {shape}, the request holds {value.shape}")
    dtype = np.dtype(wanted.dtype)
    if value.dtype.kind not in "biuf" or not np.can_cast(value.dtype, dtype, "same_kind"):
        raise RequestError(
            f"{called}: the policy reads {dtype.name}, the request holds {value.dtype.name}"
        )
    with np.errstate(over="ignore"):
        value = np.ascontiguousarray(value, dtype)
    if dtype.kind == "f" and not np.isfinite(value).all():
        raise RequestError(f"{called}: not all numbers are finite {dtype.name}")
    return value


def _flag(ours: Mapping[str, Any], name: str) -> bool:
    value = ours.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{name} is true or false, got {value!r}")
    return value


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise RequestError(f"{name} is a whole number, got {value!r}")
    if not 0 <= value < MAX_COUNT:
        raise RequestError(f"{name} is at least 0 and below {MAX_COUNT}, got {value!r}")
    return int(value)


def _key(ours: Mapping[str, Any]) -> tuple[int, int, int] | None:
    if "key" not in ours:
        return None
    value = ours["key"]
    if not isinstance(value, list) or len(value) != 3:
        raise RequestError(f"key is three numbers (seed, episode, tick), got {value!r}")
    seed, episode, tick = (_count(one, "key") for one in value)
    return seed, episode, tick


def _deadline(ours: Mapping[str, Any]) -> float | None:
    if "deadline_ms" not in ours:
        return None
    value = ours["deadline_ms"]
    if not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise RequestError(f"deadline_ms is a finite number above 0, got {value!r}")
    return float(value) / 1e3


def _executed(ours: Mapping[str, Any], dim: int) -> npt.NDArray[Any] | None:
    if "executed" not in ours:
        return None
    value = ours["executed"]
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] != dim:
        shape = getattr(value, "shape", type(value).__name__)
        raise RequestError(f"executed is an array (n, {dim}) of actions, got {shape}")
    if value.dtype.kind in "iuf":
        with np.errstate(over="ignore"):
            value = value.astype(np.float32)
        if np.isfinite(value).all():
            return value
    raise RequestError("executed: not all are finite numbers")
