# SPDX-License-Identifier: Apache-2.0
"""ROS parameter files: parsed as the node's rcl parses them (rcl_yaml_param_parser), and written.

A file that rcl cannot read, or misreads, is a ConfigError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, nearest, quoted, reason
from .files import open_regular

_PARAMETERS = 'ros__parameters'
_EXPECTED = f"expected '/**:' with '{_PARAMETERS}:' and keys and values below it."
_BOOLEANS = {text: value for value, texts in (
    (True, 'Y y yes Yes YES true True TRUE on On ON'),
    (False, 'N n no No NO false False FALSE off Off OFF')) for text in texts.split()}
# As C's strtoll and strtod, which rcl calls; hexadecimal numbers are integers only.
_WHOLE = re.compile(r'[+-]?(?:(0[xX][\da-fA-F]{1,16})|(0[0-7]{,22})|[1-9]\d{,18})', re.ASCII)
_REAL = re.compile(r'(?ai)[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?|nan)')
_POINTED = re.compile(r'([+-]?)\.(inf|Inf|INF)\Z|^()\.(nan|NaN|NAN)\Z')
_NODE = re.compile(r'/?(?:(?:\*\*?|[A-Za-z_]\w*)(?:/|$))+(?<!/)', re.ASCII)
_QUOTES = ("'", '"')
_TEXT = 'tag:yaml.org,2002:str'
# rcl uses libyaml, which accepts tabs where Python's own parser does not.
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
_ERRORS = (yaml.YAMLError, ValueError, OverflowError, RecursionError)


def read_parameters(path: str | Path, node_name: str) -> dict[str, Any]:
    """Merge the sections of a parameter file that match a node; ConfigError if none matches."""
    full_name, patterns = f'/{node_name.removeprefix("/")}', sections(path)
    matching = [parameters for name, parameters in patterns.items() if _matches(
        f'/{name.removeprefix("/")}', full_name)]
    if not matching:
        names = quoted(list(patterns), 200) if patterns else 'none'
        raise ConfigError(f"{path}: no section for {full_name}; found {names}. Write the settings "
                          f"under '/**:' and '{_PARAMETERS}:'.")
    return {name: value for parameters in matching for name, value in parameters.items()}


def sections(path: str | Path) -> dict[str, dict[str, Any]]:
    """Parse parameters by node pattern, in the file's order; a repeated pattern is merged.

    ConfigError: the file cannot be read, or rcl would not accept it.
    """
    patterns: dict[str, dict[str, Any]] = {}
    try:
        with open_regular(Path(path)) as file:
            events = yaml.parse(file.read(), Loader=_LOADER)
            for name, parameters in _sections(_document(events)):
                patterns.setdefault(name, {}).update(parameters)
    except OSError as error:
        raise ConfigError(f'{quoted(str(path), 200)}: cannot read the parameter file: '
                          f'{error.strerror}.') from error
    except _ERRORS as error:
        raise ConfigError(f'{path}: not valid YAML for ROS: {_problem(error)}') from error
    return patterns


def read_value(text: str) -> Any:
    """Parse one value, as after `-p NAME:=`; ConfigError if it is none."""
    try:
        events = yaml.parse(text, Loader=_LOADER)
        next(events), next(events)
        return _value(events, next(events))
    except _ERRORS as error:
        raise ConfigError(f'{quoted(text)} is no value: {_problem(error)}.') from error


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that rcl alone takes for numbers, such as 1e5."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    _TEXT, text, _QUOTES[0] if _scalar(text) != text else None))


def to_yaml(parameters: Mapping[str, Any]) -> str:
    """Format a parameter file that applies to every node."""
    return yaml.dump({'/**': {_PARAMETERS: dict(parameters)}}, Dumper=_Dumper, sort_keys=False,
                     default_flow_style=None, width=99, allow_unicode=True)


def _fault(problem: str, event: Any = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event and event.start_mark)


def _problem(error: Any) -> str:
    mark = getattr(error, 'problem_mark', None)
    return (f'line {mark.line + 1}: ' if mark else '') + (
        getattr(error, 'problem', None) or reason(error))


def _document(events: Iterator[Any]) -> dict[str, Any]:
    """Parse the one mapping of a file; {} for an empty file."""
    next(events)
    if isinstance(next(events), yaml.StreamEndEvent):
        return {}
    if not isinstance(start := next(events), yaml.MappingStartEvent):
        raise _fault(_EXPECTED, start)
    values: dict[str, Any] = _value(events, start)
    next(events)
    if not isinstance(event := next(events), yaml.StreamEndEvent):
        raise _fault('a second document begins; write one alone.', event)
    return values


def _value(events: Iterator[Any], event: Any) -> Any:
    """Parse what an event begins: a scalar, a list of scalars of one type, or a mapping."""
    if isinstance(event, yaml.AliasEvent):
        raise _fault('rcl reads no & * <<: write the values out.', event)
    if event.tag and event.tag.startswith('!') and event.tag != '!':
        raise _fault(f'rcl knows no {event.tag}: write the value itself.', event)
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events)
    if isinstance(event, yaml.SequenceStartEvent):
        return _list(events, event)
    if '\0' in event.value or not (event.value or event.style in _QUOTES):
        raise _fault("a value is missing, or holds a NUL; '' is an empty text.", event)
    return event.value if event.style in _QUOTES or event.tag == _TEXT else _scalar(event.value)


def _list(events: Iterator[Any], start: Any) -> list[Any]:
    values = []
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            raise _fault("a list in a list, or a text with ': ' that is not quoted.", event)
        values.append(_value(events, event))
    if len(set(map(type, values))) > 1:
        raise _fault(f'{quoted(values)}: all of a list are of the same type; quote texts, and '
                     'write numbers all with or all without a point: [1.0, 2.5].', start)
    return values


def _mapping(events: Iterator[Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent) or not key.value:
            raise _fault("a key must be a name; quote '*' and '**', and write no & * <<.", key)
        if key.value in lines:
            raise _fault(f'{quoted(key.value)} stands there a second time, after line '
                         f'{lines[key.value]}; keep one of them.', key)
        lines[key.value] = key.start_mark.line + 1  # type: ignore[union-attr]
        values[key.value] = _value(events, next(events))
    return values


def _scalar(text: str) -> Any:
    """Convert an unquoted text as rcl does: boolean, integer, float or text."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if whole := _WHOLE.fullmatch(text):
        value = int(text, 16 if whole[1] else 8 if whole[2] else 10)
        if -2**63 <= value < 2**63:
            return value
    plain = _POINTED.sub(r'\1\2\3\4', text)
    number = float(plain) if _REAL.fullmatch(plain) else None
    if number is None or (math.isinf(number) and 'n' not in plain.lower()):  # ERANGE
        return text
    return number


def _sections(document: dict[str, Any], name: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield node pattern and parameters; namespaces may be nested or joined by slashes."""
    for key, value in document.items():
        inner = f'{name}/{key}' if name else key
        if not isinstance(value, dict):
            near = nearest(_PARAMETERS, {*inner.split('/')} - {_PARAMETERS})
            raise _fault(f'{quoted(inner)} holds {quoted(value)}; {_EXPECTED}'
                         + f" Instead of '{near}', write '{_PARAMETERS}'." * bool(near))
        if key != _PARAMETERS:
            yield from _sections(value, inner)
        elif len(document) > 1 or not _NODE.fullmatch(name):
            raise _fault(f"{quoted(name)} above '{_PARAMETERS}' must be the name of a node, such "
                         "as '/**', and hold nothing beside it.")
        else:
            yield name, value


def _matches(pattern: str, full_name: str) -> bool:
    """Match a node's name with ROS wildcards: `*` is one name, `**` any number of names."""
    regex = '/'.join(
        {'**': '.*', '*': '[^/]+'}.get(part, re.escape(part)) for part in pattern.split('/'))
    # '/**/x' also matches '/x', and '/**' every node.
    return re.fullmatch(regex.replace('/.*/', '/(?:.*/)?'), full_name) is not None
