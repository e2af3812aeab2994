# SPDX-License-Identifier: Apache-2.0
"""RViz's configuration: displays of each camera, and a window in which the cloud has the room."""

from __future__ import annotations

import copy
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from .resources import share_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE = 'rviz_default_plugins/Image'  # a display in a dock of its own
# Pixels of the window, and of the left column and its first dock.
WIDTH, HEIGHT, COLUMN, FIRST, GAP = 1400, 900, 380, 185, 6
LIMITS = 23, 0xffffff  # least and greatest pixels of a dock


def rviz_file(names: Sequence[str], folder: str | Path) -> Path:
    """RViz's configuration for the cameras of these names.

    RViz cannot repeat displays, so that for named cameras a file is made of rviz/depth.rviz: a
    group of displays for each, of which the first is switched on.

    Args:
        names: of the cameras; one without a name has that file itself.
        folder: where to write it: that of the launch's logs.

    """
    one = share_dir() / 'rviz' / 'depth.rviz'
    if list(names) == ['']:
        return one
    config = yaml.safe_load(one.read_text(encoding='utf-8'))
    manager = config['Visualization Manager']
    displays = manager['Displays']
    manager['Displays'] = [display for display in displays if 'Topic' not in display]
    for name in names:
        group = copy.deepcopy([display for display in displays if 'Topic' in display])
        for display in group:
            display['Name'] += f' {name}'
            display['Topic']['Value'] = f'{name}/{display["Topic"]["Value"]}'
        manager['Displays'].append({'Class': 'rviz_common/Group', 'Name': name,
                                    'Enabled': name == names[0], 'Displays': group})
    if len(names) > 1:  # which look into several directions: the robot's frame is all of theirs
        manager['Global Options']['Fixed Frame'] = 'base_link'
        manager['Views']['Current'].update(Distance=6, Pitch=0.6, Yaw=3.1416)
        manager['Views']['Current']['Focal Point'] = {'X': 0, 'Y': 0, 'Z': 0.5}
    *shown, off = (display['Name'] for display in displays if display['Class'] == IMAGE)
    config['Window Geometry']['QMainWindow State'] = window_state([
        *([f'{display} {name}' for name in names] for display in shown[:-1]),
        [f'{display} {name}' for name in names for display in (shown[-1], off)]])
    path = Path(folder, 'cameras.rviz')
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    return path


def window_state(places: Sequence[Sequence[str]]) -> str:
    """Where RViz's docks stand, as Qt's QMainWindow::saveState writes it, in hexadecimal digits.

    Without it RViz puts all docks over one another, and leaves the 3-D view a strip.

    Args:
        places: of the left column below the displays: names of the docks that share each as
            tabs. The first is shown, the others when their displays are switched on.

    """
    height = (HEIGHT - FIRST) // len(places) - GAP
    column = [_dock('Displays', shown=True, size=FIRST)]
    for number, (first, *others) in enumerate(places):
        start = FIRST + GAP + number * (height + GAP)
        tabs = [_dock(first, shown=True), *map(_dock, others)]
        column.append(
            struct.pack('>B4i Bi', 0xfc, start, height, *LIMITS, 0xfa, 0) + _row(2, tabs)
            if others else _dock(first, shown=True, start=start, size=height))
    areas = [(0, COLUMN, HEIGHT, 2, column), (1, GAP, HEIGHT, 2, [_dock('Views')]),
             (3, WIDTH, GAP, 1, [_dock('Time')])]
    return b''.join([
        struct.pack('>2i Bi', 0xff, 0, 0xfd, len(areas)),
        *(struct.pack('>3i B', area, width, height, 0xfc) + _row(orientation, docks)
          for area, width, height, orientation, docks in areas),
        struct.pack('>2i 4i', WIDTH - COLUMN - GAP, HEIGHT, 1, 4, 8, 8),  # the view, the corners
        struct.pack('>B3i', 0xfc, 1, 2, 1), _text('Tools'), struct.pack('>B4i', 1, 0, -1, 0, 0),
    ]).hex()


def _dock(name: str, *, shown: bool = False, start: int = 0, size: int = -1) -> bytes:
    return b'\xfb' + _text(name) + struct.pack('>B4i', shown, start, size, *LIMITS)


def _row(orientation: int, docks: Sequence[bytes]) -> bytes:
    return struct.pack('>Bi', orientation, len(docks)) + b''.join(docks)


def _text(name: str) -> bytes:
    encoded = name.encode('utf-16-be')
    return struct.pack('>i', len(encoded)) + encoded
