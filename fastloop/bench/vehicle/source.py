"""A process that sends an image and odometry: ``python -m fastloop.bench.vehicle.source``."""

from __future__ import annotations

import sys
import time

import numpy as np

from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.zenoh import ZenohConfig, ZenohTransport

CAMERA, STATE = "/camera", "/odometry"
SPEED = 8.0  # m/s


def main(endpoint: str, hz: float, width: int, height: int) -> None:
    """Send until the process is ended.

    Args:
        endpoint: to connect to.
        hz: messages a second on either topic.
        width, height: of the image.
    """
    messages = Messages()
    transport = ZenohTransport(messages, ZenohConfig("/source", listen=(), connect=(endpoint,)))
    camera = transport.publisher(CAMERA, "sensor_msgs/msg/Image")
    state = transport.publisher(STATE, "nav_msgs/msg/Odometry")
    image_type = messages.type("sensor_msgs/msg/Image")
    pixels = np.random.default_rng(0).integers(0, 256, 3 * width * height, dtype=np.uint8)
    began = due = time.monotonic()
    while True:
        due += 1 / hz
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.time_ns()
        gone = SPEED * (time.monotonic() - began)
        header = messages.header(now, "camera")
        camera.publish(image_type(header, height, width, "rgb8", 0, 3 * width, pixels), now)
        state.publish(make_odometry(messages, now, np.array([gone, 0.0, 0.0, SPEED])), now)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
