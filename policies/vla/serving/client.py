"""A client of engines that speak OpenAI's chat completions (SGLang, vLLM and their forks)."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fastloop.policies.vla.serving.connection import Address, connect

__all__ = ["Completion", "EngineClient", "EngineError", "Fault", "Sampling"]

OURS = ("model", "messages", "stream", "n")
SHOWN = 200  # characters of what a server said that an error repeats


class Fault(StrEnum):
    """Why there is no answer."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    STATUS = "status"
    REDIRECT = "redirect"
    PROTOCOL = "protocol"
    CONTENT_TYPE = "content_type"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated"
    NOT_JSON = "not_json"
    NO_TEXT = "no_text"


class EngineError(RuntimeError):
    """An engine gave no answer.

    Attributes:
        fault: which kind of failure.
        retry_s: seconds after which trying again makes sense; None where it does not.
    """

    def __init__(self, fault: Fault, message: str, *, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.fault = fault
        self.retry_s = retry_s


@dataclass(frozen=True)
class Sampling:
    """How an engine picks tokens.

    Attributes:
        temperature: 0 takes the most likely one.
        top_p: share of the probability that is sampled from.
        max_tokens: longest answer.
        seed: of the engine's noise; None leaves it to the engine.
        extra: further members of the request, as the engine documents them.

    Raises:
        ValueError: for numbers out of range, and for extra members that the client sets itself or
            that are no JSON.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1 and self.max_tokens > 0):
            raise ValueError(
                "temperature must be at least 0, top_p within (0, 1] and max_tokens positive, got "
                f"{self.temperature}, {self.top_p} and {self.max_tokens}"
            )
        if taken := sorted({*OURS, "temperature", "top_p", "max_tokens", "seed"} & {*self.extra}):
            raise ValueError(f"extra may not set {', '.join(taken)}")
        try:
            json.dumps(self.members(), allow_nan=False)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"extra holds what JSON cannot: {error}") from None

    def members(self) -> dict[str, Any]:
        """As members of a request."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            **seed,
            **self.extra,
        }


@dataclass(frozen=True)
class Completion:
    """What an engine wrote.

    Attributes:
        text: the answer.
        latency_ms: from the call until the answer was there, attempts that failed included.
        usage: counts of tokens, as far as the engine tells them.
        finish_reason: ``length`` where the answer was cut off.
        attempts: requests that it took.
    """

    text: str
    latency_ms: float
    usage: Mapping[str, int]
    finish_reason: str
    attempts: int


