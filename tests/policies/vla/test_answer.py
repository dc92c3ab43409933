"""Answers: values to tokens and back, and what is said of those that cannot be read."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.vla.answer import Answer, read_text, read_tokens
from fastloop.policies.vla.canvas import build_layout, vocabulary
from fastloop.policies.vla.schema import Choice, Flag, Text, clean, load_schema
from fastloop.policies.vla.tokenizer import NULL, SPECIAL_TOKENS, FileTokenizer, build_tokenizer
from fastloop.policies.vla.writing import format_number, write

tokenizers = pytest.importorskip("tokenizers")

ARM = """
name: pick_and_place
block_size: 12
sections:
  safe: {kind: flag}
  grasp:
    object: {kind: choice, words: [cube, can, milk carton], tokens: 3}
    note: {kind: text, tokens: 20}
  poses: {kind: waypoints, count: 3, dim: 4, step_s: 0.5, digits: 1, decimals: 3}
"""
WORDS = ["milk carton cube can", "keep speed", 'go straight stop ",']


def layout_of(schema):
    text = build_tokenizer([*vocabulary(schema), *WORDS, '" "', 'a ", a "}'])
    return build_layout(schema, FileTokenizer(tokenizers.Tokenizer.from_str(text)))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    path = tmp_path_factory.mktemp("schema") / "arm.yaml"
    path.write_text(ARM)
    schemas = [load_schema(name) for name in ("fast_ddrive_small", "fast_ddrive", path)]
    return [layout_of(schema) for schema in schemas]


@pytest.fixture(scope="module")
def small(layouts):
    return layouts[0]


def example():
    schema = load_schema("fast_ddrive_small")
    return {
        "critical_objects": {key: key == "animal" for key in schema.sections[0].fields},
        "explanation": "The lead vehicle brakes.",
        "future_meta_behavior": {"longitudinal": "decelerate", "lateral": "go straight"},
        "trajectory": [[14.7, -0.04], [29.55, -0.21], [44.51, -0.56], [59.5, -1.06], [74.39, 0.0]],
    }


@st.composite
def values_of(draw, layout):
    """Any values that can be written as they are."""

    def one(path, field):
        if isinstance(field, Flag):
            return draw(st.booleans())
        if isinstance(field, Choice):
            return draw(st.sampled_from(field.words))
        if isinstance(field, Text):
            room = field.tokens - field.closes
            text = st.text(max_size=room).map(clean)
            text = text.filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))
            return draw(text.filter(lambda text: len(layout.tokenizer.encode(text)) <= room))
        most = 10 ** (field.digits + field.decimals) - 1
        number = st.integers(-most, most).map(lambda n: n / 10**field.decimals)
        point = st.lists(number, min_size=field.dim, max_size=field.dim)
        return draw(st.lists(point, min_size=field.count, max_size=field.count))

    return {
        section.name: {key: one(key, field) for key, field in section.fields.items()}
        if "" not in section.fields
        else one("", section.fields[""])
        for section in layout.schema.sections
    }


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_legal_values_come_back(layouts, data):
    layout = layouts[data.draw(st.integers(0, 2))]
    values = data.draw(values_of(layout))
    written = write(layout, values)
    assert written.notes == ()
    canvas = layout.canvas
    assert torch.equal(written.tokens[canvas.given], canvas.tokens[canvas.given])
    assert canvas.allowed[canvas.kind, written.tokens].all()
    answer = read_tokens(layout, written.tokens)
    assert answer == Answer(values, answer.text)
    assert read_text(layout.schema, answer.text) == answer
    assert list(json.loads(answer.text)) == list(canvas.sections)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 2))
def test_whatever_is_allowed_is_json_with_waypoints(layouts, seed, index):
    layout = layouts[index]
    noise = torch.rand(
        len(layout.canvas), len(layout.tokenizer), generator=torch.Generator().manual_seed(seed)
    )
    canvas = layout.canvas
    picked = noise.masked_fill(~canvas.allowed[canvas.kind], -1).argmax(-1)
    answer = read_tokens(layout, torch.where(canvas.given, canvas.tokens, picked))
    assert set(json.loads(answer.text)) == set(canvas.sections)
    assert not answer.fallback
    assert all("is none of" in part for part in answer.reason.split(";") if part)


def test_a_digit_slot_takes_digits_alone(small):
    slot = small.slots["trajectory"][1]
    allowed = small.canvas.allowed[small.canvas.kind[slot]].nonzero().flatten().tolist()
    assert {small.tokenizer.decode([token]) for token in allowed} == set("0123456789")


def test_the_layout_of_an_answer(small):
    answer = read_tokens(small, write(small, example()).tokens)
    assert answer.text.endswith(
        '"explanation": "The lead vehicle brakes.", '
        '"future_meta_behavior": {"longitudinal": "decelerate", "lateral": "go straight"}, '
        '"trajectory": "[[ +014.70, -000.04], [ +029.55, -000.21], [ +044.51, -000.56], '
        '[ +059.50, -001.06], [ +074.39, +000.00]]"}'
    )


def test_a_text_that_closes_its_string(layouts):
    layout = layouts[1]
    values = example()
    values["future_meta_behavior"]["longitudinal"] = "keep speed"
    written = write(layout, values).tokens
    slots = list(layout.slots["future_meta_behavior.longitudinal"])
    pieces = [layout.tokenizer.decode([token]) for token in written[slots].tolist()]
    assert pieces[-1] == ' ",'
    assert read_tokens(layout, written).values == values


@pytest.mark.parametrize(
    ("number", "text"),
    [(14.7, "+014.70"), (-0.04, "-000.04"), (-0.004, "+000.00"), (-0.0, "+000.00"),
     (999.99, "+999.99"), (-7, "-007.00"), (0.999, "+001.00")],
)  # fmt: skip
def test_numbers(small, number, text):
    assert format_number(dict(small.schema.fields())["trajectory"], number) == text


def test_long_texts_are_cut_and_said_so(small):
    values = example() | {"explanation": "Slow" + " down" * 40 + "."}
    written = write(small, values)
    assert written.notes == ("explanation: 42 tokens cut to 32",)
    assert read_tokens(small, written.tokens).values["explanation"] == "Slow" + " down" * 31


def test_a_cut_never_leaves_half_a_character(small):
    text = "a" + "\u00e9" * 40  # two tokens each
    answer = read_tokens(small, write(small, example() | {"explanation": text}).tokens)
    assert answer.values["explanation"] == text[:16]


def test_what_json_would_escape_is_replaced_and_said(small):
    written = write(small, example() | {"explanation": 'a "stop"\nsign' + NULL + "|<NULL>|\ud800"})
    assert written.notes == ("explanation: characters that JSON would escape replaced",)
    assert read_tokens(small, written.tokens).values["explanation"] == "a 'stop' sign"


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("explanation", 3, "explanation: expected a text, got 3"),
        ("explanation", "a<|im_end|>", r"explanation: '<\|im_end\|>' may not stand in a text"),
        ("trajectory", [[1, 2]], r"trajectory: expected 5 x 2 numbers, got \(1, 2\)"),
        ("trajectory", "far", "trajectory: expected points of 2 numbers, got 'far'"),
        ("trajectory", [[math.nan, 0]] * 5, "trajectory: numbers must be within 999.99 of 0"),
        ("trajectory", [[0, 999.996]] * 5, "trajectory: numbers must be within 999.99 of 0"),
        ("critical_objects", {"animal": True}, "missing .'critical_objects.nearby_vehicle'"),
        ("future_meta_behavior", {"longitudinal": "fly", "lateral": "yield"},
         "future_meta_behavior.longitudinal: 'fly' is none of keep speed, accelerate"),
        ("future_meta_behavior", {"longitudinal": ["stop"], "lateral": "yield"}, "is none of"),
        ("critical_objects", dict.fromkeys(example()["critical_objects"], 1),
         "critical_objects.nearby_vehicle: expected true or false"),
        ("weather", "rain", "unknown .'weather'"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_written(small, section, value, message):
    with pytest.raises(ValueError, match=message):
        write(small, example() | {section: value})


def test_flags_may_be_words_and_waypoints_a_tensor(small):
    values = example()
    plain = write(small, values).tokens
    values["critical_objects"] = {
        key: "yes" if flag else "no" for key, flag in values["critical_objects"].items()
    }
    values["trajectory"] = torch.tensor(values["trajectory"], dtype=torch.float64)
    assert torch.equal(write(small, values).tokens, plain)


def test_a_slot_that_holds_what_it_may_not_is_named(small):
    tokens = write(small, example()).tokens
    own = small.slots["trajectory"]
    tokens[own[9]] = small.mask_id
    answer = read_tokens(small, tokens)
    shown = f"trajectory, token 9 of 70 (slot {own[9]}): '|<MASK>|' in place of a digit"
    assert (answer.reason, answer.fallback) == (shown, True)
    assert answer.values == {k: v for k, v in example().items() if k != "trajectory"}

    tokens = write(small, example()).tokens
    tokens[1], tokens[small.slots["explanation"][0]] = 10**6, -1
    answer = read_tokens(small, tokens)
    assert not answer.fallback
    assert answer.reason.startswith(
        "critical_objects, slot 1: the unknown token 1000000 in place of 'critical'; "
        "explanation, token 0 of 32"
    )
    assert "explanation" not in answer.values


def test_many_faults_are_counted(small):
    answer = read_tokens(small, torch.full((len(small.canvas),), small.mask_id))
    assert answer.fallback
    assert answer.values == {}
    assert "; and " in answer.reason
    assert len(answer.reason) < 400


def test_tokens_that_do_not_fill_the_canvas_are_read_as_text(small):
    tokens = write(small, example()).tokens
    longer = [*tokens.tolist(), *small.tokenizer.encode("<|im_end|>\n")]
    answer = read_tokens(small, longer)
    assert answer.values == example()
    assert answer.reason == f"{len(tokens) + 2} tokens for a canvas of {len(tokens)}"


def test_waypoints_are_saved_from_a_broken_text():
    schema = load_schema("fast_ddrive")
    text = "I go [[ +001.00, -000.50], [2,0.5], [ 3.0 ,-0.25 ]"
    answer = read_text(schema, text)
    assert answer.values == {
        "trajectory": [[1.0, -0.5], [2.0, 0.5], [3.0, -0.25], [3.0, -0.25], [3.0, -0.25]]
    }
    assert not answer.fallback
    assert answer.reason.startswith("no JSON: ")
    assert read_text(schema, "[1, 2], [3, 4]") == Answer(
        {}, "[1, 2], [3, 4]", read_text(schema, "[1, 2], [3, 4]").reason, fallback=True
    )


def test_a_text_with_other_values_says_which(small):
    good = read_tokens(small, write(small, example()).tokens).text
    bad = (
        good.replace('"yes"', '"maybe"').replace("go straight", "fly").replace('"explan', '"expan')
    )
    answer = read_text(small.schema, bad)
    assert answer.reason == (
        "critical_objects.animal: 'maybe' is neither yes nor no; explanation: no text there; "
        "future_meta_behavior.lateral: 'fly' is none of "
        "go straight, yield, turn left, turn right, follow lane, change lane left, "
        "change lane right, reverse, overtake, other"
    )
    assert not answer.fallback
    assert answer.values["trajectory"] == example()["trajectory"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_reading_never_raises(small, data):
    tokens = write(small, example()).tokens.tolist()
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(tokens) - 1))
        tokens[at] = data.draw(st.integers(-(2**62), 2**62) | st.integers(0, len(small.tokenizer)))
    tokens = tokens[data.draw(st.integers(0, 3)) :]
    answer = read_tokens(small, tokens)
    assert answer.fallback == ("trajectory" not in answer.values)


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.recursive(st.text(), st.lists).map(json.dumps))
def test_reading_any_text_never_raises(small, text):
    answer = read_text(small.schema, text)
    assert answer.reason
    assert answer.fallback


@pytest.mark.parametrize(
    "text", ["[" * 100000, "1" * 10000, '{"trajectory": [', '"\ud800"', "null"]
)
def test_texts_made_to_break(small, text):
    assert read_text(small.schema, text).fallback
