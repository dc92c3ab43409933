"""What an answer consists of, as data: sections, fields and the kinds of their values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "ASSIGNMENTS",
    "UNSAFE",
    "Choice",
    "Field",
    "Flag",
    "Schema",
    "SchemaError",
    "Section",
    "Text",
    "Waypoints",
    "clean",
    "load_schema",
]

FOLDER = Path(__file__).with_name("schemas")
ASSIGNMENTS = ("release", "own_section")
UNSAFE = re.compile(r'["\\\x00-\x1f\ud800-\udfff]')


class SchemaError(ValueError):
    """A schema that no answer can follow; the message names the section and the field."""


@dataclass(frozen=True)
class Flag:
    """Yes or no: a bool, one token."""

    tokens: int = dataclasses.field(default=1, init=False)


@dataclass(frozen=True)
class Choice:
    """One of a few words or phrases, each of at most `tokens` tokens, the rest NULL."""

    words: tuple[str, ...]
    tokens: int = 1

    def __post_init__(self) -> None:
        _check_counts(tokens=self.tokens)
        if not isinstance(self.words, list | tuple) or len(self.words) < 2:
            raise ValueError(f"words must be a list of at least two, got {self.words!r}")
        for word in self.words:
            if not isinstance(word, str) or not word or word != clean(word):
                raise ValueError(
                    f"{word!r} is no word: a text that does not begin or end in a space, without "
                    "quotes, backslashes and line breaks (yes, no, on and off need quotes in YAML)"
                )
        if len(set(self.words)) < len(self.words):
            raise ValueError(f"words holds one twice: {list(self.words)}")
        object.__setattr__(self, "words", tuple(self.words))


@dataclass(frozen=True)
class Text:
    """Free text of at most `tokens` tokens, the rest NULL.

    Attributes:
        tokens: slots.
        closes: whether the last slot holds one token that also closes the string, as released
            checkpoints write where a value ends in a space; that leaves one slot less for text.
    """

    tokens: int
    closes: bool = False

    def __post_init__(self) -> None:
        _check_counts(tokens=self.tokens)
        if not isinstance(self.closes, bool):
            raise ValueError(f"closes must be true or false, got {self.closes!r}")
        if self.closes and self.tokens < 2:
            raise ValueError("a text whose last slot closes it needs at least 2 tokens")


@dataclass(frozen=True)
class Waypoints:
    """Points of fixed-point numbers, written as ``"[[ +014.70, -000.04], [ +029.55, ...]]"``.

    Attributes:
        count: points.
        dim: numbers of a point.
        step_s: seconds from one point to the next; the first is one step ahead.
        digits, decimals: before and after the point of a number; its sign is always written.
    """

    count: int
    dim: int = 2
    step_s: float = 1.0
    digits: int = 3
    decimals: int = 2

    def __post_init__(self) -> None:
        _check_counts(count=self.count, dim=self.dim, digits=self.digits, decimals=self.decimals)
        if isinstance(self.step_s, bool) or not isinstance(self.step_s, int | float):
            raise ValueError(f"step_s must be a number of seconds, got {self.step_s!r}")
        if not 0 < self.step_s < float("inf"):
            raise ValueError(f"step_s must be positive, got {self.step_s}")

    @property
    def width(self) -> int:
        """Tokens of a number: sign, digits, point, decimals."""
        return self.digits + self.decimals + 2

    @property
    def tokens(self) -> int:
        """Slots of all numbers."""
        return self.count * self.dim * self.width

    @property
    def limit(self) -> float:
        """The largest number that can be written."""
        return float(10**self.digits - 10**-self.decimals)


Field = Flag | Choice | Text | Waypoints
KINDS: dict[str, type[Field]] = {
    "flag": Flag,
    "choice": Choice,
    "text": Text,
    "waypoints": Waypoints,
}


@dataclass(frozen=True)
class Section:
    """One member of the answer.

    Attributes:
        name: its key.
        fields: key to kind, in the order in which they are written; the key is "" where the section
            is a single value and no object.
    """

    name: str
    fields: Mapping[str, Field]


@dataclass(frozen=True)
class Schema:
    """The sections of an answer in the order in which they are decided.

    Attributes:
        name: for messages.
        sections: each name once.
        block_size: values that are drafted together.
        assignment: how scaffold is given to blocks, one of `ASSIGNMENTS`; see
            `fastloop.policies.vla.canvas.assign_blocks`.
    """

    name: str
    sections: tuple[Section, ...]
    block_size: int = 32
    assignment: str = "own_section"

    def __post_init__(self) -> None:
        try:
            _check_counts(block_size=self.block_size)
        except ValueError as error:
            raise SchemaError(str(error)) from None
        if self.assignment not in ASSIGNMENTS:
            raise SchemaError(
                f"unknown assignment {self.assignment!r}; have: {', '.join(ASSIGNMENTS)}"
            )
        if not self.sections:
            raise SchemaError("a schema needs at least one section")
        names = [section.name for section in self.sections]
        if len(set(names)) < len(names):
            raise SchemaError(f"a section stands twice: {', '.join(names)}")
        for path, field in self.fields():
            whole = field.width if isinstance(field, Waypoints) else field.tokens
            if whole > self.block_size and (not isinstance(field, Text) or field.closes):
                raise SchemaError(
                    f"{path}: a {_kind(field)} of {whole} tokens does not fit a block of "
                    f"{self.block_size}; raise block_size or shorten it"
                )

    def fields(self) -> Iterator[tuple[str, Field]]:
        """Every field with its path, ``section`` or ``section.field``, in order."""
        for section in self.sections:
            for key, field in section.fields.items():
                yield (f"{section.name}.{key}" if key else section.name), field


def load_schema(source: str | Path) -> Schema:
    """A schema from YAML.

    Args:
        source: path of a file, or the name of one that comes along (``fast_ddrive``).

    Raises:
        SchemaError: where there is none, or it is none, with what is wrong and where.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{source}.yaml"
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        have = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise SchemaError(
            f"no schema {str(source)!r} ({error.strerror}); have: {have}, or the path of a .yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise SchemaError(f"{path}: no YAML: {error}") from error
    try:
        return _schema(document)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from None


def clean(text: str) -> str:
    """`text` so that it stands in a JSON string just as it is: without what would need a backslash,
    and without spaces at its ends."""
    return UNSAFE.sub(lambda found: "'" if found.group() == '"' else " ", text).strip()


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that stands twice, which YAML would silently let win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _schema(document: Any) -> Schema:
    options = _mapping("the schema", document)
    sections = _mapping("sections", options.pop("sections", None))
    known = {"name", "block_size", "assignment"}
    if unknown := set(options) - known:
        raise SchemaError(
            f"unknown option {sorted(map(str, unknown))}; have: {', '.join(sorted(known))} "
            "and sections"
        )
    if not isinstance(options.get("name"), str):
        raise SchemaError(f"name must be a text, got {options.get('name')!r}")
    return Schema(
        sections=tuple(_section(name, value) for name, value in sections.items()), **options
    )


def _section(name: Any, value: Any) -> Section:
    members = _mapping(_key(name), value)
    if isinstance(members.get("kind"), str):
        return Section(name, {"": _field(name, members)})
    return Section(
        name, {_key(key): _field(f"{name}.{key}", field) for key, field in members.items()}
    )


def _field(path: str, value: Any) -> Field:
    options = _mapping(path, value)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise SchemaError(f"{path}: unknown kind {kind!r}; have: {', '.join(KINDS)}")
    cls = KINDS[kind]
    known = {field.name: field.default for field in dataclasses.fields(cls) if field.init}
    if unknown := set(options) - set(known):
        raise SchemaError(
            f"{path}: unknown option {sorted(map(str, unknown))}; a {kind} takes: "
            f"{', '.join(known) or 'none'}"
        )
    needed = {name for name, default in known.items() if default is dataclasses.MISSING}
    if missing := needed - set(options):
        raise SchemaError(f"{path}: a {kind} needs {', '.join(sorted(missing))}")
    try:
        return cls(**options)
    except ValueError as error:
        raise SchemaError(f"{path}: {error}") from None


def _mapping(path: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict) or not value:
        raise SchemaError(f"{path}: expected a mapping of at least one key, got {value!r:.80}")
    return dict(value)


def _key(key: Any) -> str:
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        raise SchemaError(f"{key!r} is no key: letters, digits and _, not beginning with a digit")
    return key


def _kind(field: Field) -> str:
    return {cls: kind for kind, cls in KINDS.items()}[type(field)]


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 4096:
            raise ValueError(f"{name} must be a whole number from 1 to 4096, got {count!r}")
