"""`fastloop info` of a vision-language model's folder."""

import json

import pytest

from fastloop import cli
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.vla.checkpoint import load_vlm
from fastloop.vlm_description import describe_vlm


def copied(folder, to, **changes):
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    told = json.loads((to / "fastloop.json").read_text()) | changes
    (to / "fastloop.json").write_text(json.dumps(told))
    return to


def test_what_is_told(vlm_folder):
    found = describe_vlm(vlm_folder, keys=True)
    network = load_vlm(vlm_folder).network
    assert found["parameters"] == sum(weight.numel() for weight in network.parameters())
    assert 0 < found["of which vision"] < found["parameters"]
    assert list(found["inputs"])[2:] == [
        "observation.images.front_left", "observation.images.front",
    ]  # fmt: skip
    assert found["regime"] == "causal_context"
    assert found["schema"] == "tiny"
    assert found["ids"]["stop"] is None
    assert found["decoding"].split(", ") == [
        "ar", "jump_forward", "denoise", "hierarchical", "flash_block", "tidar", "self_speculative",
        "scaffold_speculative", "layer_skip",
    ]  # fmt: skip
    # Two flags; two points of two numbers, each a sign, a digit, a point and a digit.
    assert "2 of them values, in 1 block" in found["sections"]["flags"]
    assert "16 of them values, in 3 blocks" in found["sections"]["trajectory"]
    tokens = [int(told.split()[0]) for told in found["sections"].values()]
    assert found["answer"] == f"{sum(tokens)} tokens, 18 of them values"
    assert found["keys"]["model.language_model.norm.weight"] == [32]
    assert "keys" not in describe_vlm(vlm_folder)


def test_models_that_were_taught_less(vlm_folder, tmp_path):
    found = describe_vlm(copied(vlm_folder, tmp_path, schema=None, regime="causal"))
    assert found["schema"] is None
    assert "sections" not in found
    assert "denoise" not in found["decoding"]
    with pytest.raises(CheckpointError, match="no schema 'nothing'"):
        describe_vlm(copied(vlm_folder, tmp_path, schema="nothing"))


def test_the_verb(vlm_folder, tmp_path, capsys):
    assert cli.main(["info", f"ckpt={vlm_folder}", f"run_dir={tmp_path}"]) == 0
    assert "causal_context" in capsys.readouterr().out
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["metrics"]["parameters"]["value"] == describe_vlm(vlm_folder)["parameters"]
    out = tmp_path / "converted"
    assert cli.main(["info", f"ckpt={vlm_folder}", f"convert={out}"]) == 2
    assert "is a vision-language model: only" in capsys.readouterr().err
    assert not out.exists()
