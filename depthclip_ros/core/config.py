# SPDX-License-Identifier: Apache-2.0
"""What DepthCLIP computes: every setting and its default, once.

How the node is fed and what it sends is `depthclip_ros.node.config`; both are read from one ROS
parameter file, by the node and by the offline tools alike.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

PAPER_TOKENS = (
    'giant', 'extremely close', 'close', 'not in distance', 'a little remote', 'far', 'unseen',
)
PAPER_BINS = (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)


def define(
    default: Any,
    description: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    unit: str = '',
    reload: bool = True,
) -> Any:
    """Make a dataclass field that carries its own documentation and range.

    `reload` says that a change needs the model to be configured again.
    """
    return field(default=default, metadata={
        'description': description, 'choices': choices, 'minimum': minimum, 'maximum': maximum,
        'unit': unit, 'reload': reload,
    })


def describe(setting: dataclasses.Field[Any]) -> str:
    """One sentence for a parameter descriptor or a table: meaning, unit, choices."""
    text: str = setting.metadata['description']
    if setting.metadata['unit']:
        text += f' [{setting.metadata["unit"]}]'
    if setting.metadata['choices']:
        text += f' ({" | ".join(setting.metadata["choices"])})'
    return text


@dataclass(frozen=True)
class Settings:
    """What both configurations share: conversion, validation, replacement."""

    def __post_init__(self) -> None:
        """Convert every value to its field's type and check it."""
        for setting in dataclasses.fields(self):
            value = _convert(setting, getattr(self, setting.name))
            _check_range(setting, value)
            object.__setattr__(self, setting.name, value)
        self._check()

    def _check(self) -> None:
        """Check what concerns several fields at once."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the settings, in order."""
        return tuple(setting.name for setting in dataclasses.fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values; a missing key keeps its default.

        Raises:
            ConfigError: unknown key, wrong type, or a value out of range.

        """
        unknown = sorted(set(values) - set(cls.names()))
        if unknown:
            raise ConfigError(unknown_message(unknown, cls.names()))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values (lists, not tuples), as a parameter file holds them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in self.names())
        }

    def replace(self, **changes: Any) -> Self:
        """Copy with some values changed; validated like any other."""
        return type(self).from_dict({**self.to_dict(), **changes})


@dataclass(frozen=True)
class DepthConfig(Settings):
    """What DepthCLIP computes. The defaults are the node's; see `config/nyu_paper.yaml` for NYU.

    Tokens, bins, template and temperature are the paper's (§4.2).
    """

    tokens: tuple[str, ...] = define(
        PAPER_TOKENS, 'Semantic distance classes, one per depth bin (paper §3.2)')
    bins: tuple[float, ...] = define(
        PAPER_BINS, 'Depth of each token, ascending (paper §3.3, d in eq. 5)', unit='m',
        reload=False)
    templates: tuple[str, ...] = define(
        ('This object is {}',),
        'Sentences around a token, {} marks its place; their text features are averaged')
    temperature: float = define(
        0.1, 'Softmax temperature: logits = 100 / temperature x similarity (paper §4.2)',
        reload=False)
    backbone: str = define(
        'RN50', 'CLIP architecture by its OpenAI name, or auto: whatever the weights hold')
    features: str = define(
        'reference', 'Dense image features', choices=('reference', 'maskclip'))
    input_height: int = define(
        480, "Height of the network's input, a multiple of its stride", unit='px', minimum=32,
        maximum=4096)
    input_width: int = define(
        640, "Width of the network's input, a multiple of its stride", unit='px', minimum=32,
        maximum=4096)
    flip_average: bool = define(
        False, 'Average with the pass over the mirrored image: twice the work', reload=False)
    upsampling: str = define(
        'bilinear', 'From patches to pixels: bilinear as the official code, patch as the paper',
        choices=('bilinear', 'patch'), reload=False)
    normalization: str = define(
        'imagenet', "Mean and deviation of the input: imagenet as the official code, or CLIP's",
        choices=('imagenet', 'clip'))
    precision: str = define(
        'auto', "Backbone's number format; auto: float32 on a CPU, float16 on CUDA",
        choices=('auto', 'float32', 'float16', 'bfloat16'))
    engine: str = define(
        'auto', 'How the backbone runs, with the same result; auto: torch (folded, fused), or '
                "onednn for bfloat16 on a CPU with AMX; eager: CLIP's own modules",
        choices=('auto', 'eager', 'torch', 'onednn', 'compile'))

    def _check(self) -> None:
        if not self.tokens or any(not token.strip() for token in self.tokens):
            raise ConfigError(f'tokens: {list(self.tokens)} holds no token or an empty one; '
                              'give at least one word or phrase for every bin.')
        repeated = sorted({token for token in self.tokens if self.tokens.count(token) > 1})
        if repeated:
            raise ConfigError(f'tokens: {repeated} stand twice; every token once.')
        if len(self.tokens) != len(self.bins):
            raise ConfigError(
                f'tokens and bins: {len(self.tokens)} tokens but {len(self.bins)} bins '
                f'({list(self.tokens)}; {list(self.bins)}); give one bin per token.')
        if any(not math.isfinite(b) or b <= 0 for b in self.bins):
            raise ConfigError(f'bins: {list(self.bins)} must all be positive metres.')
        if any(later <= earlier for earlier, later in zip(self.bins, self.bins[1:], strict=False)):
            raise ConfigError(f'bins: {list(self.bins)} must ascend; sort the bins, and the '
                              'tokens with them.')
        if not self.templates:
            raise ConfigError("templates: the list is empty; give at least '{}'.")
        for template in self.templates:
            if template.count('{}') != 1 or re.sub(r'\{\}', '', template).count('{'):
                raise ConfigError(f"templates: '{template}' must hold {{}} exactly once: the "
                                  "token's place.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f'temperature: {self.temperature} must be greater than 0; '
                              "the paper's is 0.1.")

    @classmethod
    def from_yaml(cls, path: str | Path, node_name: str = 'depth_node') -> DepthConfig:
        """Read the core's settings from a ROS parameter file.

        Args:
            path: the file; see `depthclip_ros.node.config.read_config` for its form.
            node_name: fully qualified or bare name of the node whose sections apply.

        Raises:
            ConfigError: the file is missing or malformed, or any setting in it is wrong.

        """
        # The file holds the node's settings too, and what is neither's is an error.
        from ..node.config import read_config
        return read_config(path, node_name)[0]


def read_parameters(path: str | Path, node_name: str) -> dict[str, Any]:
    """Merge the sections of a ROS parameter file that match a node; nested keys joined by dots."""
    try:
        text = Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'
        raise ConfigError(f'{path}: cannot read the parameter file: {reason}.') from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f'{path}: not valid YAML: {" ".join(str(error).split())}') from error
    full_name = node_name if node_name.startswith('/') else f'/{node_name}'
    values: dict[str, Any] = {}
    found: list[str] = []
    for name, parameters in _sections(document, str(path)):
        found.append(name)
        if _matches(name, full_name):
            values.update(_flatten(parameters))
    if not any(_matches(name, full_name) for name in found):
        raise ConfigError(
            f'{path}: no section for {full_name}; found {found or "none"}. Write the settings '
            "under '/**:' and 'ros__parameters:'.")
    return values


def _sections(document: Any, where: str, prefix: str = '') -> list[tuple[str, dict[str, Any]]]:
    """Pairs of node pattern and parameters; namespaces may be nested or joined by slashes."""
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: expected '/**:' with 'ros__parameters:' below it, "
                          f'found {type(document).__name__}.')
    pairs: list[tuple[str, dict[str, Any]]] = []
    for key, value in document.items():
        name = f'{prefix}/{str(key).lstrip("/")}'
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: '{name}' holds {value!r}; expected 'ros__parameters:' "
                              'below it.')
        if 'ros__parameters' in value:
            parameters = value['ros__parameters']
            if not isinstance(parameters, dict):
                raise ConfigError(f"{where}: 'ros__parameters' of '{name}' is {parameters!r}; "
                                  'expected keys and values.')
            pairs.append((name, parameters))
        else:
            pairs.extend(_sections(value, where, name))
    return pairs


def _matches(pattern: str, full_name: str) -> bool:
    """ROS wildcards: `*` stands for one name, `**` for any number of them."""
    regex = '/'.join(
        {'**': '.*', '*': '[^/]+'}.get(part, re.escape(part)) for part in pattern.split('/'))
    # '/**/x' also matches '/x', and '/**' every node.
    regex = regex.replace('/.*/', '/(?:.*/)?')
    return re.fullmatch(regex, full_name) is not None


def _flatten(parameters: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Join nested keys by dots."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def unknown_message(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Say that settings do not exist, and which do."""
    return (f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
            f"known are: {', '.join(known)}.")


def _convert(setting: dataclasses.Field[Any], value: Any) -> Any:
    """Give a value its field's type; refuse what would have to be guessed."""
    kind = str(setting.type)
    if kind == 'float' and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == 'int' and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == 'bool' and isinstance(value, bool):
        return value
    if kind == 'str' and isinstance(value, str):
        return value
    if kind.startswith('tuple') and isinstance(value, (list, tuple)):
        if 'float' in kind and all(
                isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
            return tuple(float(v) for v in value)
        if 'str' in kind and all(isinstance(v, str) for v in value):
            return tuple(value)
    wanted = {'float': 'a number', 'int': 'a whole number', 'bool': 'true or false',
              'str': 'a text (quote it)', 'tuple[str, ...]': 'a list of texts (quote them)',
              'tuple[float, ...]': 'a list of numbers'}[kind]
    raise ConfigError(f'{setting.name}: {value!r} is not {wanted}.')


def _check_range(setting: dataclasses.Field[Any], value: Any) -> None:
    choices, low, high = (setting.metadata[k] for k in ('choices', 'minimum', 'maximum'))
    if choices and value not in choices:
        raise ConfigError(f"{setting.name}: '{value}' is none of {', '.join(choices)}.")
    if low is not None and not low <= value <= high:
        unit = f' {setting.metadata["unit"]}' if setting.metadata['unit'] else ''
        raise ConfigError(f'{setting.name}: {value}{unit} is outside {low} to {high}{unit}.')
