# SPDX-License-Identifier: Apache-2.0
"""RViz's configuration: displays of each camera, and a window layout with a large 3-D view."""

from __future__ import annotations

import copy
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..resources import share_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE = 'rviz_default_plugins/Image'  # a display in a dock of its own
# Pixels of the window, of its left column, of the dock of displays, and between docks.
WIDTH, HEIGHT, COLUMN_WIDTH, DISPLAYS_HEIGHT, GAP = 1400, 900, 380, 185, 6
SIZE_LIMITS = 23, 0xffffff  # least and greatest pixels of a dock


def rviz_file(names: Sequence[str], folder: str | Path) -> Path:
    """Return the path of RViz's configuration for the cameras of these names.

    RViz cannot repeat displays. So for named cameras a file is made from rviz/depth.rviz, with a
    group of displays for each camera; only the first group is enabled.

    Args:
        names: names of the cameras; for a single one '' the file is rviz/depth.rviz itself.
        folder: folder for the new file, that of the launch's logs.

    """
    template = share_dir() / 'rviz' / 'depth.rviz'
    if list(names) == ['']:
        return template
    config = yaml.safe_load(template.read_text(encoding='utf-8'))
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
    if len(names) > 1:  # the robot's frame suits cameras that look in several directions
        manager['Global Options']['Fixed Frame'] = 'base_link'
        manager['Views']['Current'].update(Distance=6, Pitch=0.6, Yaw=3.1416)
        manager['Views']['Current']['Focal Point'] = {'X': 0, 'Y': 0, 'Z': 0.5}
    *visible, hidden = (display['Name'] for display in displays if display['Class'] == IMAGE)
    config['Window Geometry']['QMainWindow State'] = window_state([
        *([f'{display} {name}' for name in names] for display in visible[:-1]),
        [f'{display} {name}' for name in names for display in (visible[-1], hidden)]])
    path = Path(folder, 'cameras.rviz')
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    return path


def window_state(tab_groups: Sequence[Sequence[str]]) -> str:
    """Encode RViz's window layout as Qt's QMainWindow::saveState does, in hexadecimal digits.

    Without a layout RViz stacks all docks, and leaves a strip for the 3-D view.

    Args:
        tab_groups: groups of docks in the left column, below the displays. Each group has the
            names of docks that share a place as tabs: the first is visible, the others when their
            displays are enabled.

    """
    height = (HEIGHT - DISPLAYS_HEIGHT) // len(tab_groups) - GAP
    column = [_dock('Displays', visible=True, size=DISPLAYS_HEIGHT)]
    for number, (first, *hidden) in enumerate(tab_groups):
        start = DISPLAYS_HEIGHT + GAP + number * (height + GAP)
        tabs = [_dock(first, visible=True), *map(_dock, hidden)]
        column.append(
            struct.pack('>B4i Bi', 0xfc, start, height, *SIZE_LIMITS, 0xfa, 0) + _row(2, tabs)
            if hidden else _dock(first, visible=True, start=start, size=height))
    areas = [(0, COLUMN_WIDTH, HEIGHT, 2, column), (1, GAP, HEIGHT, 2, [_dock('Views')]),
             (3, WIDTH, GAP, 1, [_dock('Time')])]
    return b''.join([
        struct.pack('>2i Bi', 0xff, 0, 0xfd, len(areas)),
        *(struct.pack('>3i B', area, width, height, 0xfc) + _row(orientation, docks)
          for area, width, height, orientation, docks in areas),
        # The view and the corners.
        struct.pack('>2i 4i', WIDTH - COLUMN_WIDTH - GAP, HEIGHT, 1, 4, 8, 8),
        struct.pack('>B3i', 0xfc, 1, 2, 1), _text('Tools'), struct.pack('>B4i', 1, 0, -1, 0, 0),
    ]).hex()


def _dock(name: str, *, visible: bool = False, start: int = 0, size: int = -1) -> bytes:
    return b'\xfb' + _text(name) + struct.pack('>B4i', visible, start, size, *SIZE_LIMITS)


def _row(orientation: int, docks: Sequence[bytes]) -> bytes:
    return struct.pack('>Bi', orientation, len(docks)) + b''.join(docks)


def _text(name: str) -> bytes:
    encoded = name.encode('utf-16-be')
    return struct.pack('>i', len(encoded)) + encoded
