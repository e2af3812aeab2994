# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are cameras and anchor, and where their depth goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from ..launching import Camera, camera_of_bag
from ..node.anchors import SENSORS
from ..node.outputs import OUTPUTS
from ..sources.bag import BagError, BagTopic
from .options import ON_REQUEST, PROJECTED, BagCamera

if TYPE_CHECKING:
    from .options import Options

COMPRESSED_DEPTH = 'depth/image/compressedDepth'


def cameras_of(topics: list[BagTopic], options: Options) -> tuple[list[BagCamera], list[str]]:
    """Find the cameras as depth.launch.py does, and name their new topics as the node would.

    Returns:
        The cameras, and sentences about them.

    Raises:
        BagError: one is not there, cannot be chosen, or its new topics are there already.

    """
    names = options.node.cameras
    cameras, notes = [], []
    for name, image, info in zip(
            names, _for_each(names, 'image', options.images),
            _for_each(names, 'camera_info', options.camera_infos), strict=True):
        try:
            found, said = camera_of_bag(Camera(name, image, info), topics)
        except BagError as error:
            # The same finding, with what helps here.
            raise BagError(str(error).replace('image:=TOPIC', '--image TOPIC')
                           .replace('cameras:=NAME,NAME', '--cameras NAME,NAME')
                           .replace('cameras:=', '--cameras ')) from error
        outputs = {relative: _absolute(options.namespace, name, relative)
                   for relative in outputs_of(options)}
        cameras.append(BagCamera(name, found.image, found.camera_info, outputs))
        notes += [note.removeprefix('bag: ').replace('camera_info:=TOPIC', '--camera-info TOPIC')
                  for note in said]
    _check_names(cameras, {topic.name for topic in topics})
    return cameras, notes


def outputs_of(options: Options) -> list[str]:
    """Relative names of the new topics, in the order in which they are written.

    Raises:
        ConfigError: one of them is unknown.

    """
    unknown = sorted(set(options.outputs) - {*PROJECTED, *ON_REQUEST})
    if unknown:
        raise ConfigError(f'outputs: {", ".join(unknown)}: a bag gets '
                          f'{", ".join((*PROJECTED, *ON_REQUEST))}.')
    chosen = [name for name in OUTPUTS if name in options.outputs]
    if options.compressed_depth:
        chosen = [COMPRESSED_DEPTH if name == 'depth/image' else name for name in chosen]
    return chosen


def anchor_topic(topics: list[BagTopic], cameras: list[BagCamera], options: Options) -> str:
    """Where the anchor's sensor is in the bag; '' where the anchor needs none.

    Raises:
        BagError: it is not there, or there are several.

    """
    if options.node.anchor not in SENSORS:
        return ''
    kind, usual = SENSORS[options.node.anchor]
    used = {camera.image for camera in cameras}
    there = [topic.name for topic in topics
             if topic.type == kind and topic.count and topic.name not in used]
    if options.anchor_topic:
        wanted = [_absolute('', '', options.anchor_topic)]
    else:
        wanted = [f'/{usual}'] if f'/{usual}' in there else there
    if len(wanted) == 1 and wanted[0] in there:
        return wanted[0]
    raise BagError(
        f'anchor: {options.node.anchor} needs a topic of type {kind}; the bag has '
        f'{", ".join(there) or "none"}. Choose one with --anchor-topic TOPIC.')


def _for_each(names: tuple[str, ...], what: str, given: tuple[str, ...]) -> tuple[str, ...]:
    if given and len(given) != len(names):
        raise ConfigError(f'--{what.replace("_", "-")} names {len(given)} topics, but there are '
                          f'{len(names)} cameras: give one for each, in the same order, '
                          'separated by commas.')
    return given or ('',) * len(names)


def _absolute(*parts: str) -> str:
    return '/' + '/'.join(part.strip('/') for part in parts if part.strip('/'))


def _check_names(cameras: list[BagCamera], there: set[str]) -> None:
    new = [topic for camera in cameras for topic in camera.outputs.values()]
    taken = sorted({topic for topic in new if topic in there or new.count(topic) > 1})
    if taken:
        raise BagError(f'The bag has {", ".join(taken)} already. Put the new topics elsewhere '
                       'with --namespace NAME, or leave out outputs.')
    images = [camera.image for camera in cameras]
    if len(set(images)) < len(images):
        raise BagError(f'Two cameras have the same images: {", ".join(sorted(images))}.')
