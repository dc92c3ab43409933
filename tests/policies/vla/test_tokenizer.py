"""The small tokenizer, and tokenizers from files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.vla.canvas import vocabulary
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.tokenizer import (
    SPECIAL_TOKENS,
    FileTokenizer,
    build_tokenizer,
    token_id,
)

pytest.importorskip("tokenizers")

TEXTS = vocabulary(load_schema("fast_ddrive_small"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(build_tokenizer(TEXTS), encoding="utf-8")
    return FileTokenizer(path)


def pieces(tokenizer, text):
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


def test_a_number_is_a_sign_and_its_digits(tokenizer):
    assert pieces(tokenizer, "[[ +014.70, -000.04]") == [
        "[", "[", " +", "0", "1", "4", ".", "7", "0", ",", " -", "0", "0", "0", ".", "0", "4", "]",
    ]  # fmt: skip


def test_common_words_and_special_tokens_are_one_token(tokenizer):
    text = '<|im_start|>{"critical_objects":  keep speed'
    assert pieces(tokenizer, text)[:4] == ["<|im_start|>", '{"', "critical", "_objects"]
    for special in SPECIAL_TOKENS:
        assert pieces(tokenizer, special) == [special]
    assert pieces(tokenizer, "Slow down, the lead vehicle brakes.") == [
        "Slow", " down", ",", " the", " lead", " vehicle", " brakes", ".",
    ]  # fmt: skip
    assert 500 < len(tokenizer) < 2048


def test_special_tokens_come_last_in_their_order(tokenizer):
    ids = [token_id(tokenizer, special) for special in SPECIAL_TOKENS]
    assert ids == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))


@given(text=st.text(max_size=40))
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_same_texts_make_the_same_tokenizer(tokenizer):
    assert build_tokenizer(reversed(TEXTS)) == build_tokenizer(TEXTS)
    assert json.loads(build_tokenizer(TEXTS))["model"]["type"] == "BPE"


def test_special_tokens_inside_the_texts_make_no_pieces():
    plain = build_tokenizer(["[[", ",", "]]"])
    assert build_tokenizer(["[[|<MASK>|,<|NULL|>]]"]) == plain


def test_numbers_never_become_one_token():
    assert build_tokenizer(["12 345"]) == build_tokenizer([" "])


def test_too_many_words_are_refused():
    with pytest.raises(ValueError, match="more than max_vocab = 300"):
        build_tokenizer(TEXTS, max_vocab=300)


def test_a_text_that_must_be_one_token(tokenizer):
    with pytest.raises(ValueError, match=r"'keep speed' must be one token, .* makes 2 of it"):
        token_id(tokenizer, "keep speed")


def test_a_file_that_is_no_tokenizer(tmp_path):
    for name, content in {"a.json": b"{}", "b.json": b"\xff\xfe", "c.json": b"["}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
            FileTokenizer(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        FileTokenizer(tmp_path / "none.json")
