"""`make demo-vehicle`: another process replays a drive from a bag, and a node plans along it.

``python -m fastloop.vehicle_demo [drive]``, where drive is a recording of any format that is read
(comma2k19, nuScenes, Argoverse 2, ...); without one a drive is generated.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import yaml

from fastloop.cli import configure
from fastloop.config import RunVerbConfig
from fastloop.deploy.bags.from_drive import CAMERA, ODOMETRY, bag_of_drive
from fastloop.deploy.bags.reading import read_bag
from fastloop.deploy.messages import Messages
from fastloop.run_folder import make_run_dir
from fastloop.usage import USER_ERRORS
from fastloop.verbs.run import run

__all__ = ["main"]

SECONDS = 30.0
MARGIN_S = 1.0  # by which the drive outlasts the node
HIGHWAY = 45.0  # m/s, as fast as any recorded drive


def main(drive: str | None = None, *, seconds: float = SECONDS) -> int:
    """Make the bag, replay it in a process of its own, and run the node until shortly before it
    ends; returns the exit code.

    Raises:
        ValueError: the drive cannot be read, or is too short.
    """
    folder = make_run_dir("demo-vehicle", None)
    bag = folder / "drive.mcap"
    count = bag_of_drive(bag, Messages(), drive, seconds=seconds + MARGIN_S)
    lasts, pictures = _inside(bag)
    if lasts <= 2 * MARGIN_S:
        raise ValueError(f"{drive} lasts {lasts:.1f} s; {2 * MARGIN_S:g} s are too few to show")
    print(f"{count} messages of {drive or 'a generated drive'}, {lasts:.0f} s, in {bag}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{free.getsockname()[1]}"
    params = folder / "params.yaml"
    camera = {"camera": {"topic": CAMERA, "type": "sensor_msgs/msg/CompressedImage"}}
    said = {
        "state": {"topic": ODOMETRY}, "frame": "odom", "inputs": camera if pictures else {},
        "limits": {"speed": HIGHWAY},
    }  # fmt: skip
    params.write_text(yaml.safe_dump({"fastloop": {"ros__parameters": said}}))
    config = configure("run", [
        "policy=constant_turn_rate", "film=true", f"duration_s={lasts - MARGIN_S:.1f}",
        f"run_dir={folder}", f"params={params}",
        f"deploy.zenoh.listen=[{endpoint}]", "deploy.zenoh.connect=[]",
    ])  # fmt: skip
    assert isinstance(config, RunVerbConfig)
    source = Source([sys.executable, "-m", "fastloop.deploy.bags.replaying", str(bag), endpoint])
    try:
        code = run(config, listening=source.start)
    finally:
        source.end()
    return code or source.code


def _inside(bag: Path) -> tuple[float, bool]:
    """Seconds from a bag's first odometry to its last, and whether it holds pictures."""
    stamps, pictures = [0], False
    for sample in read_bag(bag, {ODOMETRY, CAMERA}):
        pictures = pictures or sample.topic == CAMERA
        if sample.topic == ODOMETRY:
            stamps.append(sample.received_ns)
    return (stamps[-1] - stamps[min(1, len(stamps) - 1)]) / 1e9, pictures


class Source:
    """The process that replays; a node that would wait for it forever is stopped when it fails.

    Attributes:
        code: with which it failed; 0 while it has not.
    """

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.code = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def start(self) -> None:
        """Once the node listens."""
        self._process = subprocess.Popen(self.command)
        threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        if (code := process.wait()) and not self._ended:
            self.code = code if code > 0 else 1
            print(f"what replays the drive has failed with code {code}", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGTERM)

    def end(self) -> None:
        """It is wanted no longer."""
        self._ended = True
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


if __name__ == "__main__":
    try:
        if len(sys.argv) > 2:
            raise ValueError(f"one drive at most, got {', '.join(sys.argv[1:])}")
        sys.exit(main(*sys.argv[1:]))
    except USER_ERRORS as error:
        print(f"demo-vehicle: {error}", file=sys.stderr)
        sys.exit(2)
