"""The canvas of an answer: its scaffold, its blocks and what may stand in it."""

import re
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.vla.canvas import assign_blocks, build_layout, template
from fastloop.policies.vla.schema import SchemaError, load_schema
from fastloop.policies.vla.tokenizer import MASK, NULL

# Scaffold of Fast-dDrive's answer cut into as many pieces as its own tokenizer makes of it.
PIECES = (
    '{"| "|":| {"|",|"},|},| "[|[|],| [|]]|"}| +| -| ",|critical|_objects|nearby|_vehicle|ped'
    "|estrian|cycl|ist|construction|traffic|_element|weather|_condition|road|_h|azard|em|ergency|animal"
    "|special|conf|lic|ting|door|_open|ing|ex|planation|future|_meta|_behavior|long|itud|inal|l"
    "|ateral|trajectory|yes|no|keep| speed|go| straight|stop| "
    '|\\",|"",'  # must not close a string
)


class Stub:
    """Longest pieces first, then characters."""

    def __init__(self, without=()):
        pieces = [*PIECES.split("|"), MASK, NULL]
        pieces += [c for c in string.printable if c not in pieces]
        self.pieces = [piece for piece in pieces if piece not in without]
        longest = sorted(self.pieces, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest)))

    def encode(self, text):
        return [self.pieces.index(piece) for piece in self.pattern.findall(text)]

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids)

    def __len__(self):
        return len(self.pieces)


@pytest.fixture(scope="module")
def layout():
    return build_layout(load_schema("fast_ddrive"), Stub())


def sizes(block):
    return block.bincount().tolist()


def test_the_released_canvas_has_403_slots(layout):
    canvas = layout.canvas
    assert len(canvas) == 403
    assert sizes(canvas.section) == [92, 198, 23, 90]
    assert sizes(canvas.section[~canvas.given]) == [12, 192, 6, 70]
    assert layout.tokenizer.decode(canvas.tokens.tolist()) == template(layout.schema)


def test_released_blocks(layout):
    canvas = layout.canvas
    assert sizes(canvas.block) == [96, 33, 32, 32, 32, 32, 43, 17, 39, 39, 8]
    assert sizes(canvas.block[~canvas.given]) == [12, 32, 32, 32, 32, 32, 32, 6, 32, 32, 6]
    assert layout.block_sections().tolist() == [0, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3]


def test_blocks_of_own_sections(layout):
    own = build_layout(layout.schema, layout.tokenizer, assignment="own_section").canvas
    assert sizes(own.block) == [92, 37, 32, 32, 32, 32, 33, 23, 43, 39, 8]
    moved = own.block != layout.canvas.block
    assert moved.sum() == 18
    assert own.given[moved].all()
    assert (own.section[moved] != 0).all()


def test_fields_have_their_slots(layout):
    canvas = layout.canvas
    assert next(iter(layout.slots)) == "critical_objects.nearby_vehicle"
    assert len(layout.slots["explanation"]) == 192
    every = sorted(slot for own in layout.slots.values() for slot in own)
    assert every == (~canvas.given).nonzero().flatten().tolist()
    first = layout.slots["critical_objects.pedestrian"][0]
    before = canvas.tokens[first - 4 : first].tolist()
    assert layout.tokenizer.decode(before) == 'pedestrian": "'


def allowed(layout, slot):
    row = layout.canvas.allowed[layout.canvas.kind[slot]]
    return {layout.tokenizer.pieces[i] for i in row.nonzero().flatten().tolist()}


def test_what_may_stand_where(layout):
    assert allowed(layout, layout.slots["critical_objects.animal"][0]) == {"yes", "no"}
    number = [allowed(layout, slot) for slot in layout.slots["trajectory"][63:70]]
    digits = set(string.digits)
    assert number == [{" +", " -"}, digits, digits, digits, {"."}, digits, digits]
    text = allowed(layout, layout.slots["explanation"][-1])
    assert {NULL, "yes", "a", "[", " ", "7"} <= text
    assert not text & {MASK, '"', "\\", "\n", "\t", '{"', '",', ' ",'}
    longitudinal, lateral = (
        [allowed(layout, slot) for slot in layout.slots[f"future_meta_behavior.{key}"]]
        for key in ("longitudinal", "lateral")
    )
    assert longitudinal == [text, text, {' ",', '",'}]
    assert lateral == [text, text, {'"', ' "', '{"', ' {"'}]


def test_rows_that_no_token_has_are_never_allowed(layout):
    wide = build_layout(layout.schema, layout.tokenizer, vocab=1000).canvas
    assert wide.allowed.shape[1] == 1000
    assert not wide.allowed[:, len(layout.tokenizer) :].any()
    with pytest.raises(ValueError, match="do not fit a model of 10"):
        build_layout(layout.schema, layout.tokenizer, vocab=10)


