import shlex

import pytest
import yaml

from fastloop.policies.vla.serving import launch_command


def test_sglang_with_an_algorithm():
    launch = launch_command(
        "sglang", "/models/sdar", port=31000, algorithm="LowConfidence",
        parameters={"threshold": 0.9, "block_size": 4}, config_path="/tmp/decoding.yaml",
    )  # fmt: skip
    assert shlex.join(launch.argv) == (
        "python -m sglang.launch_server --model-path /models/sdar --host 127.0.0.1 --port 31000 "
        "--dllm-algorithm LowConfidence --dllm-algorithm-config /tmp/decoding.yaml"
    )
    assert set(launch.files) == {"/tmp/decoding.yaml"}
    assert yaml.safe_load(launch.files["/tmp/decoding.yaml"]) == {"threshold": 0.9, "block_size": 4}


def test_sglang_without_parameters_and_without_an_algorithm():
    launch = launch_command("sglang", "m", algorithm="SpeculativeBlock")
    assert launch.argv[-2:] == ("--dllm-algorithm", "SpeculativeBlock")
    assert not launch.files
    assert "--dllm-algorithm" not in launch_command("sglang", "Qwen/Qwen2.5-VL-3B-Instruct").argv


def test_vllm():
    launch = launch_command("vllm", "a model", parameters={"canvas_length": 256})
    assert launch.argv == (
        "vllm", "serve", "a model", "--host", "127.0.0.1", "--port", "30000",
        "--diffusion-config", '{"canvas_length": 256}',
    )  # fmt: skip
    assert launch_command("vllm", "m").argv[-1] == "30000"


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("tgi", {}, "have: sglang, vllm"),
        ("sglang", {"algorithm": "Magic"}, "have: LowConfidence"),
        ("sglang", {"algorithm": "LowConfidence", "parameters": {"tau": 1}}, "takes: threshold"),
        ("sglang", {"parameters": {"threshold": 1}}, "takes: none"),
        ("vllm", {"algorithm": "LowConfidence"}, "must be None"),
        ("vllm", {"parameters": {"threshold": 1}}, "takes: canvas_length"),
        ("vllm", {"port": 0}, "1 to 65535"),
    ],
)
def test_what_an_engine_does_not_know(engine, options, said):
    with pytest.raises(ValueError, match=said):
        launch_command(engine, "m", **options)


@pytest.mark.parametrize("model", ["", "--trust-remote-code"])
def test_a_model_is_no_option(model):
    with pytest.raises(ValueError, match="model must be"):
        launch_command("vllm", model)