class EngineClient:
    """Asks one model of one server; it keeps no state, and threads may share it.

    A request is tried again where the server is not there, is busy (429) or failed (5xx), after a
    pause that doubles each time or that the server asks for, while there is time. Redirects are
    not followed, and environment variables name no proxy.

    Args:
        base_url: such as ``http://127.0.0.1:30000``; without a path, ``/v1``.
        model: its name at the server.
        allow_remote: whether the server may be another machine, which is then sent the pictures.
        api_key: sent as a bearer token.
        timeout_s: longest time of a call, all attempts together, where none is given.
        attempts: requests at most.
        backoff_s: the first pause.
        max_bytes: longest response that is read.

    Raises:
        ValueError: for numbers out of range, a key that no header can hold, and an address that is
            no URL, cannot be looked up, or is another machine's.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        allow_remote: bool = False,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        attempts: int = 3,
        backoff_s: float = 0.1,
        max_bytes: int = 1 << 20,
    ) -> None:
        if not (0 < timeout_s < math.inf and attempts > 0 and backoff_s >= 0 and max_bytes > 0):
            raise ValueError(
                "timeout_s, attempts and max_bytes must be positive and backoff_s not negative, "
                f"got {timeout_s}, {attempts}, {max_bytes} and {backoff_s}"
            )
        self.address = Address.resolved(base_url, allow_remote=allow_remote)
        self.model = model
        self.timeout_s = timeout_s
        self.attempts = attempts
        self.backoff_s = backoff_s
        self.max_bytes = max_bytes
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise ValueError("api_key must be printable ASCII")
            self._headers["Authorization"] = f"Bearer {api_key}"

    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        sampling: Sampling | None = None,
        deadline_s: float | None = None,
    ) -> Completion:
        """The model's answer to a conversation.

        Args:
            messages: as the protocol has them; see `fastloop.policies.vla.serving.chat`.
            sampling: how tokens are picked.
            deadline_s: seconds until the answer is needed; `timeout_s` where it is None.

        Raises:
            EngineError: where there is none in time.
        """
        begin = time.monotonic()
        until = begin + (self.timeout_s if deadline_s is None else deadline_s)
        members = (sampling or Sampling()).members()
        request = {"model": self.model, "messages": messages, "stream": False, **members}
        body = json.dumps(request, allow_nan=False).encode()
        for attempt in range(1, self.attempts + 1):
            try:
                text, usage, finish_reason = _answer(self._post(body, until))
            except EngineError as error:
                if error.retry_s is None or attempt == self.attempts:
                    raise
                pause = max(error.retry_s, self.backoff_s * 2 ** (attempt - 1))
                if time.monotonic() + pause >= until:
                    raise
                time.sleep(pause)
            else:
                break
        latency_ms = (time.monotonic() - begin) * 1e3
        return Completion(text, latency_ms, usage, finish_reason, attempt)

    def _post(self, body: bytes, until: float) -> bytes:
        """The body of a good response."""
        connection = http.client.HTTPConnection(self.address.host, self.address.port)
        path = f"{self.address.path}/chat/completions"
        try:
            with connect(self.address, until) as connection.sock:
                connection.request("POST", path, body, self._headers)
                response = connection.getresponse()
                length = response.length
                content = response.read(self.max_bytes + 1)
        except TimeoutError:
            raise EngineError(Fault.TIMEOUT, f"{self.address} did not answer in time") from None
        except http.client.IncompleteRead as error:
            raise EngineError(Fault.TRUNCATED, f"{self.address} broke off: {error}") from error
        except ConnectionError as error:
            message = f"{self.address} is not there: {error}"
            raise EngineError(Fault.UNREACHABLE, message, retry_s=0.0) from error
        except OSError as error:
            message = f"{self.address} cannot be reached: {error}"
            raise EngineError(Fault.UNREACHABLE, message) from error
        except http.client.HTTPException as error:
            message = f"{self.address} speaks no HTTP: {error!r:.{SHOWN}}"
            raise EngineError(Fault.PROTOCOL, message) from error
        self._check(response, content)
        if len(content) > self.max_bytes:
            message = f"{self.address} sent more than {self.max_bytes} bytes"
            raise EngineError(Fault.TOO_LARGE, message)
        if length is not None and len(content) < length:
            message = f"{self.address} broke off after {len(content)} of {length} bytes"
            raise EngineError(Fault.TRUNCATED, message)
        return content

    def _check(self, response: http.client.HTTPResponse, content: bytes) -> None:
        status = response.status
        if 300 <= status < 400:
            target = response.headers.get("Location", "")
            message = f"{self.address} redirects to {target!r:.{SHOWN}}; give that address itself"
            raise EngineError(Fault.REDIRECT, message)
        if status != 200:
            retry_s = None
            if status == 429 or status >= 500:
                asked = response.headers.get("Retry-After", "")
                retry_s = float(asked) if asked.isdecimal() and asked.isascii() else 0.0
            message = f"{self.address} says {status}: {_said(content)!r}"
            raise EngineError(Fault.STATUS, message, retry_s=retry_s)
        if (kind := response.headers.get_content_type()) != "application/json":
            message = f"{self.address} sent {kind!r:.{SHOWN}}, expected application/json"
            raise EngineError(Fault.CONTENT_TYPE, message)


def _answer(content: bytes) -> tuple[str, dict[str, int], str]:
    """Text, usage and reason of finishing of a response's body."""
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise EngineError(Fault.NOT_JSON, f"the response is no JSON: {error}") from error
    choice: Any = None
    text = None
    try:
        choice = document["choices"][0]
        text = choice["message"]["content"]
    except (TypeError, KeyError, IndexError):
        pass
    if not isinstance(text, str):
        message = f"no choices[0].message.content in {content.decode()!r:.{SHOWN}}"
        raise EngineError(Fault.NO_TEXT, message)
    usage = document.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = {key: value for key, value in usage.items() if type(value) is int}
    # JSON can escape half a surrogate pair, which nothing can print
    return text.encode(errors="replace").decode(), counts, str(choice.get("finish_reason") or "")


def _said(content: bytes) -> str:
    """A server's own words about an error, shortened."""
    text = content[: 1 << 16].decode(errors="replace")
    try:
        document = json.loads(text)
        inner = document.get("error", document)
        text = inner if isinstance(inner, str) else inner.get("message") or inner["detail"]
    except (ValueError, RecursionError, AttributeError, KeyError):
        pass
    return " ".join(str(text).split())[:SHOWN]
