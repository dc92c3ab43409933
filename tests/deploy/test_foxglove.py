"""The layout for Foxglove: panels that exist, and only what the node hears, says and counts."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.deploy.config import DeployConfig, InputConfig
from fastloop.deploy.foxglove import foxglove_layout

spec = importlib.util.spec_from_file_location("node", Path(__file__).with_name("test_node.py"))
node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node)

VEHICLE = DeployConfig(
    state=InputConfig("/odometry", "nav_msgs/msg/Odometry"),
    inputs={
        "ego": InputConfig(reads="ego_states"),
        "front": InputConfig("/camera/front", "sensor_msgs/msg/CompressedImage"),
        "left": InputConfig("/camera/left", "sensor_msgs/msg/Image"),
        "route": InputConfig("/route", "nav_msgs/msg/Path", None),
        "command": InputConfig("/command", "std_msgs/msg/UInt8", None),
    },
    outputs={
        "/planning/trajectory": "autoware_planning_msgs/msg/Trajectory",
        "/planning/path": "nav_msgs/msg/Path",
    },
    frame="odom",
)
BLIND = DeployConfig(
    state=InputConfig("/odometry", "nav_msgs/msg/Odometry"),
    outputs={"/planning/path": "nav_msgs/msg/Path"},
)
ARM = DeployConfig(
    body="arm",
    state=InputConfig("/joint_states", "sensor_msgs/msg/JointState"),
    outputs={"/controller/joint_trajectory": "trajectory_msgs/msg/JointTrajectory"},
)


def texts(value):
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


def topics(layout):
    """Everything that is, or begins with, the name of a topic."""
    return {text.split(".")[0] for text in texts(layout["configById"]) if text.startswith("/")}


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (VEHICLE, {"/camera/front", "/camera/left", "/planning/path", "/route", "/diagnostics"}),
        (BLIND, {"/planning/path", "/diagnostics"}),
        (ARM, {"/joint_states", "/diagnostics"}),
    ],
)
def test_it_shows_topics_of_the_node_only(config, shown):
    layout = json.loads(json.dumps(foxglove_layout(config)))
    own = {config.state.topic, *config.outputs, "/diagnostics"}
    own |= {one.topic for one in config.inputs.values()}
    assert topics(layout) == shown
    assert shown <= own


@pytest.mark.parametrize("config", [VEHICLE, BLIND, ARM])
def test_every_panel_has_its_place_once(config):
    layout = foxglove_layout(config)
    assert set(layout) >= {"configById", "layout", "globalVariables", "userNodes"}

    def leaves(place):
        if isinstance(place, str):
            return [place]
        assert set(place) == {"direction", "splitPercentage", "first", "second"}
        assert place["direction"] in ("row", "column")
        assert 0 < place["splitPercentage"] < 100
        return leaves(place["first"]) + leaves(place["second"])

    assert sorted(leaves(layout["layout"])) == sorted(layout["configById"])
    kinds = {name.split("!")[0] for name in layout["configById"]}
    assert kinds <= {"Image", "3D", "DiagnosticSummary", "Plot"}


def test_plans_are_shown_in_their_frame():
    assert foxglove_layout(VEHICLE)["configById"]["3D!plan"]["fixedFrame"] == "odom"


def test_every_value_that_is_plotted_is_one_that_the_node_tells():
    world = node.World()
    world.node.run(ticks=20)
    told = {pair.key for pair in world.health[-1].values}
    plotted = re.findall(r'key=="([^"]*)"', " ".join(texts(foxglove_layout(VEHICLE))))
    assert len(plotted) >= 9
    assert set(plotted) <= told
