"""From a config node to an object: typed, validated, with errors that name the key and the nearest valid one."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import pydantic

from fedalign.data.names import suggest
from fedalign.errors import UserError

T = TypeVar("T")

TARGET = "_target_"
_PACKAGE = "fedalign."


def build(node: Any, expected: type[T], key: str) -> T:
    """Return the object that a config node describes.

    Parameters
    ----------
    node : mapping
        Either carries ``_target_``, the class to build, or holds the fields of ``expected`` itself.
    expected : type
        The object is an instance of it.
    key : str
        Where the node stands in the config, for messages; ``""`` at the top.

    Raises
    ------
    UserError
        If a key is unknown or missing, a value has the wrong type or range, or the target is not allowed.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{key}={node!r} must be a group of keys")
    values = {str(k): v for k, v in node.items() if k != TARGET}
    cls = _target(node[TARGET], expected, key) if TARGET in node else expected
    if not dataclasses.is_dataclass(cls):
        raise UserError(f"{_join(key, TARGET)} is missing")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(f"unknown key {_join(key, name)}{suggest(name, fields)}")
    for name in fields:
        if name not in values:
            raise UserError(f"missing key {_join(key, name)}; set it")
    arguments = {name: _value(values[name], hint, _join(key, name)) for name, hint in fields.items()}
    return cast(T, cls(**arguments))


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _target(path: Any, expected: type, key: str) -> type:
    """Import the class that a node names; only fedalign's own, since nodes also come over the wire."""
    if not isinstance(path, str) or not path.startswith(_PACKAGE):
        raise UserError(f"{_join(key, TARGET)}={path!r} is not a class of fedalign")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{_join(key, TARGET)}={path} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, expected) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{_join(key, TARGET)}={path} is not a {expected.__name__}")
    return cls


def _value(value: Any, hint: Any, key: str) -> Any:
    """Return one field's value: a nested object, or a leaf checked by pydantic."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if isinstance(option, type) and _is_node_type(option):
            return build(value, option, key)
    if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
        part = typing.get_args(hint)[1]
        if isinstance(part, type) and _is_node_type(part):
            return {str(name): build(node, part, _join(key, str(name))) for name, node in value.items()}
    try:
        # As JSON, whose strict mode takes a list for a tuple but neither true nor "1" for the number 1.
        return pydantic.TypeAdapter(hint).validate_json(json.dumps(value, default=str), strict=True)
    except pydantic.ValidationError as error:
        problems = " or ".join(dict.fromkeys(re.sub(r"^\w+ should ", "", e["msg"]) for e in error.errors()))
        raise UserError(f"{key}={value!r} is not valid: it should {problems}") from error


def _is_node_type(option: type) -> bool:
    return option.__module__.startswith(_PACKAGE.rstrip(".")) and (
        dataclasses.is_dataclass(option) or hasattr(option, "__abstractmethods__")
    )
