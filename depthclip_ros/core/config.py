# SPDX-License-Identifier: Apache-2.0
"""Settings of the depth computation, with their defaults, ranges and descriptions.

`depthclip_ros.messages.node_config` has the node's inputs and outputs. Node and offline tools read
both from one ROS parameter file.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from .errors import ConfigError, MismatchError, did_you_mean, nearest, quoted
from .parameter_file import read_parameters

if TYPE_CHECKING:
    from typing_extensions import Self

PAPER_TOKENS = (
    'giant', 'extremely close', 'close', 'not in distance', 'a little remote', 'far', 'unseen',
)
PAPER_BINS = (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
Size = tuple[int, int]  # (height, width); of a camera's messages (width, height)
# Image widths over which the correlation of depth errors around a point falls to exp(-1/2).
ANCHOR_REACH = 0.15
MIN_BIN = 1e-3  # metres
# Removed settings, and the value of each that the code computes with now.
REMOVED_SETTINGS = {'read_out': 'mean', 'smoothing': 0.0}

_NOT_EMPTY = msgspec.Meta(min_length=1)  # ROS knows no type for a list without elements
# By a field's annotation: the type, and its name in messages.
_TYPES: dict[str, tuple[Any, str]] = {
    'float': (float, 'a number'), 'int': (int, 'a whole number'), 'bool': (bool, 'true or false'),
    'str': (str, 'a text (quote it)'),
    'tuple[str, ...]': (
        Annotated[tuple[str, ...], _NOT_EMPTY], 'a list of texts (quote them), one at least'),
    'tuple[float, ...]': (
        Annotated[tuple[float, ...], _NOT_EMPTY], 'a list of numbers, one at least')}
# Patterns of texts that are no paths, and what is wrong with each.
_PATH_FAULTS = (
    (r'\$[({]', 'was not replaced, as nothing in a parameter file is; write the path itself'),
    (r'(hf-hub|\w+:/)[:/]', 'is an address, no path; download the file, and give its path'))


def define(
    default: Any, description: str, *, choices: tuple[str, ...] | None = None,
    minimum: float | None = None, maximum: float | None = None, unit: str = '',
    reload: bool = True,
) -> Any:
    """Make a dataclass field that carries its documentation and range.

    `reload`: a change needs a new estimator; of a node, to be configured again.
    """
    return field(default=default, metadata={
        'description': description, 'choices': choices, 'minimum': minimum, 'maximum': maximum,
        'unit': unit, 'reload': reload,
    })


def describe(setting: dataclasses.Field[Any]) -> str:
    """Compose a sentence for a parameter descriptor or a table: meaning, unit, choices."""
    text: str = setting.metadata['description']
    if setting.metadata['unit']:
        text += f' [{setting.metadata["unit"]}]'
    if setting.metadata['choices']:
        text += f' ({" | ".join(setting.metadata["choices"])})'
    return text


@dataclass(frozen=True)
class Settings:
    """Base of the configurations: conversion, validation, replacement."""

    def __post_init__(self) -> None:
        """Convert every value to its field's type and check it."""
        for setting in dataclasses.fields(self):
            object.__setattr__(
                self, setting.name, _convert(setting, getattr(self, setting.name)))
        self._check()

    def _check(self) -> None:
        """Check the fields against each other; MismatchError if they do not fit."""

    @classmethod
    @functools.cache  # a node's start asks hundreds of times
    def names(cls) -> tuple[str, ...]:
        """Names of the settings, in order."""
        return tuple(setting.name for setting in dataclasses.fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values; a missing key keeps its default.

        Raises:
            ConfigError: unknown key, wrong type, or a value out of range.

        """
        undefined = [name for name in values if name not in cls.names()]
        if undefined:
            raise ConfigError(undefined_settings_message(undefined, cls.names()))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values (lists, not tuples), as a parameter file holds them."""
        values = ((name, getattr(self, name)) for name in self.names())
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in values}

    def replace(self, **changes: Any) -> Self:
        """Copy with some values changed; validated like any other."""
        return type(self).from_dict({**self.to_dict(), **changes})


