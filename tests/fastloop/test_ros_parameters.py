"""ROS 2 parameter files: whose they are, what they may say, and that mistakes are said in words."""

import pytest

from fastloop.deploy.config import DeployConfig
from fastloop.ros_parameters import with_parameters

TEXT = """
/**:
  ros__parameters: {hz: 5, use_sim_time: true, joints: [a, b]}
fastloop:
  ros__parameters:
    hz: 20.0
    state: {topic: /odom}
    limits: {speed: 3.0}
other:
  ros__parameters: {hz: 1.0}
"""


def test_settings_of_the_node_over_those_of_all(tmp_path):
    (tmp_path / "params.yaml").write_text(TEXT)
    deploy = with_parameters(DeployConfig(deadline_ms=30.0), tmp_path / "params.yaml")
    assert (deploy.hz, deploy.use_sim_time, deploy.joints) == (20.0, True, ["a", "b"])
    assert deploy.state.topic == "/odom"
    assert deploy.limits == {"speed": 3.0}
    assert deploy.deadline_ms == 30.0
    assert with_parameters(DeployConfig(node="/other"), tmp_path / "params.yaml").hz == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no YAML"),
        ("- 1", "has no ros__parameters of /fastloop .*; it speaks of nothing"),
        ("/other: {ros__parameters: {hz: 1}}", "it speaks of /other"),
        ("fastloop: {hz: 1}", "has no ros__parameters"),
        ("fastloop: {ros__parameters: {herz: 1}}", "'herz' not in 'DeployConfig'"),
        ("fastloop: {ros__parameters: {hz: often}}", "params.yaml: .*often"),
        ("fastloop: {ros__parameters: {hz: !!python/object/apply:os.getcwd []}}", "is no YAML"),
    ],
)
def test_mistakes(tmp_path, text, words):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        with_parameters(DeployConfig(), tmp_path / "params.yaml")
