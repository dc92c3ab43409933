"""The adapter of Qwen2.5-VL: against the network's own forward, in float64."""

import pytest
import torch

from fastloop.accel.decoding import (
    Canvas,
    FlashBlock,
    Pruned,
    SectionDiffusion,
    Speculative,
    decode,
)
from fastloop.accel.decoding.kv import KVCache
from fastloop.policies.dlm.conformance import conformance, table
from fastloop.policies.vla.prompt import Prompt
from fastloop.policies.vla.qwen25vl import Qwen25VL

START, END, IMAGE, MASK = 91, 92, 93, 95
NOTHING = torch.zeros(0, 1176), torch.zeros(0, 3, dtype=torch.int64)


def prompt(*parts, seed=0):
    """A prompt of text lengths (numbers) and pictures (rows, columns of patches)."""
    random = torch.Generator().manual_seed(seed)
    ids, pixels, grid = [], [NOTHING[0]], []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(0, 90, (part,), generator=random).tolist()
            continue
        rows, columns = part
        ids += [START] + [IMAGE] * (rows * columns // 4) + [END]
        pixels.append(torch.randn(rows * columns, 1176, generator=random))
        grid.append((1, rows, columns))
    return Prompt(
        torch.tensor(ids), torch.cat(pixels), torch.tensor(grid, dtype=torch.int64).reshape(-1, 3)
    )


PROMPTS = [
    prompt(7),
    prompt(3, (4, 6), 5),
    prompt(2, (4, 4), (2, 8), 1, (6, 4), 4, seed=1),
    prompt((8, 8), 2, seed=2),
]


@pytest.fixture(scope="module")
def network(tiny_network):
    return tiny_network()


@pytest.fixture
def model(network, tiny_spec):
    return Qwen25VL(network, tiny_spec)


def whole(network, asked, answer):
    """Logits of prompt and answer as the network itself reads them, at once."""
    ids = torch.cat([asked.ids, answer])[None]
    network.model.rope_deltas = None
    pictures = (
        {"pixel_values": asked.pixels, "image_grid_thw": asked.grid} if len(asked.grid) else {}
    )
    with torch.no_grad():
        out = network(
            input_ids=ids, mm_token_type_ids=(ids == IMAGE).int(), use_cache=False, **pictures
        )
    network.model.rope_deltas = None
    return out.logits[0]


def step(model, context, ids, *, window=None):
    """Logits of ids (B, Q), read causally, or as the (Q, Q) `window` says; they are kept."""
    rows, new = ids.shape
    window = torch.ones(new, new).bool().tril() if window is None else window
    mask = torch.cat(
        [context.visible[:, None].expand(-1, new, -1), window.expand(rows, -1, -1)], -1
    )
    positions = context.position[:, None] + torch.arange(new)
    logits = model.forward(ids, positions=positions, mask=mask, kv=context.kv)
    context.visible = torch.cat([context.visible, torch.ones(rows, new).bool()], 1)
    context.position = context.position + new
    return logits


def close(name, a, b):
    worst = float((a - b).abs().max())
    assert worst <= 1e-10, f"{name}: largest difference {worst}"


@pytest.mark.parametrize("asked", PROMPTS)
def test_prefill_and_forward_are_one_pass(network, model, asked):
    answer = torch.randint(0, 90, (9,), generator=torch.Generator().manual_seed(3))
    expected = whole(network, asked, answer)
    context = model.prefill([asked], room=9)
    first = len(asked.ids)
    close("prefill", context.logits[0], expected[first - 1])
    close("five", step(model, context, answer[None, :5])[0], expected[first : first + 5])
    close("one", step(model, context, answer[None, 5:6])[0], expected[first + 5 : first + 6])
    close("three", step(model, context, answer[None, 6:])[0], expected[first + 6 :])
    assert context.kv.length == first + 9


def test_rows_of_different_prompts(network, model):
    """Different lengths and pictures in one batch: each row as if it were alone."""
    answers = torch.randint(0, 90, (len(PROMPTS), 6), generator=torch.Generator().manual_seed(4))
    context = model.prefill(PROMPTS, room=6)
    ours = [context.logits[:, None]]
    ours += [step(model, context, answers[:, :4]), step(model, context, answers[:, 4:])]
    ours = torch.cat(ours, 1)
    for row, asked in enumerate(PROMPTS):
        close(f"row {row}", ours[row], whole(network, asked, answers[row])[len(asked.ids) - 1 :])


def test_branches_are_separate_rows(network, model):
    asked = PROMPTS[2]
    answers = torch.randint(0, 90, (3, 7), generator=torch.Generator().manual_seed(5))
    base = model.prefill([asked], room=7)
    base_logits = base.logits.clone()
    branches = base.fork(3)
    ours = torch.cat(
        [step(model, branches, answers[:, :3]), step(model, branches, answers[:, 3:])], 1
    )
    for row in range(3):
        close(f"branch {row}", ours[row], whole(network, asked, answers[row])[len(asked.ids) :])
    # The row that was branched from goes on by itself.
    close("base", base.logits, base_logits)
    close("base", step(model, base, answers[:1]), ours[:1])


def test_a_block_sees_itself(network, model):
    """A draft pass is the network's own forward under a mask that opens the block to itself."""
    asked = PROMPTS[1]
    block = torch.tensor([11, MASK, MASK, 14])
    context = model.prefill([asked], room=4)
    ours = step(model, context, block[None], window=torch.ones(4, 4).bool())
    ids = torch.cat([asked.ids, block])[None]
    size, start = ids.shape[1], len(asked.ids)
    mask = torch.ones(size, size).bool().tril()
    mask[start:, start:] = True
    positions, _ = network.model.get_rope_index(
        ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=asked.grid
    )
    with torch.no_grad():
        expected = network(
            input_ids=ids, pixel_values=asked.pixels, image_grid_thw=asked.grid,
            attention_mask=mask[None, None], position_ids=positions, use_cache=False,
        ).logits  # fmt: skip
    close("draft", ours, expected[:, start:])


def test_a_draft_leaves_nothing_behind(network, model):
    asked, answer = PROMPTS[1], torch.tensor([1, 2, 3])
    context = model.prefill([asked], room=8)
    visible, position = context.visible, context.position
    step(model, context, torch.full((1, 4), MASK), window=torch.ones(4, 4).bool())
    context.kv.crop(4)
    context.visible, context.position = visible, position
    expected = whole(network, asked, answer)[len(asked.ids) :]
    close("after a draft", step(model, context, answer[None])[0], expected)


def test_positions_shrink_by_pictures(model):
    """A picture of r x c tokens takes up max(r, c) positions: 15 text, 6 + 4 and 8 of pictures."""
    context = model.prefill([prompt(3, (12, 8), 8, (4, 16), 4)], room=1)
    brackets = 4
    assert context.position.tolist() == [15 + brackets + 6 + 8]
    assert model.prefill([prompt(9)], room=1).position.tolist() == [9]


def test_nothing_is_remembered(network, model):
    asked = PROMPTS[1]
    fresh = model.prefill([asked], room=1).logits
    model.prefill([PROMPTS[3]], room=1)
    network.model.rope_deltas = torch.full((1, 1), 77)  # what the network's own forward leaves
    close("logits", model.prefill([asked], room=1).logits, fresh)
    assert int(network.model.rope_deltas) == 77
    network.model.rope_deltas = None


def test_pictures_are_seen_once(network, model, monkeypatch):
    calls = []
    real = network.model.visual.forward
    monkeypatch.setattr(
        network.model.visual, "forward", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    context = model.prefill(PROMPTS, room=4)
    step(model, context, torch.zeros(len(PROMPTS), 4, dtype=torch.int64))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("dtype", "logits"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)]
)
def test_dtypes(tiny_network, tiny_spec, dtype, logits):
    network = tiny_network(dtype)
    context = Qwen25VL(network, tiny_spec).prefill(PROMPTS[:2], room=2)
    out = step(Qwen25VL(network, tiny_spec), context, torch.zeros(2, 2, dtype=torch.int64))
    assert context.logits.dtype == out.dtype == logits
    assert context.kv.read(0)[0].dtype == dtype
    exact = Qwen25VL(tiny_network(), tiny_spec).prefill(PROMPTS[:2], room=2)
    size = exact.logits.std()
    assert (context.logits - exact.logits).abs().max() < (
        0.2 if dtype == torch.bfloat16 else 1e-4
    ) * size