@dataclass(frozen=True)
class DepthConfig(Settings):
    """Settings of DepthCLIP. The defaults are the node's; see `config/nyu_paper.yaml` for NYU.

    Tokens, bins, template and temperature are the paper's (§4.2).
    """

    tokens: tuple[str, ...] = define(
        PAPER_TOKENS, 'Semantic distance classes, one per depth bin (paper §3.2)', reload=False)
    bins: tuple[float, ...] = define(
        PAPER_BINS, 'Depth of each token, ascending (paper §3.3, d in eq. 5)', unit='m',
        minimum=MIN_BIN, maximum=1e4, reload=False)
    templates: tuple[str, ...] = define(
        ('This object is {}',),
        'Sentences around a token, {} marks its place; their text features are averaged',
        reload=False)
    temperature: float = define(
        0.1, 'Softmax temperature: logits = 100 / temperature x similarity (paper §4.2)',
        minimum=1e-3, maximum=1e3, reload=False)
    backbone: str = define(
        'RN50', "CLIP architecture by its OpenAI name; auto: the weights' architecture; or "
                'open_clip:ARCHITECTURE/TAG (docs/variants.md)')
    features: str = define(
        'reference', "Dense image features: the official code's, MaskCLIP's, or the attention "
                     "pool's own (docs/variants.md)",
        choices=('reference', 'maskclip', 'attnpool'))
    input_height: int = define(
        480, "Height of the network's input, a multiple of its stride, to which images are "
             'stretched', unit='px', minimum=32, maximum=4096)
    input_width: int = define(
        640, "Width of the network's input, a multiple of its stride", unit='px', minimum=32,
        maximum=4096)
    flip_average: bool = define(
        False, 'Average with the pass over the mirrored image: twice the work', reload=False)
    upsampling: str = define(
        'centered', "From patches to pixels: linear between the patches' true centres, bilinear "
                    'with aligned corners as the official code, or patch as the paper',
        choices=('centered', 'bilinear', 'patch'), reload=False)
    range_min: float = define(
        0.0, 'Smallest valid depth, see out_of_range; 0: no limit', unit='m',
        minimum=0.0, maximum=1000.0, reload=False)
    range_max: float = define(
        0.0, 'Largest valid depth, see out_of_range; 0: no limit', unit='m',
        minimum=0.0, maximum=1000.0, reload=False)
    out_of_range: str = define(
        'nan', 'Value of depth beyond range_min or range_max: that limit, NaN, or -Inf and +Inf '
               '(REP-117)', choices=('clamp', 'nan', 'inf'), reload=False)
    reference_focal: float = define(
        0.811, "Focal length to which the words' metres belong, in image widths (NYU's camera: "
               "0.811): depth is multiplied by camera_info's focal length over it; 0: never, as "
               'the paper', minimum=0.0, maximum=100.0, reload=False)
    calibration: str = define(
        '', 'File that `depthclip calibrate` wrote (.safetensors): depth is corrected to that '
            "recording's, and gets error bars; no longer zero-shot; empty: none", reload=False)
    max_stddev: float = define(
        0.0, 'Depth with a larger standard deviation, by the calibration, becomes NaN; 0: no '
             'limit', unit='m', minimum=0.0, maximum=1000.0, reload=False)
    scenes: tuple[str, ...] = define(
        ('',), "Kinds of scene, into which words classify images, each with its bins (paper §5); "
               "'': none", reload=False)
    scene_templates: tuple[str, ...] = define(
        ('a photo of a {}',),
        'Sentences around a scene, {} marks its place; their text features are averaged',
        reload=False)
    scene_temperature: float = define(
        1.0, 'Softmax temperature of the scenes: logits = 100 / scene_temperature x cosine',
        minimum=1e-3, maximum=1e3, reload=False)
    scene_bins: tuple[float, ...] = define(
        (0.0,), 'Depth of each token in each scene, one scene after the other; 0 alone: bins in '
                'all', unit='m', minimum=0.0, maximum=1e4, reload=False)
    scene_entropy: float = define(
        0.9, 'Normalised entropy of the probabilities of the scenes (1: uniform) above which the '
             'weight of bins rises from 0, to 1 at an entropy of 1', minimum=0.0, maximum=1.0,
        reload=False)
    scene_memory: float = define(
        0.8, "Weight of the camera's previous images in the probabilities of the scenes",
        minimum=0.0, maximum=0.99, reload=False)
    normalization: str = define(
        'imagenet', "Mean and deviation of the input: imagenet as the official code, or CLIP's; "
                    "open_clip's models have their own",
        choices=('imagenet', 'clip'))
    precision: str = define(
        'auto', "Backbone's number format; auto: float32 on a CPU, float16 on CUDA; float16 and "
                'bfloat16 are float32 on a processor without instructions for them; int8: a '
                'ResNet on a CPU, made once by `depthclip quantize` (docs/performance.md)',
        choices=('auto', 'float32', 'float16', 'bfloat16', 'int8'))

    def _check(self) -> None:
        for name in ('tokens', 'scenes') if self.has_scenes else ('tokens',):
            phrases = getattr(self, name)
            if not all(map(str.strip, phrases)) or len(set(phrases)) < len(phrases):
                raise ConfigError(
                    f'{name}: {quoted(list(phrases), 200)} holds an empty word, or some that '
                    'stand twice; give each word or phrase once.')
        for name in ('templates', 'scene_templates'):
            templates = getattr(self, name)
            if not all(re.fullmatch(r'[^{}]*{}[^{}]*', t) for t in templates):
                raise ConfigError(
                    f'{name}: {quoted(list(templates), 200)} must hold {{}} exactly once in each '
                    "sentence, the word's place, and no other brace.")
        _check_ascending('bins', self.bins)
        self._check_counts()
        if self.max_stddev and not self.calibration:
            raise MismatchError(
                f'max_stddev: {self.max_stddev} m, but without a calibration nobody knows how '
                'wrong depth is; set calibration to the file that `depthclip calibrate` wrote, or '
                'max_stddev: 0.')
        if self.range_max and self.range_min >= self.range_max:
            raise MismatchError(f'range_min: {self.range_min} m is not below range_max: '
                                f'{self.range_max} m.')

    def _check_counts(self) -> None:
        count = len(self.tokens)
        if count != len(self.bins):
            raise MismatchError(
                f'tokens and bins: {count} tokens but {len(self.bins)} bins '
                f'({quoted(list(self.tokens), 200)}; {quoted(list(self.bins), 200)}); give one '
                'bin per token.')
        if not self.has_scenes or self.scene_bins == (0.0,):
            return
        expected = len(self.scenes) * count
        if len(self.scene_bins) != expected:
            raise MismatchError(
                f'scene_bins: {len(self.scene_bins)} numbers, but {len(self.scenes)} scenes '
                f'of {count} tokens need {expected}; give the bins of each scene one after the '
                'other, or [0.0] for bins in all.')
        for scene, bins in zip(self.scenes, self.bins_of_scenes(), strict=True):
            _check_ascending(f'scene_bins of {quoted(scene)}', bins)

    @property
    def has_scenes(self) -> bool:
        """Whether the settings sort images into scenes."""
        return self.scenes != ('',)

    def bins_of_scenes(self) -> tuple[tuple[float, ...], ...]:
        """Split `scene_bins` into the bins of each scene, in metres."""
        if self.scene_bins == (0.0,):
            return (self.bins,) * len(self.scenes)
        count = len(self.tokens)
        return tuple(self.scene_bins[i:i + count] for i in range(0, len(self.scene_bins), count))

    @property
    def input_size(self) -> Size:
        """(height, width) of the network's input."""
        return self.input_height, self.input_width

    @property
    def depth_span(self) -> tuple[float, float]:
        """Smallest and largest bin, of all scenes, in metres."""
        partitions = (self.bins, *(self.bins_of_scenes() if self.has_scenes else ()))
        return min(bins[0] for bins in partitions), max(bins[-1] for bins in partitions)

    @classmethod
    def from_yaml(cls, path: str | Path, node_name: str = 'depth_node') -> DepthConfig:
        """Read the core's settings from a ROS parameter file, which holds the node's, too.

        Args:
            path: the file: node name or wildcard (`/**`, `/*`, `/front/depth_node`), then
                `ros__parameters`. Every section that matches the node applies, in file order.
            node_name: fully qualified or bare name of the node.

        Raises:
            ConfigError: the file is missing or malformed, a setting in it is invalid, or a name
                resembles one of the core's.

        """
        values = read_parameters(path, node_name)
        core_values = {name: value for name, value in values.items()
               if name in cls.names() or is_misspelt(name, value, cls.names())}
        try:
            return cls.from_dict(core_values)
        except ConfigError as error:
            raise ConfigError(f'{path}: {error}') from error


