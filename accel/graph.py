"""A function of tensors that is recorded once for each shape of its arguments, and then replayed.

A small network on a GPU waits for Python: thousands of launches of a few microseconds each. A CUDA
graph is all of them as one. It reads and writes the same memory at every replay, so arguments are
copied in and results copied out.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

import torch

__all__ = ["CudaRecorder", "Graph", "Recorder", "recording"]

Tensors = tuple[torch.Tensor | None, ...]  # None where a function takes or gives nothing
Function = Callable[..., Tensors]

WARM_UP = 3  # calls before a capture: libraries choose their kernels and allocate workspace

_RECORDING: ContextVar[bool] = ContextVar("recording", default=False)


@contextmanager
def recording() -> Iterator[None]:
    """Inside, in this thread, shapes that are new are recorded. Anywhere else they run as they are:
    recording takes several calls' time, which nobody who is served should wait for."""
    token = _RECORDING.set(True)
    try:
        yield
    finally:
        _RECORDING.reset(token)


class Recorder(Protocol):
    """How a call is recorded."""

    def warm_up(self, call: Callable[[], Tensors]) -> None:
        """Make the call a few times, and wait for it."""
        ...

    def capture(self, call: Callable[[], Tensors]) -> tuple[Callable[[], object], Tensors]:
        """Record the call: what replays it, and the tensors that it then writes.

        Raises:
            RuntimeError: it does what cannot be recorded.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs, on streams of their own.

    Args:
        device: where the call works.
    """

    _one_at_a_time = threading.Lock()  # captures in a process, as torch asks for

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def warm_up(self, call: Callable[[], Tensors]) -> None:
        """See `Recorder.warm_up`."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call()
        stream.synchronize()

    def capture(self, call: Callable[[], Tensors]) -> tuple[Callable[[], object], Tensors]:
        """See `Recorder.capture`."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with (
            self._one_at_a_time,
            torch.cuda.stream(stream),  # `torch.cuda.graph` does not leave its own where it fails
            # Other threads may go on using the device: only this one is held to the rules.
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            outputs = call()
        return graph.replay, outputs


class Graph:
    """`function`, recorded for each set of shapes, dtypes and devices that comes up in `recording`.

    The function's work may not depend on the values of its arguments, and what else it reads may
    not change. Its results are new tensors, as if it had been called. A recording that fails is
    warned of once, naming the cause, and these shapes run as they are from then on.

    Args:
        function: tensors to tensors.
        recorder: how it is recorded.
    """

    def __init__(self, function: Function, recorder: Recorder) -> None:
        self.function = function
        self.recorder = recorder
        self._recorded: dict[tuple[object, ...], _Recorded | str] = {}
        self._lock = threading.Lock()  # two threads must not share the static tensors

    def __call__(self, *arguments: torch.Tensor | None) -> tuple[Tensors, str]:
        """The function's results, and why no recording was replayed; empty where one was."""
        key = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in arguments)
        with self._lock:
            if key not in self._recorded and _RECORDING.get():
                self._recorded[key] = self._record(arguments)
            recorded = self._recorded.get(key)
            if isinstance(recorded, _Recorded):
                return recorded(arguments), ""
        unknown = f"no CUDA graph was prepared for {_shapes(arguments)}"
        return self.function(*arguments), recorded or unknown

    def _record(self, arguments: Tensors) -> _Recorded | str:
        static = tuple(None if x is None else x.clone() for x in arguments)

        def call() -> Tensors:
            return self.function(*static)

        self.recorder.warm_up(call)
        try:
            return _Recorded(static, *self.recorder.capture(call))
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # ending a broken capture raises once more
                cause = cause.__context__
            first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            told = f"the CUDA graph of {_shapes(arguments)} could not be captured: {first}"
            warnings.warn(f"{told}; it runs without one, slower", RuntimeWarning, stacklevel=4)
            return told


class _Recorded(NamedTuple):
    """One recording, and the tensors that it reads and writes."""

    inputs: Tensors
    replay: Callable[[], object]
    outputs: Tensors

    def __call__(self, arguments: Tensors) -> Tensors:
        for static, given in zip(self.inputs, arguments, strict=True):
            if static is not None and given is not None:
                static.copy_(given)
        self.replay()
        return tuple(None if x is None else x.clone() for x in self.outputs)


def _shapes(arguments: Tensors) -> str:
    return " and ".join(str(tuple(x.shape)) for x in arguments if x is not None)
