"""Prompts: the released interface to the letter, pictures as tokens, and what cannot be asked."""

import json

import pytest
import torch

from fastloop.policies.vla.images import PatchConfig
from fastloop.policies.vla.prompt import build_prompt, load_template

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


class Words:
    """A tokenizer of characters, and of special tokens."""

    special = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")

    def encode(self, text):
        ids = []
        while text:
            token = next((s for s in self.special if text.startswith(s)), text[0])
            ids.append(self.special.index(token) if len(token) > 1 else ord(token) + 10)
            text = text.removeprefix(token)
        return ids

    def decode(self, ids):
        return "".join(self.special[i] if i < 10 else chr(i - 10) for i in ids)

    def __len__(self):
        return 2**16


def past(rows=16):
    """(rows, 6): every number tells its row and column."""
    row = torch.arange(rows - 1, -1, -1.0)[:, None]
    return -row - torch.tensor([0.0, 0.01, 0.02, 0.03, 0.04, 0.05])


def test_the_released_prompt_to_the_letter(realdata):
    path = realdata / "wod_e2e_rebuilt" / "fast_ddrive_sample.json"
    template = load_template("fast_ddrive")
    for record in json.loads(path.read_text(encoding="utf-8")):
        columns = [record[k] for k in ("history waypoints", "velocity", "acceleration")]
        states = torch.cat([torch.tensor(column) for column in columns], 1)
        intent = template.commands.index(record["navigation_command"])
        asked = record["conversations"][0]["value"].replace("<image>", 3 * PICTURE)
        assert template.write(states, intent, 3) == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        )


def test_which_states_are_told():
    """Row by row at 4 Hz: every fourth from now backward, every second for the released one."""
    short = load_template("short").write(past(), 1, 0).split("\n")
    assert [line.split("[")[1].split(",")[0] for line in short if "v [" in line] == [
        "-12.0", "-8.0", "-4.0", "-0.0",
    ]  # fmt: skip
    assert [line.split("s")[0] for line in short if "v [" in line] == ["-3", "-2", "-1", "+0"]
    released = load_template("fast_ddrive").write(past(), 1, 0)
    assert "(t-3.0s) [-12.00, -12.01], Acceleration: X -12.04, Y -12.05" in released
    assert "Velocity: X -12.02, Y -12.03 m/s,; (t-2.5s) [-10.00" in released
    assert "(t+0.0s) [-0.00, -0.01]" in released


@pytest.mark.parametrize("name", ["short", "fast_ddrive"])
def test_commands(name):
    template = load_template(name)
    words = [template.write(past(), intent, 1) for intent in range(4)]
    assert len(set(words)) == 4
    assert all(("left" in words[2].lower(), "right" in words[3].lower()))


def test_pictures_become_tokens():
    frames = [torch.zeros(3, 56, 84, dtype=torch.uint8), torch.zeros(3, 28, 28, dtype=torch.uint8)]
    config = PatchConfig(28 * 28, 10**6)
    prompt = build_prompt(
        load_template("short"), Words(), config, frames=frames, states=past(), intent=1
    )
    words = Words().decode(prompt.ids.tolist())
    assert words.startswith(
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
        "<|vision_start|><|image_pad|><|vision_end|>\ncommand: go straight\n"
    )
    assert prompt.grid.tolist() == [[1, 4, 6], [1, 2, 2]]
    assert prompt.pixels.shape == (28, 1176)
    assert prompt.ids.dtype == torch.int64


def test_a_past_that_is_no_number():
    states = past()
    states[3, 1] = torch.nan  # 3 s ago
    states[0] = torch.inf  # not told
    with pytest.raises(ValueError, match=r"observation.ego_states is nan at y, 3 s ago"):
        load_template("short").write(states, 1, 3)
    states[3, 1], states[15, 5] = 0, torch.inf
    with pytest.raises(ValueError, match=r"observation.ego_states is inf at ay, 0 s ago"):
        load_template("fast_ddrive").write(states, 1, 3)


def test_too_short_a_past():
    with pytest.raises(ValueError, match=r"is \(12, 6\).*4 states 1.0 s apart: at least \(13, 6\)"):
        load_template("short").write(past(12), 1, 3)
    load_template("short").write(past(13), 1, 3)


@pytest.mark.parametrize("intent", [-1, 4])
def test_an_intent_that_is_none(intent):
    with pytest.raises(ValueError, match=rf"observation.intent is {intent}, expected 0 to 3"):
        load_template("short").write(past(), intent, 3)


@pytest.mark.parametrize("name", ["nothing", "../prompts/short", ""])
def test_an_unknown_template(name):
    with pytest.raises(ValueError, match=r"there is no prompt .* have: fast_ddrive, short"):
        load_template(name)