def _check_ascending(name: str, bins: Sequence[float]) -> None:
    if bins[0] < MIN_BIN or any(later <= earlier for earlier, later in pairwise(bins)):
        raise ConfigError(f'{name}: {quoted(list(bins), 200)} must ascend, from '
                          f'{MIN_BIN} m on; sort the bins, and the tokens with them.')


def is_misspelt(name: str, value: object, valid_names: Sequence[str]) -> bool:
    """Tell whether an undefined name was meant as a setting: misspelt, or removed."""
    is_removed = name in REMOVED_SETTINGS and value != REMOVED_SETTINGS[name]
    return is_removed or bool(nearest(name, valid_names))


def undefined_settings_message(undefined: Iterable[object], valid_names: Sequence[str]) -> str:
    """Compose the message about undefined settings: the nearest valid names, and all of them."""
    names = sorted(map(str, undefined))
    former = ''.join(
        f'{name} is no setting any more, since it made depth no better (docs/variants.md): '
        f'remove it, and depth is as with {quoted(REMOVED_SETTINGS[name])}; '
        for name in names if name in REMOVED_SETTINGS)
    return (f'unknown setting{"s" if len(names) > 1 else ""} {quoted(", ".join(names))}; {former}'
            f'{did_you_mean(names, valid_names)}known are: {", ".join(valid_names)}.')


