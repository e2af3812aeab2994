# SPDX-License-Identifier: Apache-2.0
"""ROS parameter files, read as rcl reads them for the node (rcl_yaml_param_parser), and written.

rcl's values are those of C's strtoll and strtod, not YAML's. What rcl cannot read, or reads into
something that nobody wrote, is refused.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, quoted, reason
from .files import open_regular

_PARAMETERS = 'ros__parameters'
_EXPECTED = f"expected '/**:' with '{_PARAMETERS}:' and keys and values below it."
_BOOLEANS = {text: value for value, texts in (
    (True, 'Y y yes Yes YES true True TRUE on On ON'),
    (False, 'N n no No NO false False FALSE off Off OFF')) for text in texts.split()}
_WHOLE = re.compile(r'[+-]?(?:(0x[\da-f]+)|(0[0-7]*)|[1-9]\d*)', re.ASCII | re.IGNORECASE)
_REAL = re.compile(r'[+-]?(?:0x[\da-f.]+(?:p[+-]?\d+)?|[\d.]+(?:e[+-]?\d+)?|inf(?:inity)?|nan)',
                   re.ASCII | re.IGNORECASE)
_POINTED = re.compile(r'([+-]?)\.(inf|Inf|INF)\Z|^()\.(nan|NaN|NAN)\Z')
_NODE = re.compile(r'/?(?:\*\*?|[A-Za-z_]\w*)(?:/(?:\*\*?|[A-Za-z_]\w*))*', re.ASCII)
# libyaml is what rcl has, and takes tabs where Python's own parser does not.
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


def read_parameters(path: str | Path, node_name: str) -> dict[str, Any]:
    """Merge the sections of a ROS parameter file that match a node.

    Raises:
        ConfigError: as `sections`; or none matches.

    """
    full_name, found = f'/{node_name.removeprefix("/")}', sections(path)
    matching = [parameters for name, parameters in found.items() if _matches(
        f'/{name.removeprefix("/")}', full_name)]
    if not matching:
        names = quoted(list(found), 200) if found else 'none'
        raise ConfigError(f"{path}: no section for {full_name}; found {names}. Write the settings "
                          f"under '/**:' and '{_PARAMETERS}:'.")
    return {name: value for parameters in matching for name, value in parameters.items()}


def sections(path: str | Path) -> dict[str, dict[str, Any]]:
    """Parameters by node pattern, in the file's order; of one in two places, in the first.

    Raises:
        ConfigError: it cannot be read, is no YAML, or not as rcl takes it.

    """
    found: dict[str, dict[str, Any]] = {}
    try:
        with open_regular(Path(path)) as file:
            for name, parameters in _sections(_document(
                    yaml.parse(file.read(), Loader=_LOADER))):
                found.setdefault(name, {}).update(parameters)
    except OSError as error:
        raise ConfigError(f'{quoted(str(path), 200)}: cannot read the parameter file: '
                          f'{error.strerror}.') from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f'{path}: not valid YAML: {_problem(error)}.') from error
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error
    return found


def read_value(text: str) -> Any:
    """One value, as the command line of ROS takes it: a number, a text, a list.

    Raises:
        ConfigError: it is none.

    """
    try:
        events = yaml.parse(text, Loader=_LOADER)
        next(events), next(events)
        return _value(events, next(events))
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f'{quoted(text)} is no value: {_problem(error)}.') from error


def to_yaml(parameters: Mapping[str, Any]) -> str:
    """A parameter file for every node, in which texts stay texts."""
    return yaml.dump({'/**': {_PARAMETERS: dict(parameters)}}, Dumper=_Dumper, sort_keys=False,
                     default_flow_style=None, width=99, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes also what only rcl takes for a number, such as 1e5."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    'tag:yaml.org,2002:str', text, "'" if _scalar(text) != text else None))


def _document(events: Iterator[Any]) -> dict[str, Any]:
    """The one mapping of a file; an empty file has nothing in it."""
    next(events)
    if isinstance(next(events), yaml.StreamEndEvent):
        return {}
    if not isinstance(start := next(events), yaml.MappingStartEvent):
        raise _fault(start, f'the file holds no names and values; {_EXPECTED}')
    values: dict[str, Any] = _value(events, start)
    next(events)
    if not isinstance(event := next(events), yaml.StreamEndEvent):
        raise _fault(event, 'a second document begins; write one alone.')
    return values


def _value(events: Iterator[Any], event: Any) -> Any:
    """What begins with an event: a scalar, a list of scalars of one type, or a mapping."""
    if isinstance(event, yaml.AliasEvent):
        raise _fault(event, 'rcl reads no & * <<: write the values out.')
    tag = event.tag or '!'
    if tag.startswith('!') and tag != '!':
        raise _fault(event, f'rcl knows no {tag}: write the value itself.')
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events)
    if isinstance(event, yaml.SequenceStartEvent):
        return _list(events, event)
    if '\0' in event.value or not (event.value or event.style in ("'", '"')):
        raise _fault(event, "a value is missing, or holds a NUL; '' is an empty text.")
    text = event.style in ("'", '"') or tag == 'tag:yaml.org,2002:str'
    return event.value if text else _scalar(event.value)


def _list(events: Iterator[Any], start: Any) -> list[Any]:
    values = []
    while not isinstance(event := next(events), yaml.SequenceEndEvent):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            raise _fault(event, 'a list holds values alone, no lists: [1.0, 2.5]. Quote '
                                "a text that holds ': '.")
        values.append(_value(events, event))
    if len(set(map(type, values))) > 1:
        raise _fault(start, f'{quoted(values)}: all of a list are of the same type; quote texts, '
                            'and write numbers all with or all without a point: [1.0, 2.5].')
    return values


def _mapping(events: Iterator[Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent) or not key.value:
            raise _fault(key, "a key must be a name; quote '*' and '**', and write no & * <<.")
        if key.value in lines:
            raise _fault(key, f'{quoted(key.value)} stands there a second time, after line '
                              f'{lines[key.value]}; keep one of them.')
        lines[key.value] = _line(key)
        values[key.value] = _value(events, next(events))
    return values


def _problem(error: Any) -> str:
    mark = getattr(error, 'problem_mark', None)
    return reason(error) if mark is None else f'line {mark.line + 1}: {error.problem}'


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _fault(event: Any, what: str) -> ConfigError:
    return ConfigError(f'line {_line(event)}: {what}')


def _scalar(text: str) -> Any:
    """What rcl takes a text without quotes for."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    try:
        if (whole := _WHOLE.fullmatch(text)) is not None:
            value = int(text, 16 if whole[1] else 8 if whole[2] else 10)
            if -2**63 <= value < 2**63:
                return value
        plain = _POINTED.sub(r'\1\2\3\4', text)
        if not _REAL.fullmatch(plain):
            return text
        number = float.fromhex(plain) if 'x' in plain.lower() else float(plain)
    except (ValueError, OverflowError):
        return text
    # strtod's ERANGE: too large, or too small for all of its digits.
    large = math.isinf(number) and 'n' not in plain.lower()
    small = abs(number) < sys.float_info.min and re.search('[1-9]', plain.lower().split('e')[0])
    return text if large or small else number


