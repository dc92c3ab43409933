"""Tokenizers: what is asked of one, those in files, and a small one of our own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastloop.extras import require

__all__ = [
    "MASK",
    "NULL",
    "SPECIAL_TOKENS",
    "FileTokenizer",
    "Tokenizer",
    "build_tokenizer",
    "token_id",
]

MASK, NULL = "|<MASK>|", "<|NULL|>"
# The names and their order are those of Qwen2.5-VL; the last two are what block diffusion adds.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    MASK,
    NULL,
)
# How Qwen2.5 cuts a text before it merges: a word with the space (or the sign) before it, each
# digit alone, punctuation with the space before it.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer(Protocol):
    """Text to token ids and back; special tokens are written out in the text."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included, nothing cleaned up."""
        ...

    def __len__(self) -> int:
        """Ids in use: all are below."""
        ...


class FileTokenizer:
    """A `Tokenizer` from the JSON of the tokenizers library (``tokenizer.json``).

    Args:
        source: path of the file, or a `tokenizers.Tokenizer`.

    Raises:
        ValueError: where the file is missing or no tokenizer.
        MissingExtraError: without the tokenizers library.
    """

    def __init__(self, source: str | Path | Any) -> None:
        if isinstance(source, str | Path):
            library = require("tokenizers", extra="vla")
            try:
                source = library.Tokenizer.from_str(Path(source).read_text(encoding="utf-8"))
            except Exception as error:  # the library raises bare Exceptions
                raise ValueError(f"{source} cannot be read as a tokenizer: {error}") from error
        self.tokenizer = source

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included, nothing cleaned up."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def __len__(self) -> int:
        size: int = self.tokenizer.get_vocab_size(with_added_tokens=True)
        return size


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """The id of a text that must be a single token.

    Raises:
        ValueError: where it is not.
    """
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise ValueError(
            f"{text!r} must be one token, this tokenizer makes {len(ids)} of it; a special token "
            f"that is missing has to be added, in the order {MASK}, {NULL}"
        )
    return ids[0]


def build_tokenizer(
    texts: Iterable[str], *, phrases: Iterable[str] = (), max_vocab: int = 4096
) -> str:
    """A small tokenizer in Qwen2.5's manner, to which every piece of `texts` is one token.

    A piece is what Qwen2.5 cuts a text into: a word with the space before it, a digit, a sign with
    the space before it, a run of punctuation. What is in no text is spelled in bytes, so that every
    text comes back from its tokens as it was. The ids are bytes first, then the pieces sorted, the
    phrases sorted, and `SPECIAL_TOKENS`: the same texts make the same tokenizer.

    Args:
        texts: templates and word lists; special tokens in them are left out.
        phrases: several pieces each that are one token all the same, so that whoever may choose
            among phrases cannot mix them.
        max_vocab: refuses texts that would make more tokens.

    Returns:
        JSON of the tokenizers library; write it to ``tokenizer.json``.

    Raises:
        ValueError: where the texts hold more than `max_vocab` tokens.
        MissingExtraError: without the tokenizers library.
    """
    library = require("tokenizers", extra="vla")
    byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = library.pre_tokenizers.Sequence(
        [library.pre_tokenizers.Split(library.Regex(PIECES), "isolated"), byte_level]
    )
    bytes_ = sorted(byte_level.alphabet())
    pieces: set[str] = set()
    for text in texts:
        for part in re.split("|".join(map(re.escape, SPECIAL_TOKENS)), text):
            pieces.update(piece for piece, _ in cut.pre_tokenize_str(part))
    vocabulary = bytes_ + sorted(pieces - set(bytes_))
    whole = sorted(set(phrases) - set(vocabulary))
    if (size := len(vocabulary) + len(whole) + len(SPECIAL_TOKENS)) > max_vocab:
        raise ValueError(f"these texts make {size} tokens, more than max_vocab = {max_vocab}")

    model = library.models.BPE(
        vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=[], ignore_merges=True
    )
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_tokens([library.AddedToken(p, normalized=False, single_word=True) for p in whole])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return json.dumps(json.loads(tokenizer.to_str()), indent=0, ensure_ascii=False)
