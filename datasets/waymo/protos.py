"""Classes of the Waymo Open Dataset's messages, made at run time without generated code."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fastloop.datasets.errors import DatasetError
from fastloop.extras import require

__all__ = ["MESSAGES", "messages", "parse", "text"]

MESSAGES = Path(__file__).with_name("messages.yaml")


@cache
def messages(name: str) -> Any:
    """The class of message `name`, from a pool of our own.

    Generated code is bound to the major version of protobuf that it was generated for, and clashes
    with an installed `waymo_open_dataset`; this does neither (protobuf 4.25 to 7).

    Args:
        name: with its package, for instance ``waymo.open_dataset.Scenario`` or
            ``tensorflow.Example``; `MESSAGES` lists all of them with their fields.

    Raises:
        DatasetError: where there is no such message, with the messages that there are.
        MissingExtraError: without protobuf.
    """
    factory = require("google.protobuf.message_factory", extra="data")
    pool, names = _pool()
    if name not in names:
        raise DatasetError(f"unknown message {name!r}; have: {', '.join(names)}")
    return factory.GetMessageClass(pool.FindMessageTypeByName(name))


def parse(name: str, payload: bytes | memoryview, *, where: str) -> Any:
    """Message `name` from its wire format.

    Args:
        name: as in `messages`.
        payload: the whole message.
        where: file and offset, for the fault.

    Raises:
        DatasetError: where the payload is no such message.
    """
    message = messages(name)()
    decode_error = require("google.protobuf.message", extra="data").DecodeError
    try:
        message.ParseFromString(bytes(payload))
    except (decode_error, UnicodeDecodeError) as error:
        raise DatasetError(f"{where}: no {name} ({error})") from error
    return message


def text(message: Any, field: str, *, where: str) -> str:
    """The string in `field`; of damaged text, one runtime of protobuf makes bytes and another an
    error.

    Raises:
        DatasetError: where it is no UTF-8.
    """
    try:
        value = getattr(message, field)
    except UnicodeDecodeError as error:
        value = error.object
    if not isinstance(value, str):
        raise DatasetError(f"{where}: {field} is no text: {value!r:.80}")
    return value


@cache
def _pool() -> tuple[Any, list[str]]:
    descriptor_pb2 = require("google.protobuf.descriptor_pb2", extra="data")
    pool = require("google.protobuf.descriptor_pool", extra="data").DescriptorPool()
    names = []
    for package, content in yaml.safe_load(MESSAGES.read_text("utf-8")).items():
        file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
        by_name: dict[str, Any] = {}

        def message(name: str, file: Any = file, by_name: dict[str, Any] = by_name) -> Any:
            if name not in by_name:
                by_name[name] = file.message_type.add(name=name)
            return by_name[name]

        enums = content.get("enums", {})
        for full_name, values in enums.items():
            holder, name = full_name.split(".")
            enum = message(holder).enum_type.add(name=name)
            for number, value in enumerate(values):
                enum.value.add(name=value, number=number)
        for name, fields in content["messages"].items():
            for field, words in fields.items():
                _add_field(message(name), field, words.split(), f".{package}.", enums)
        pool.Add(file)
        names += [f"{package}.{name}" for name in content["messages"]]
    return pool, names


def _add_field(message: Any, name: str, words: list[str], scope: str, enums: Any) -> None:
    """Add what one line of `MESSAGES` says; `words` is the line behind its colon."""
    number, *label, kind = words
    field = message.field.add(name=name, number=int(number))
    field.label = field.LABEL_OPTIONAL if label[:1] in ([], ["oneof"]) else field.LABEL_REPEATED
    if scalar := getattr(field, f"TYPE_{kind.upper()}", None):
        field.type = scalar
    else:
        field.type = field.TYPE_ENUM if kind in enums else field.TYPE_MESSAGE
        field.type_name = scope + kind
    if label == ["packed"]:
        field.options.packed = True
    elif label == ["map"]:
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", ["1", "string"], scope, enums)
        _add_field(entry, "value", ["2", kind], scope, enums)
        field.type_name = f"{scope}{message.name}.{entry.name}"
    elif label[:1] == ["oneof"]:
        oneofs = [oneof.name for oneof in message.oneof_decl]
        if label[1] not in oneofs:
            message.oneof_decl.add(name=label[1])
            oneofs.append(label[1])
        field.oneof_index = oneofs.index(label[1])
