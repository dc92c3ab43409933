"""Rows of a table, whatever its blocks are."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.rows import read_rows

FIELDS = {"token": str, "n": int, "xy": tuple[float, float]}
ROWS = [
    {"token": word, "n": n, "xy": [n + 0.5, -1], "other": "x" * n}
    for n, word in enumerate(["a", "} , {", '"}, {"', "}\n,\n{", "\\", "\u00e9" * 9, "b"])
]


def written(path, rows, indent=None):
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    return path


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("block", [1, 7, 40, 10_000])
def test_blocks_make_no_difference(tmp_path, indent, block):
    path = written(tmp_path / "table.json", ROWS, indent)
    blocks = list(read_rows(path, FIELDS, block))
    rows = [row for rows in blocks for row in rows]
    assert [(r.token, r.n, r.xy) for r in rows] == [
        (r["token"], r["n"], tuple(r["xy"])) for r in ROWS
    ]
    assert len(blocks) > 1 or block == 10_000


def test_a_word_of_many_braces_hides_no_row(tmp_path):
    wordy = [{"token": "{" * 3000, "n": n, "xy": [0, 0]} for n in range(4)]
    blocks = read_rows(written(tmp_path / "t.json", wordy), FIELDS, 100)
    assert [row.n for rows in blocks for row in rows] == [0, 1, 2, 3]


def test_an_empty_table(tmp_path):
    assert list(read_rows(written(tmp_path / "t.json", []), FIELDS)) == [[]]


def test_numbers_that_only_python_writes_are_read(tmp_path):
    path = written(tmp_path / "t.json", [{"token": "a", "n": 1, "xy": [float("nan"), 1]}])
    ((row,),) = read_rows(path, FIELDS)
    assert row.xy[0] != row.xy[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'[{"token": "a", "n": 1, "xy": [1, 2]}, {"token": "b", "n":', "byte 58"),
        (b'[{"token": "a", "n": 1, "xy": [1, 2]}} ]', "byte 37"),
        (b'[{"token": "a", "n": 1, "xy": [1, 2]}, {"token": "b", "xy": [1, 2]}]', "row 1: .*`n`"),
        (b'[{"token": "a", "n": "1", "xy": [1, 2]}]', "row 0: .*`str`"),
        (b'[{"token": "a", "n": 1, "xy": [1, 2, 3]}]', "row 0: .*length 2"),
        (b'{"token": "a"}', "array"),
        (b"", "byte 0"),
        (b'[{"x": ' + b"[" * 100_000, "recursion"),
        (b'[{"token": "\xff", "n": 1, "xy": [1, 2]}]', "byte 12"),
        (b"7", "array"),
    ],
)
@pytest.mark.parametrize("block", [8, 1 << 20])
def test_faults_name_the_place(tmp_path, text, words, block):
    path = tmp_path / "table.json"
    path.write_bytes(text)
    with pytest.raises(DatasetError, match=f"(?s)table.json.*({words})"):
        list(read_rows(path, FIELDS, block))


@given(st.data())
def test_damage_gives_rows_or_a_fault(tmp_path_factory, data):
    content = bytearray(json.dumps(ROWS, indent=0).encode())
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 6)))
    content[start:stop] = data.draw(st.binary(max_size=6))
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    outcomes = []
    for block in (5, 1 << 20):
        try:
            outcomes.append([row.token for rows in read_rows(path, FIELDS, block) for row in rows])
        except DatasetError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]
