"""Command-line options made from the fields of the settings, so that each is described once."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any, NamedTuple, get_args, get_type_hints


def add_options(parser: argparse.ArgumentParser, title: str, *configs: type, only: Iterable[str] = ()) -> None:
    """One option for each field of some dataclasses (or those named in `only`), in a group of the help text.

    A field's metadata says `help` and `choices`; `flag: False` leaves it out. With `fewest`, the name of another field,
    the option takes a range A:B too, A for that field. A field that several of the classes have
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
    values: dict[str, Any] = {}
    for spec in (spec for config in configs for spec in fields(config)):
        value = getattr(arguments, spec.name, None)
        if isinstance(value, _Range):
            values |= {spec.metadata["fewest"]: value.fewest, spec.name: value.most}
        elif value is not None:
            values[spec.name] = tuple(value) if isinstance(value, list) else value
    return values


class _Range(NamedTuple):
    """Of a number that differs from task to task."""

    fewest: int
    most: int


def _number_or_range(text: str) -> int | _Range:
    """ "5", or "5:20"."""
    if ":" not in text:
        return int(text)
    fewest, most = map(int, text.split(":"))
    if fewest > most:
        raise argparse.ArgumentTypeError(f"a range goes from the fewest to the most, got {text}")
    return _Range(fewest, most)


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
    elif "fewest" in spec.metadata:
        text += "; A:B where they vary from task to task"
        group.add_argument(flag, type=_number_or_range, metavar="N", default=None, help=text)
    else:
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        group.add_argument(flag, type=kind, metavar=metavar, default=None, help=text)