def test_sections_begin_with_the_space_before_their_key(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nsections: {a: {kind: flag}, b: {c: {kind: flag}}, d: {kind: flag}}")
    letters = Stub(without=PIECES.split("|")[:11])  # no punctuation in one piece
    canvas = build_layout(load_schema(path), letters).canvas
    for index in (1, 2):
        first = int((canvas.section == index).nonzero()[0])
        assert letters.decode(canvas.tokens[first - 1 : first + 2].tolist()) == ', "'


def test_a_choice_is_filled_up_with_null(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: s\nsections: {turn: {kind: choice, words: [go straight, stop], tokens: 3}}"
    )
    layout = build_layout(load_schema(path), Stub())
    assert template(layout.schema) == '{"turn": "' + MASK * 3 + '"}'
    sets = [allowed(layout, slot) for slot in layout.slots["turn"]]
    assert sets == [{"go", "stop"}, {" straight", NULL}, {NULL}]


@pytest.mark.parametrize(
    ("field", "without", "message"),
    [
        ("kind: choice, words: [go straight, stop]", [], "'go straight' is 2 tokens, more than 1"),
        ("kind: text, tokens: 3, closes: true", ['",', ' ",'], "no token ends in"),
        ("kind: flag", ["yes"], "'yes' must be one token"),
        ("kind: waypoints, count: 1", [" +"], r"' \+' must be one token"),
    ],
)
def test_a_tokenizer_that_cannot_write_the_schema(tmp_path, field, without, message):
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nsections: {{a: {{{field}}}, b: {{kind: text, tokens: 2}}}}")
    with pytest.raises(SchemaError, match=f"s, a: {message}"):
        build_layout(load_schema(path), Stub(without))


def test_a_tokenizer_without_mask_or_faith(layout):
    with pytest.raises(ValueError, match="has to be added, in the order"):
        build_layout(layout.schema, Stub([MASK]))
    lossy = Stub()
    lossy.decode = lambda ids: "".join(lossy.pieces[i].strip() for i in ids)
    with pytest.raises(ValueError, match="does not give the template back"):
        build_layout(layout.schema, lossy)


@st.composite
def patterns(draw):
    """Values and scaffold of a few sections, a value in each."""
    values, section = [], []
    for index in range(draw(st.integers(1, 4))):
        own = draw(st.lists(st.booleans(), min_size=1, max_size=15).filter(any))
        values += own
        section += [index] * len(own)
    return torch.tensor(values), torch.tensor(section), draw(st.integers(1, 5))


def published(values, section, block_size):
    """The rule as it was published, step by step."""
    block, current = {}, 0
    for index in range(int(section.max()) + 1):
        here = [p for p in range(len(values)) if section[p] == index]
        filled = [p for p in here if values[p]]
        count = -(-len(filled) // block_size)
        for rank, p in enumerate(filled):
            block[p] = current + min(rank // block_size, count - 1)
        for p in (p for p in here if not values[p]):
            order = (q for d in range(1, len(values)) for q in (p + d, p - d))
            block[p] = next(block[q] for q in order if q in block)
        current += count
    return [block[p] for p in range(len(values))]


@given(pattern=patterns())
def test_release_is_the_published_rule(pattern):
    assert assign_blocks(*pattern, "release").tolist() == published(*pattern)


@given(pattern=patterns(), assignment=st.sampled_from(["release", "own_section"]))
def test_blocks_never_fall_and_hold_at_most_a_block_of_values(pattern, assignment):
    values, section, block_size = pattern
    block = assign_blocks(values, section, block_size, assignment)
    assert (block.diff() >= 0).all()
    assert block[values].bincount().max() <= block_size
    assert block[values].unique().tolist() == list(range(int(block.max()) + 1))


@given(pattern=patterns())
def test_own_section_keeps_to_the_nearest_value_of_it(pattern):
    values, section, block_size = pattern
    block = assign_blocks(values, section, block_size, "own_section")
    for slot in range(len(values)):
        own = [p for p in range(len(values)) if values[p] and section[p] == section[slot]]
        least = min(abs(p - slot) for p in own)
        assert int(block[slot]) in {int(block[p]) for p in own if abs(p - slot) == least}


def test_unknown_assignments_and_empty_sections_are_refused():
    ones = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="unknown assignment 'none'; have: release, own_section"):
        assign_blocks(ones, torch.zeros(2, dtype=torch.int64), 1, "none")
    with pytest.raises(ValueError, match="section 1 has no value"):
        assign_blocks(torch.tensor([True, False]), torch.tensor([0, 1]), 1, "release")
