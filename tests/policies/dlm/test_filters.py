"""Files of filters: all of it comes back, and what is damaged is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastloop.accel.decoding.commits import BlockFilter, Calibration
from fastloop.policies.dlm.filters import load_filter, save_filter


def made_for(calibration):
    slots = calibration.block_size
    return BlockFilter(
        calibration, torch.eye(slots), torch.zeros(slots), 2 * torch.eye(slots), torch.ones(slots)
    )


def test_a_file_holds_all_of_it(tmp_path):
    facts = Calibration("some model", 6, 1234, 0.98)
    made = made_for(facts)
    save_filter(tmp_path / "filter.safetensors", made)
    read = load_filter(tmp_path / "filter.safetensors")
    assert read.calibration == facts
    certain = torch.rand(5, 6)
    assert torch.equal(read(certain), made(certain))


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "filter.safetensors"
    with pytest.raises(ValueError, match="cannot be read"):
        load_filter(path)
    save_filter(path, made_for(Calibration("x", 6)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be read"):
        load_filter(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no filter"):
        load_filter(path)
    facts = {"format": "fastloop block filter 1"}
    for calibration in (
        "{",
        "[]",
        json.dumps({"digest": "x"}),
        json.dumps({"digest": "x", "block_size": 3}),
    ):
        save_file({"bias": torch.zeros(1)}, path, metadata=facts | {"calibration": calibration})
        with pytest.raises(ValueError, match="damaged filter"):
            load_filter(path)