def _to_builtin(value: Any) -> Any:
    """Convert arrays, tensors and paths to Python's numbers, texts and lists."""
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_to_builtin(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _convert(setting: dataclasses.Field[Any], value: Any) -> Any:
    """Convert a value to its field's type; ConfigError if it is ambiguous or out of range."""
    kind, expected = _TYPES[str(setting.type)]
    choices, low, high = (setting.metadata[key] for key in ('choices', 'minimum', 'maximum'))
    if isinstance(value, float) and str(value) in (choices or ()):
        value = str(value)  # ROS takes a nan or inf without quotes for a number
    try:
        value = msgspec.convert(_to_builtin(value), kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ConfigError(f'{setting.name}: {quoted(value)} is not {expected}.') from error
    if choices and value not in choices:
        named = ', '.join(filter(None, choices))
        raise ConfigError(f'{setting.name}: {quoted(value)} is none of {named}.')
    for pattern, fault in _PATH_FAULTS if kind is str else ():
        if re.match(pattern, value):
            raise ConfigError(f'{setting.name}: {quoted(value)} {fault}.')
    numbers = value if isinstance(value, tuple) else (value,)
    if low is not None and not all(low <= number <= high for number in numbers):  # nor is NaN
        unit = f' {setting.metadata["unit"]}' if setting.metadata['unit'] else ''
        text = quoted(list(value) if isinstance(value, tuple) else value)
        raise ConfigError(f'{setting.name}: {text}{unit} is outside {low} to {high}{unit}.')
    return value
