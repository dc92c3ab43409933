"""`make demo-vehicle`: another process replays a drive from a bag, and a node plans along it.

``python -m fastloop.vehicle_demo [drive]``, where drive is a recording of any format that is read
(comma2k19, nuScenes, Argoverse 2, ...); without one a drive is generated.
"""

from __future__ import annotations

import socket
import subprocess
import sys

from fastloop.cli import configure
from fastloop.config import RunVerbConfig
from fastloop.deploy.bags.from_drive import bag_of_drive
from fastloop.deploy.messages import Messages
from fastloop.run_folder import make_run_dir
from fastloop.verbs.run import run

__all__ = ["main"]

SECONDS = 30.0


def main(drive: str | None = None) -> int:
    """Make the bag, replay it in a process of its own, and run the node until it ends."""
    folder = make_run_dir("demo-vehicle", None)
    bag = folder / "drive.mcap"
    count = bag_of_drive(bag, Messages(), drive, seconds=SECONDS)
    print(f"{count} messages of {drive or 'a generated drive'} in {bag}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "fastloop.deploy.bags.replaying", str(bag), endpoint]
    sources: list[subprocess.Popen[bytes]] = []
    config = configure("run", [
        "policy=constant_turn_rate", "film=true", f"duration_s={SECONDS}", f"run_dir={folder}",
        "deploy.state.topic=/odometry", "deploy.frame=odom",
        f"deploy.zenoh.listen=[{endpoint}]", "deploy.zenoh.connect=[]",
    ])  # fmt: skip
    assert isinstance(config, RunVerbConfig)
    try:
        return run(config, listening=lambda: sources.append(subprocess.Popen(command)))
    finally:
        for source in sources:
            source.terminate()
            source.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
