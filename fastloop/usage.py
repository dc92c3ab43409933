"""What can be said on the command line: its help, and what a mistake should have been."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from os.path import expanduser
from typing import get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from fastloop import schemas
from fastloop.accel.report import AcceleratorIdleError
from fastloop.extras import MissingExtraError

__all__ = ["USER_ERRORS", "composed", "message", "near", "of_tasks", "of_verb"]

USER_ERRORS = (
    ValueError, OSError, FloatingPointError, AcceleratorIdleError, MissingExtraError,
    HydraException, OmegaConfBaseException,
)  # fmt: skip
SCHEMAS: dict[str, type] = schemas.SCHEMAS | schemas.TASK_SCHEMAS
SETTING = re.compile(r"(\+\+?|~)?[A-Za-z_][\w./@:-]*")


def composed(name: str, words: Sequence[str]) -> DictConfig:
    """The configuration `name` with `words`, Hydra's overrides, over it.

    Raises:
        HydraException, OmegaConfBaseException, ValueError: a word does not fit.
    """
    with _configurations():
        for word in words:
            _check_word(name, word)
        config = compose(name, overrides=list(words))
    _refuse_unknown(config)
    return config


def of_tasks(verb: str, what: str, tasks: Mapping[str, str]) -> str:
    """Help of a verb that is followed by a task: what each of its configurations is."""
    width = max(map(len, tasks))
    docs = {task: " ".join(_doc(SCHEMAS[name]).split()) for task, name in tasks.items()}
    lines = [f"  {task:<{width}}  {_first_sentence(doc)}" for task, doc in docs.items()]
    usage = f"usage: fastloop {verb} {'|'.join(tasks)} [key=value ...]"
    told = f"`fastloop {verb} TASK --help` shows settings and choices."
    return "\n".join([usage, "", what, "", *lines, "", told])


def of_verb(command: str, what: str, name: str, words: Sequence[str]) -> str:
    """Help of a verb, or of one of its tasks: what its settings mean, what can be chosen, and the
    configuration with `words` over it.

    Raises:
        HydraException, OmegaConfBaseException, ValueError: a word does not fit.
    """
    config = composed(name, words)
    with suppress(MissingMandatoryValue):  # who asks for help need not know it yet
        OmegaConf.to_object(config)
    with _configurations():
        choices = [f"{group}= one of {', '.join(have)}" for group, have in _choices(name).items()]
    names: dict[type, list[str]] = {}
    for path, part in _parts(SCHEMAS[name]):
        names.setdefault(part, []).append(path)
    parts = [f"{', '.join(paths)}: {_compact(part)}\n" for part, paths in names.items()]
    lines = [f"usage: fastloop {command} [key=value ...]", "", what, "", _doc(SCHEMAS[name]), ""]
    settings = OmegaConf.to_yaml(config)
    return "\n".join([*lines, *parts, *choices, "", "Settings and their values:", "", settings])


def message(error: Exception, words: Sequence[str]) -> str:
    """The error with what Hydra knows about it, the choices, which stand in its cause; or with the
    one of `words` that names the file which it is about."""
    if isinstance(error, OSError) and error.filename is not None:
        said = [word for word in words if word.partition("=")[2] == str(error.filename)]
        return f"{said[0] if said else error.filename}: {error.strerror}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no default; say {error.full_key}=..."
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        siblings = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
        have = [str(key) for key in siblings if key not in ("_target_", "hydra")]
        typed = any(map(dataclasses.is_dataclass, get_args(cause.ref_type)))
        free = cause.object_type is dict and not typed
        add = f"; +{cause.full_key}=... adds it, where what is built takes it" if free else ""
        told = f"unknown setting {cause.full_key!r}; have: {', '.join(have) or 'none'}{add}"
        return told + near(str(cause.full_key), have)
    return f"{error}\n{cause}" if isinstance(error, HydraException) and cause else str(error)


def near(given: str, have: Iterable[str]) -> str:
    """A further line that asks whether the nearest of `have` was meant; empty where none is near.

    Args:
        given: a word, or the path of a setting whose last part is one.
        have: what there is in its place.
    """
    path, dot, last = given.rpartition(".")
    close = get_close_matches(last, have, n=1)
    return f"\ndid you mean {path}{dot}{close[0]}?" if close else ""


@contextmanager
def _configurations() -> Iterator[None]:
    schemas.register()
    with initialize_config_module("fastloop.configs", version_base="1.3"):
        yield


def _choices(name: str) -> dict[str, list[str]]:
    """Each group of the configuration `name`, and what there is in it."""
    loader = GlobalHydra.instance().config_loader()
    groups = compose(name, return_hydra_config=True).hydra.runtime.choices
    return {g: loader.get_group_options(g) for g in groups if not g.startswith("hydra/")}


def _check_word(name: str, word: str) -> None:
    """That Hydra can read the word; by itself it would name tokens of its grammar."""
    if _is_read(word):
        return
    setting, equals, value = word.partition("=")
    if not (equals and SETTING.fullmatch(setting)):
        raise ValueError(
            f"{word!r} is no setting: settings are name=value, such as {_example(name, word)}"
        )
    if value.startswith("~"):
        told = f"~ is not the home folder here; say {_spelled(setting, expanduser(value))}"
    else:
        told = (
            f"a text with special characters stands in quotes, {_spelled(setting, value)}; "
            "a list is [a,b], a map {a: 1}"
        )
        if _parsed(word):
            told = f"it names several values, and one is taken; {told}"
    raise ValueError(f"cannot read {word!r}: {told}")


def _is_read(word: str) -> bool:
    override = _parsed(word)
    return override is not None and not override.is_sweep_override()


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _spelled(setting: str, value: str) -> str:
    """The two as a shell and Hydra read them."""
    plain = f"{setting}={value}"
    if _is_read(plain):
        return shlex.quote(plain)
    escaped = value.replace('"', '\\"')
    return shlex.quote(f'{setting}="{escaped}"')


def _example(name: str, word: str) -> str:
    """What was likely meant by a word that is no setting."""
    bare = word.lstrip("-")
    setting, equals, value = bare.partition("=")
    if equals and SETTING.fullmatch(setting):
        return _spelled(setting, value)
    config = compose(name)
    settings = OmegaConf.to_container(config)
    if bare in settings:
        return f"{bare}=..."
    for group, have in _choices(name).items():
        if bare in have:
            return f"{group}={bare}"
    if needed := sorted(OmegaConf.missing_keys(config)):
        return _spelled(needed[0], bare)
    plain = ((key, it) for key, it in settings.items() if not isinstance(it, dict | list))
    setting, value = next(plain)
    return _spelled(setting, bare if value is None else str(value))


def _refuse_unknown(config: DictConfig, path: str = "") -> None:
    """What ``+name=value`` added where nothing reads it."""
    schema = OmegaConf.get_type(config)
    if dataclasses.is_dataclass(schema):
        known = [field.name for field in dataclasses.fields(schema)]
        if unknown := [f"{path}{key}" for key in config if key not in known]:
            told = f"unknown setting {unknown[0]!r}; have: {', '.join(known)}"
            raise ValueError(told + near(unknown[0], known))
    for key in config:
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            _refuse_unknown(config[key], f"{path}{key}.")


def _parts(schema: type, path: str = "") -> Iterator[tuple[str, type]]:
    """The dataclasses inside of a schema, at any depth, each behind its place in there."""
    for name, hint in get_type_hints(schema).items():
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part):
                place = f"{path}{name}.NAME" if get_origin(hint) is dict else f"{path}{name}"
                yield place, part
                yield from _parts(part, f"{place}.")


def _doc(schema: type) -> str:
    return inspect.cleandoc(schema.__doc__ or "").partition("\n\nRaises:")[0]


def _compact(schema: type) -> str:
    return _doc(schema).replace("\n\nAttributes:", "")


def _first_sentence(doc: str) -> str:
    return doc.partition(". ")[0].partition(" Attributes:")[0].rstrip(".")
