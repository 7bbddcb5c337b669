"""Command-line options made from the fields of the settings, so that each is described once."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any, get_args, get_type_hints


def add_options(parser: argparse.ArgumentParser, title: str, *configs: type, only: Iterable[str] = ()) -> None:
    """One option for each field of some dataclasses (or those named in `only`), in a group of the help text.

    A field's metadata says `help` and `choices`; `flag: False` leaves it out. A field that several of the classes have
    is one option. Options that are not given parse to None, so that a preset's value can stand.
    """
    group = parser.add_argument_group(title)
    chosen, added = set(only), set[str]()
    for config in configs:
        types_of = get_type_hints(config)
        for spec in fields(config):
            wanted = spec.metadata.get("flag", True) and (not chosen or spec.name in chosen)
            if wanted and spec.name not in added:
                added.add(spec.name)
                _add(group, spec, types_of[spec.name])


def given(arguments: argparse.Namespace, *configs: type) -> dict[str, Any]:
    """The fields of some dataclasses that the command line sets."""
    values = {spec.name: getattr(arguments, spec.name, None) for config in configs for spec in fields(config)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def _add(group: argparse._ArgumentGroup, spec: Field[Any], kind: Any) -> None:
    flag = "--" + spec.name.replace("_", "-")
    text = spec.metadata["help"].replace("%", "%%")
    if isinstance(kind, types.UnionType):  # int | None, where None is automatic
        (kind,) = (option for option in get_args(kind) if option is not type(None))
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif isinstance(kind, types.GenericAlias):
        group.add_argument(flag, nargs="+", metavar="NAME", default=None, help=text)
    elif "choices" in spec.metadata:
        group.add_argument(flag, choices=spec.metadata["choices"], default=None, help=text)
    else:
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        group.add_argument(flag, type=kind, metavar=metavar, default=None, help=text)