def _sections(document: dict[str, Any], name: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs of node pattern and parameters; namespaces may be nested or joined by slashes."""
    for key, value in document.items():
        inner = f'{name}/{key}' if name else key
        if not isinstance(value, dict):
            parts = set(inner.split('/')) - {_PARAMETERS}
            raise ConfigError(f'{quoted(inner)} holds {quoted(value)}; {_EXPECTED}' + ''.join(
                f" Instead of '{near}', write '{_PARAMETERS}'."
                for near in difflib.get_close_matches(_PARAMETERS, parts, 1)))
        if key != _PARAMETERS:
            yield from _sections(value, inner)
        elif not name:
            raise ConfigError(f"'{_PARAMETERS}' stands at the top; write '/**:' above it.")
        elif len(document) > 1 or not _NODE.fullmatch(name):
            raise ConfigError(f'{quoted(name)} is no name of a node, or holds more than '
                              f"'{_PARAMETERS}'; rcl reads no such section.")
        else:
            yield name, value


def _matches(pattern: str, full_name: str) -> bool:
    """ROS wildcards: `*` stands for one name, `**` for any number of them."""
    regex = '/'.join(
        {'**': '.*', '*': '[^/]+'}.get(part, re.escape(part)) for part in pattern.split('/'))
    # '/**/x' also matches '/x', and '/**' every node.
    return re.fullmatch(regex.replace('/.*/', '/(?:.*/)?'), full_name) is not None
