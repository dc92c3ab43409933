"""Tokens by other names: what is cut, what comes back, and what does not change."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.dlm.renamed import Renamed
from fastloop.policies.vla.tokenizer import MASK, NULL, token_id


class Characters:
    """A character a token."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def __len__(self):
        return 256


NAMES = {MASK: 126336, NULL: 7, "<image>": -200}
RENAMED = Renamed(Characters(), NAMES)


def test_names_are_single_tokens():
    for name, token in NAMES.items():
        assert token_id(RENAMED, name) == token
        assert RENAMED.decode([token]) == name
    assert len(RENAMED) == 256


@given(st.lists(st.sampled_from([*NAMES, "<", "|", "a", "<image", "é", ">|"]), max_size=12))
@settings(max_examples=100, deadline=None)
def test_texts_come_back(parts):
    text = "".join(parts)
    ids = RENAMED.encode(text)
    assert RENAMED.decode(ids) == text
    for name, token in NAMES.items():
        assert ids.count(token) == text.count(name)


def test_other_text_is_the_tokenizers():
    assert RENAMED.encode("ab<image>c") == [97, 98, -200, 99]
    assert Renamed(Characters(), {}).encode("a<image>") == Characters().encode("a<image>")
    assert RENAMED.encode("") == []
    assert RENAMED.decode([]) == ""


def test_refused():
    with pytest.raises(ValueError, match="an id of its own"):
        Renamed(Characters(), {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="an id of its own"):
        Renamed(Characters(), {"": 1})
