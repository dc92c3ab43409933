"""LeRobot datasets, versions 1 to 3: read, and written as version 3."""

from fastloop.datasets.lerobot.reader import read
from fastloop.datasets.lerobot.writer import write

__all__ = ["read", "write"]