def test_no_prompt(model):
    with pytest.raises(ValueError, match="there is no prompt"):
        model.prefill([], room=1)
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        model.prefill([PROMPTS[0], Prompt(torch.zeros(0, dtype=torch.int64), *NOTHING)], room=1)


def test_pictures_that_do_not_fit_their_tokens(model):
    good = PROMPTS[1]
    bad = Prompt(good.ids[:-7], good.pixels, good.grid)
    with pytest.raises(
        ValueError, match=r"prompt 1 holds 5 picture tokens, its 1 pictures take up 6"
    ):
        model.prefill([good, bad], room=1)


def test_too_long(model):
    with pytest.raises(
        ValueError, match=r"prompt 0 has 2000 tokens and an answer of 49 .* 1 to 2048"
    ):
        model.prefill([prompt(2000)], room=49)


def test_other_attention_is_refused(tiny_network, tiny_spec):
    network = tiny_network()
    network.config.text_config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="'eager' would add a boolean mask as numbers"):
        Qwen25VL(network, tiny_spec)
    sliding = tiny_network(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match="sliding_attention"):
        Qwen25VL(sliding, tiny_spec)


def test_the_cache_is_the_engines(model):
    assert type(model.prefill([PROMPTS[0]], room=1).kv) is KVCache


def test_layer_by_layer_it_is_the_network(model):
    """With pictures, whose positions have three axes: one pass through single layers, nothing kept,
    says what the network's own passes over what it kept say."""
    checks = conformance(model, PROMPTS[1:3])
    assert all(check.passed for check in checks), table(checks)
    assert "passes over what is kept equal one whole pass" in [check.name for check in checks]


def test_what_a_prompt_shows_is_known(model):
    reading = model.read(PROMPTS)
    for row, asked in enumerate(PROMPTS):
        assert int(reading.visible[row].sum()) == len(asked.ids)
        assert torch.equal(reading.visual[row, : len(asked.ids)], asked.ids == IMAGE)
    assert not (reading.visual & ~reading.visible).any()


def test_pictures_that_do_not_go_are_the_model(model):
    free = Canvas.free(6, 128, block_size=3, banned=(MASK,))
    expected = decode(model, PROMPTS[1:], free, Speculative())
    for layer, keep in ((1, ((0, 1.0),)), (3, ((0, 0.0),))):
        decoded = decode(Pruned(model, layer=layer, keep=keep), PROMPTS[1:], free, Speculative())
        assert torch.equal(decoded.tokens, expected.tokens)
    pruned = decode(Pruned(model, layer=1, keep=((0, 0.0),)), PROMPTS[1:], free, Speculative())
    assert pruned.kv_bytes < expected.kv_bytes
    flash = decode(model, PROMPTS[1:], free, FlashBlock(tau=1))
    plain = decode(model, PROMPTS[1:], free, SectionDiffusion())
    assert torch.equal(flash.tokens, plain.tokens)
