"""`fastloop bench shape` on a network of debug size: what it measures, and when it is silent."""

import json

import pytest
import torch

from fastloop import cli
from fastloop.accel.decoding.captured import Captured
from fastloop.bench.shape import arms, passes
from fastloop.bench.shape.network import random_model, random_prompt
from fastloop.policies.dlm.fused import Fused

pytest.importorskip("transformers", reason="its network is of transformers (extra vla)")

TEXT = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}  # fmt: skip
ARCH = {
    "tie_word_embeddings": True, "image_token_id": 120, "video_token_id": 121,
    "vision_start_token_id": 122, "vision_end_token_id": 123, "text": TEXT, "vision": VISION,
}  # fmt: skip


def written(value):
    """As Hydra reads it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


QUICK = [
    "~arch.text", "~arch.vision", f"++arch={written(ARCH)}", "contexts=[40,50]", "pictures=[[4,6]]",
    "tokens=[1,5]", "fork_tokens=5", "forks=[2,3]", "room=20", "repeats=2", "block=2", "prompts=2",
    "bandwidth_mib=1", "device=cpu",
]  # fmt: skip


def bench(folder, *overrides):
    return cli.main(["bench", "shape", f"run_dir={folder}", *QUICK, *overrides])


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_pass_is_measured(tmp_path, capfd, monkeypatch, dtype):
    monkeypatch.setenv("COLUMNS", "200")
    assert bench(tmp_path, "arms=[eager,graphs,float8]", f"dtype={dtype}") == 0
    told, found = result(tmp_path), result(tmp_path)["metrics"]
    for arm in ("eager", "graphs"):
        assert 0 < found[f"logit_error_{arm}"]["value"] < 0.05
        for context in (40, 50):
            assert found[f"prefill_ms_{arm}_{context}"]["n"] == 2
            for new in (1, 5):
                assert found[f"forward_ms_{arm}_{context}_{new}"]["value"] > 0
            for count in (2, 3):
                assert found[f"branches_ms_{arm}_{context}_{count}"]["n"] == 2
                assert found[f"fork_ms_{arm}_{context}_{count}"]["value"] > 0
        for whose, count in {"small": 26.3, "published": 82.4}.items():
            projection = found[f"projection_plan_ms_{arm}_fast_ddrive_{whose}"]
            prefill = found[f"prefill_ms_{arm}_40"]["value"]
            assert projection["value"] == pytest.approx(
                prefill + count * found[f"forward_ms_{arm}_40_5"]["value"]
            )
            assert "projection" in projection["unit"]
    width = 4 if dtype == "float32" else 2
    row = 2 * 2 * 2 * 8 * width  # of a token: two layers, keys and values, two heads of eight
    assert found["kept_bytes_40"]["value"] == 40 * row
    assert found["fork_bytes_40_3"]["value"] == 3 * 5 * row
    assert found["fork_reserved_bytes_40_3"]["value"] >= found["fork_bytes_40_3"]["value"]
    layers = 2 * (32 * 64 + 64 + 32 * 32 + 3 * 32 * 48 + 64)
    assert found["forward_bytes_graphs_40_5"]["value"] == (layers + 128 * 32) * width + 40 * row
    assert found["memory_peak"]["value"] is None
    assert list(told["provenance"]["left_out"]) == ["float8"]
    printed = capfd.readouterr().out
    assert "PROJECTION, not measured" in printed
    assert "CUDA graphs are of CUDA devices" in printed


def test_an_arm_that_says_something_else_is_not_timed(tmp_path, capfd, monkeypatch):
    class Wrong(Fused):
        def head(self, hidden):
            return super().head(hidden) * 1.001

    monkeypatch.setitem(arms.ARMS, "graphs", lambda model: Captured(Wrong(model)))
    assert bench(tmp_path, "arms=[eager,graphs]") == 1
    found = result(tmp_path)
    assert found["provenance"]["refused"] == ["graphs"]
    assert found["metrics"]["logit_error_graphs"]["value"] == pytest.approx(1e-3, rel=0.1)
    assert not [name for name in found["metrics"] if name.startswith("forward_ms_graphs")]
    assert [name for name in found["metrics"] if name.startswith("forward_ms_eager")]
    assert "it was not timed" in capfd.readouterr().out


def test_passes_leave_the_context_as_it_was():
    model = random_model(ARCH, torch.float32, torch.device("cpu"))
    assert not model.network.training
    prompt = random_prompt(model, 40, [[4, 6]], 0)
    assert len(prompt.ids) == 40
    assert (prompt.ids == model.place).sum() == 6
    context = model.prefill([prompt], room=9)
    one = passes.Pass(model, context, 5)
    assert torch.equal(one(), one())
    assert context.kv.length == 40


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arms=[graphs]", "the first arm is eager"),
        ("arms=[eager,fast]", "unknown arm 'fast'"),
        ("contexts=[]", "contexts names none"),
        ("tokens=[5,5]", "each once"),
        ("tokens=[5,200]", "up to 128"),
        ("fork_tokens=4", "none of tokens"),
        ("room=4", "no room"),
        ("repeats=0", "at least 1"),
        ("contexts=[7]", "does not hold pictures"),
        ("arch.text.num_attention_heads=5", "no Qwen2.5-VL can be built"),
    ],
)
def test_what_it_refuses(tmp_path, capfd, override, message):
    assert bench(tmp_path, override) == 2
    assert message in capfd.readouterr().err
