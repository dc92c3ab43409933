"""Who does the pieces of a scoring run: this process, several processes, or Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from fastloop.datasets.benchmark import Benchmark
from fastloop.extras import require
from fastloop.score.pieces import Job, Piece, Scored, World
from fastloop.sims.interrupts import die_with_parent

__all__ = ["WORKERS", "do_pieces"]

WORKERS = ("process", "ray")


def do_pieces(
    job: Job,
    pieces: Sequence[Piece],
    *,
    worker: str,
    workers: int,
    benchmark: Benchmark | None = None,
) -> Iterator[Scored]:
    """Do all pieces, in any order; each comes out the same whoever does it.

    Args:
        worker: ``process`` or ``ray`` (a cluster where ``RAY_ADDRESS`` names one).
        workers: how many; 0 is one a core where a policy is asked, and else one: opening the data
            once more takes longer than scoring plans that are there. One ``process`` is this one.
        benchmark: the job's, as this process has opened it.

    Raises:
        ValueError: for another kind of worker.
        OSError: a worker died; the pieces that came out are good.
    """
    if worker not in WORKERS:
        raise ValueError(f"unknown worker {worker!r}; have: {', '.join(WORKERS)}")
    if not pieces:
        return
    cores = 1 if job.policy is None else os.cpu_count() or 1
    count = min(workers or cores, len(pieces))
    if worker == "ray":
        yield from _by_ray(job, pieces, count)
    elif count == 1:
        world = World(job, benchmark)
        yield from map(world.do, pieces)
    else:
        yield from _by_processes(job, pieces, count)


def _by_processes(job: Job, pieces: Sequence[Piece], count: int) -> Iterator[Scored]:
    # Fresh interpreters: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(job, os.getpid()))
    try:
        for done in as_completed([pool.submit(_do, piece) for piece in pieces]):
            yield done.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process died (out of memory?); fewer workers need less: workers=1"
        ) from error
    except BaseException:  # Ctrl-C must not wait for pieces that take minutes
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_job: Job
_world: World | None = None


def _start(job: Job, parent: int) -> None:
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if not die_with_parent(parent):
        os._exit(1)
    _job = job


def _do(piece: Piece) -> Scored:
    global _world
    if _world is None:  # here, so that what goes wrong is told and not only fatal
        _world = World(_job)
    return _world.do(piece)


def _by_ray(job: Job, pieces: Sequence[Piece], count: int) -> Iterator[Scored]:
    ray = require("ray", extra="scale")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    if ours and "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    elif ours:
        ray.init(
            num_cpus=count, include_dashboard=False, log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
    try:
        actors = [ray.remote(World).remote(job) for _ in range(count)]
        yield from ray.util.ActorPool(actors).map_unordered(
            lambda actor, piece: actor.do.remote(piece), pieces
        )
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    finally:
        if ours:
            ray.shutdown()
