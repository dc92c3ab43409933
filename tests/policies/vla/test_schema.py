"""Schemas from YAML, and what is refused."""

import pytest

from fastloop.policies.vla.schema import (
    Choice,
    Flag,
    SchemaError,
    Text,
    Waypoints,
    clean,
    load_schema,
)

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


def write(tmp_path, text):
    path = tmp_path / "schema.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_released_schema_holds_280_values_in_four_sections():
    schema = load_schema("fast_ddrive")
    tokens = {section.name: 0 for section in schema.sections}
    for path, field in schema.fields():
        tokens[path.split(".")[0]] += field.tokens
    assert tokens == {
        "critical_objects": 12,
        "explanation": 192,
        "future_meta_behavior": 6,
        "trajectory": 70,
    }
    assert (schema.block_size, schema.assignment) == (32, "release")


def test_another_schema_is_another_file(tmp_path):
    schema = load_schema(write(tmp_path, ARM))
    assert dict(schema.fields()) == {
        "safe": Flag(),
        "grasp.object": Choice(("cube", "can", "milk carton"), tokens=3),
        "grasp.note": Text(20),
        "poses": Waypoints(3, dim=4, step_s=0.5, digits=1, decimals=3),
    }
    poses = dict(schema.fields())["poses"]
    assert (poses.width, poses.tokens, poses.limit) == (6, 72, 9.999)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("block_size: 12", "block_size: 5"),
            "poses: a waypoints of 6 tokens does not fit a block",
        ),
        (("block_size: 12", "block_size: 2"), "grasp.object: a choice of 3 tokens does not fit"),
        (("block_size: 12", "block_size: 0"), "block_size must be a whole number from 1"),
        (("block_size: 12", "block_size: true"), "block_size must be a whole number"),
        (("block_size: 12", "block_sise: 12"), "unknown option .'block_sise'.; have: .*block_size"),
        (("block_size: 12", "assignment: mine"), "unknown assignment 'mine'; have: release, own"),
        (("block_size: 12", "block_size: 12\nname: b"), "the key 'name' stands twice"),
        (("  safe:", "  grasp:"), "the key 'grasp' stands twice"),
        (("    note:", "    object:"), "the key 'object' stands twice"),
        (("name: pick_and_place", "name: 3"), "name must be a text, got 3"),
        (("kind: flag", "kind: bool"), "safe: .*|unknown kind 'bool'; have: flag, choice"),
        (("kind: text, ", ""), "grasp.note: unknown kind None; have"),
        (("kind: text, tokens: 20", "kind: [text]"), "grasp.note: unknown kind"),
        (("tokens: 20", "words: 20"), "grasp.note: unknown option .'words'.; a text takes: tokens"),
        ((", tokens: 20", ""), "grasp.note: a text needs tokens"),
        (("tokens: 20", "tokens: 2.5"), "grasp.note: tokens must be a whole number"),
        (("tokens: 20", "tokens: 1000000000"), "grasp.note: tokens must be .* to 4096"),
        (("tokens: 20", "tokens: 1, closes: true"), "grasp.note: .* needs at least 2"),
        (("tokens: 20", "tokens: 20, closes: true"), "grasp.note: .* does not fit a block of 12"),
        (("tokens: 20", "tokens: 20, closes: 1"), "closes must be true or false"),
        (("[cube, can, ", "[yes, can, "), "grasp.object: True is no word.*quotes in YAML"),
        (("[cube, can, ", "['a\"b', can, "), "grasp.object: .* is no word"),
        (("[cube, can, ", "[' cube', can, "), "grasp.object: ' cube' is no word"),
        (("[cube, can, ", "[can, can, "), "grasp.object: words holds one twice"),
        (("[cube, can, milk carton]", "cube"), "grasp.object: words must be a list"),
        (("step_s: 0.5", "step_s: -1"), "poses: step_s must be positive"),
        (("step_s: 0.5", "step_s: .nan"), "poses: step_s must be positive"),
        (("step_s: 0.5", "step_s: soon"), "poses: step_s must be a number"),
        (("  safe: {kind: flag}", "  1: {kind: flag}"), "1 is no key"),
        (("  safe: {kind: flag}", "  'a\"b': {kind: flag}"), "is no key"),
        (("  safe: {kind: flag}", "  safe: flag"), "safe: expected a mapping"),
        (("  safe: {kind: flag}", "  safe: {}"), "safe: expected a mapping"),
        (("  safe: {kind: flag}", "  safe: {kind: flag"), "no YAML"),
        (("  safe: {kind: flag}", "  safe: !!python/object:os.system {}"), "no YAML"),
        (("  safe: {kind: flag}", "  safe: " + "[" * 1100), "no YAML"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said(tmp_path, change, message):
    assert change[0] in ARM
    with pytest.raises(SchemaError, match=message):
        load_schema(write(tmp_path, ARM.replace(*change, 1)))


@pytest.mark.parametrize("text", ["", "[]", "name: a", "name: a\nsections: {}", "\x00", "3"])
def test_what_is_no_schema_at_all(tmp_path, text):
    with pytest.raises(SchemaError):
        load_schema(write(tmp_path, text))


def test_a_schema_that_is_not_there_lists_those_that_are(tmp_path):
    with pytest.raises(SchemaError, match=r"no schema 'fast'.*fast_ddrive, fast_ddrive_small"):
        load_schema("fast")
    with pytest.raises(SchemaError, match="no schema"):
        load_schema(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(SchemaError, match="no YAML"):
        load_schema(tmp_path / "latin.yaml")


def test_clean_text_needs_no_backslash():
    assert clean(' say "go"\nor\\stop\t') == "say 'go' or stop"
