"""Read values out of an omegaconf configuration that came in a file, computing but never running.

`Config.get` resolves interpolations (`${horizon}`) and the arithmetic that diffusion_policy writes
as `${eval:'${n_action_steps}+${n_latency_steps}'}`. Upstream hands that text to Python's `eval`;
here it is parsed, checked against a small grammar and computed node by node. Values are resolved
when asked for, so fields that nobody needs may hold whatever they like, except a program.
"""

from __future__ import annotations

import ast
import operator
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError
from fastloop.policies.checkpoints.unpickle import Stub

__all__ = ["Config", "evaluate", "plain"]

MAX_DEPTH = 40
MAX_VALUES = 20_000
MAX_TEXT = 10_000
MAX_EXPRESSION = 500
REQUIRED = object()

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "int": int, "float": float, "bool": bool, "abs": abs, "round": round, "min": min, "max": max,
}  # fmt: skip


def plain(value: Any) -> Any:
    """A pickled omegaconf configuration as dicts, lists and scalars, interpolations as text.

    Raises:
        CheckpointError: when it holds anything else, itself, or absurdly much.
    """
    left = MAX_VALUES

    def convert(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise CheckpointError("the configuration in the file is absurdly large or holds itself")
        if isinstance(value, Stub):
            return convert(value.state.get("_content", value.state.get("_val")), depth + 1)
        if isinstance(value, dict):
            return {str(key): convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [convert(item, depth + 1) for item in value]
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise CheckpointError("the configuration in the file holds absurdly long text")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise CheckpointError(f"the configuration in the file holds a {type(value).__name__}")

    return convert(value, 0)


class Config:
    """A configuration from a file, asked by dotted path.

    Args:
        values: nested dicts and lists, as `plain` returns them.

    Raises:
        RefusedError: when any expression in it is more than arithmetic, or any ``_target_`` names
            the standard library, whether or not the value is ever asked for.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self._left = 0
        for path, text in _strings(values):
            if path.endswith("_target_") and text.split(".")[0] in sys.stdlib_module_names:
                raise RefusedError(f"build {text} (at {path})")
            for expression in _expressions(text):
                _parse(expression, path)

    def get(self, path: str, default: Any = REQUIRED) -> Any:
        """The value at `path` with everything in it resolved.

        Raises:
            CheckpointError: when it is missing without a default, or refers to itself.
            RefusedError: when it needs more than arithmetic.
        """
        self._left = MAX_VALUES
        try:
            return self._resolve(self._find(path), path, 0)
        except _MissingError as error:
            if default is REQUIRED:
                raise CheckpointError(str(error)) from None
            return default

    def _find(self, path: str) -> Any:
        value: Any = self.values
        walked = ""
        for name in re.split(r"\.|\[|\]\.?", path.rstrip("]")):
            held = dict(enumerate(value)) if isinstance(value, list) else value
            index = int(name) if isinstance(value, list) and name.isdigit() else name
            if not isinstance(held, dict) or index not in held:
                found = ", ".join(map(str, held)) if isinstance(held, dict) else repr(held)
                raise _MissingError(
                    f"the configuration has no {path}; {walked or 'it'} holds {found}"
                )
            value, walked = held[index], f"{walked}.{name}".lstrip(".")
        return value

    def _resolve(self, value: Any, path: str, depth: int) -> Any:
        self._left -= 1
        if depth > MAX_DEPTH:
            raise CheckpointError(f"the configuration's {path} refers to itself")
        if self._left < 0:
            raise CheckpointError(f"the configuration's {path} expands without bound")
        if isinstance(value, dict):
            return {k: self._resolve(v, f"{path}.{k}", depth + 1) for k, v in value.items()}
        if isinstance(value, list):
            return [self._resolve(v, f"{path}.{i}", depth + 1) for i, v in enumerate(value)]
        if not isinstance(value, str):
            return value
        parts = list(_split(value))
        if len(parts) == 1 and parts[0][0]:
            return self._interpolate(parts[0][1], path, depth + 1)
        resolved = ""
        for inside, text in parts:
            found = self._interpolate(text, path, depth + 1) if inside else text
            if isinstance(found, dict | list):
                raise CheckpointError(f"the configuration's {path} puts a {type(found)} into text")
            resolved += str(found)
            if len(resolved) > MAX_TEXT:
                raise CheckpointError(f"the configuration's {path} expands without bound")
        return resolved

    def _interpolate(self, text: str, path: str, depth: int) -> Any:
        resolver, colon, argument = text.partition(":")
        if not colon:
            target = text.strip()
            if dots := len(target) - len(target.lstrip(".")):
                parents = path.split(".")[:-dots]
                target = ".".join([*parents, target[dots:]])
            return self._resolve(self._find(target), target, depth)
        if resolver.strip() != "eval":
            raise RefusedError(f"use the resolver {resolver.strip()!r} for {path}")
        return evaluate(str(self._resolve(_unquoted(argument), path, depth)), path)


class _MissingError(Exception):
    pass


def evaluate(text: str, path: str = "expression") -> Any:
    """Compute arithmetic, comparisons and `a if b else c` over numbers, words and None.

    Raises:
        RefusedError: naming the part that is anything else.
        CheckpointError: when it cannot be computed (``1/0``).
    """
    tree = _parse(text, path)
    try:
        return _compute(tree)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"cannot compute {text!r} for {path}: {error}") from error


def _parse(text: str, path: str) -> ast.expr:
    if len(text) > MAX_EXPRESSION:
        raise RefusedError(f"compute {len(text)} characters of expression for {path}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        bad = _foreign(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"cannot read the expression {text!r} of {path}: {error}") from error
    if bad is not None:
        raise RefusedError(f"evaluate {ast.unparse(bad)} (at {path})")
    return tree


def _foreign(node: ast.expr) -> ast.AST | None:
    """The first part of an expression that is outside the grammar, the largest such part first."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return None
        case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATORS:
            parts = [left, right]
        case ast.Compare(ops=ops, left=left, comparators=rest) if all(
            type(op) in OPERATORS for op in ops
        ):
            parts = [left, *rest]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            parts = [operand]
        case ast.BoolOp(values=values):
            parts = values
        case ast.IfExp(test=test, body=body, orelse=orelse):
            parts = [test, body, orelse]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            parts = args
        case _:
            return node
    return next((bad for part in parts if (bad := _foreign(part)) is not None), None)


def _compute(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.BinOp(op=op, left=left, right=right):
            pair = _compute(left), _compute(right)
            if any(isinstance(value, str) for value in pair):
                raise TypeError("words take no part in arithmetic")
            return OPERATORS[type(op)](*pair)
        case ast.Compare(ops=ops, left=left, comparators=rest):
            values = [_compute(left), *map(_compute, rest)]
            pairs = zip(ops, values, values[1:], strict=False)
            return all(OPERATORS[type(op)](a, b) for op, a, b in pairs)
        case ast.UnaryOp(op=op, operand=operand):
            value = _compute(operand)
            return not value if isinstance(op, ast.Not) else -value if _minus(op) else +value
        case ast.BoolOp(op=ast.And(), values=parts):
            return _first(parts, lambda value: not value)
        case ast.BoolOp(values=parts):
            return _first(parts, bool)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _compute(body if _compute(test) else orelse)
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name](*map(_compute, args))
    raise AssertionError(ast.dump(node))  # _parse let it through


def _minus(op: ast.unaryop) -> bool:
    return isinstance(op, ast.USub)


def _first(parts: list[ast.expr], decides: Callable[[Any], bool]) -> Any:
    for part in parts:
        value = _compute(part)
        if decides(value):
            break
    return value


def _split(text: str) -> Iterator[tuple[bool, str]]:
    """The pieces of a string: (False, text) and (True, inside of ``${...}``), nesting respected."""
    start = 0
    while (opening := text.find("${", start)) >= 0:
        if opening > start:
            yield False, text[start:opening]
        depth, end = 1, opening + 2
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            raise CheckpointError(f"unclosed interpolation in the configuration: {text[:80]!r}")
        yield True, text[opening + 2 : end - 1]
        start = end
    if start < len(text) or not text:
        yield False, text[start:]


def _expressions(text: str) -> Iterator[str]:
    """Every eval expression in a string, its own interpolations stood in for by 0."""
    for inside, part in _split(text):
        if not inside:
            continue
        yield from _expressions(part)
        if found := re.match(r"\s*eval\s*:", part):
            pieces = _split(_unquoted(part[found.end() :]))
            yield "".join("0" if nested else piece for nested, piece in pieces)


def _unquoted(text: str) -> str:
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(item, f"{path}.{key}".lstrip("."))
