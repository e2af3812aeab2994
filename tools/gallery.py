# SPDX-License-Identifier: Apache-2.0
"""Pictures of the documents: what the node and the commands show of rendered rooms.

    python tools/gallery.py

Without a screen or RViz. The cloud is built as the node builds it, as a message, and read back
from it; terminals are drawn from what the commands write to one.
"""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator  # noqa: E402
from depthclip_ros.core.camera import CameraModel  # noqa: E402
from depthclip_ros.drawing.overlay import draw  # noqa: E402
from depthclip_ros.sim import Scene, SimCamera, render, trajectory  # noqa: E402

DPI = 80
ROOM, SEED, SECONDS = 'office', 3, 1.5
POINTS = '100,400', '430,300', '500,180'  # of view.png
COLUMNS = 110  # of a terminal
COMMANDS = {  # what each terminal shows, in a folder with tools/write_demo_data.py's files
    'terminal_help': 'depthclip --help',
    'terminal_compare': 'depthclip compare room_bag --weights demo',
    'terminal_evaluation': 'offline_eval --data nyu_depth_v2_labeled.mat --weights demo',
}


def main() -> int:
    """Make all pictures."""
    out = ROOT / 'docs/gallery'
    import matplotlib as mpl
    mpl.use('Agg')
    from matplotlib import pyplot as plt

    config = DepthConfig.from_yaml(ROOT / 'config/demo.yaml')
    estimator = DepthEstimator(config, weights='demo', device='cpu', num_threads=1)
    scene = Scene.generate(ROOM, seed=SEED)
    camera = SimCamera()
    frame = render(scene, camera, trajectory(scene, seed=0).pose(SECONDS))
    figure = _cloud(plt, estimator, camera, frame)
    figure.savefig(out / 'cloud.png', dpi=DPI, pil_kwargs={'optimize': True})
    prediction = estimator.predict(frame.rgb)
    cv2.imwrite(str(out / 'words_live.png'), draw(frame.rgb, prediction, config))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ROOT / 'tools/write_demo_data.py', '--out', folder,
                        '--images', '80'], check=True)
        for name, command in COMMANDS.items():
            _draw_terminal(out / f'{name}.png', command, folder)
    return _view(out, frame)


def _draw_terminal(path: Path, command: str, folder: str) -> None:
    """Run a command in a terminal, and draw what stands there at its end."""
    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 50, COLUMNS, 0, 0))
    name, *arguments = command.split()
    module = 'depthclip_ros.cli.main' if name == 'depthclip' else 'offline_eval.cli'
    process = subprocess.Popen(
        [sys.executable, '-c', f'from {module} import main; main()', *arguments], cwd=folder,
        stdout=terminal, stderr=terminal,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': str(COLUMNS)})
    os.close(terminal)
    output = b''
    try:
        while part := os.read(controller, 65536):
            output += part
    except OSError:  # its end, as Linux tells it
        process.wait()
    # What a carriage return has overwritten is gone.
    lines = [f'$ {command}', *(line.rstrip('\r').rpartition('\r')[2] for line in
                               output.decode().replace('\r\n', '\n').rstrip().split('\n'))]
    lines = [line[i:i + COLUMNS] for line in lines for i in range(0, max(1, len(line)), COLUMNS)]
    font = ImageFont.truetype(
        Path(mpl.get_data_path(), 'fonts/ttf/DejaVuSansMono.ttf'), 13)
    width = int(max(map(font.getlength, lines)))
    picture = Image.new('L', (width + 24, 17 * len(lines) + 20), 250)
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((12, 10 + 17 * row), line, 30, font=font)
    picture.quantize(16).save(path, optimize=True)


def _view(out: Path, frame: Any) -> int:
    """What `depthclip view` writes."""
    from depthclip_ros.cli.main import main as depthclip
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, 'office.png')
        cv2.imwrite(str(picture), frame.rgb[..., ::-1])
        points = [word for point in POINTS for word in ('--point', point)]
        failed = depthclip(['view', str(picture), '--weights', 'demo', *points, '-o', folder])
        shutil.copyfile(Path(folder, '001_office.png'), out / 'view.png')
    return failed


def _cloud(plt: Any, estimator: DepthEstimator, camera: SimCamera, frame: Any) -> Any:
    """The published cloud, seen from the side and above, over the room's true surfaces."""
    from std_msgs.msg import Header

    from depthclip_ros.cli.demo_recorder import cloud_points
    from depthclip_ros.messages.message_types import create_message
    from depthclip_ros.messages.outputs import cloud_message
    model = CameraModel.pinhole(camera.width, camera.height, camera.fx)
    prediction = estimator.predict(CameraImage(frame.rgb, model))
    depth = prediction.patch_depth
    rows, columns = depth.shape
    rays = model.patch_rays(rows, columns)
    height, width = frame.rgb.shape[:2]
    colors = frame.rgb[(np.arange(rows) * 2 + 1)[:, None] * height // (2 * rows),
                       (np.arange(columns) * 2 + 1)[None] * width // (2 * columns)]
    cloud = cloud_points(cloud_message(
        create_message, Header(), rays, depth, np.ascontiguousarray(colors)))
    step = 8
    dense = model.patch_rays(height // step, width // step)
    true = (dense * frame.depth[step // 2::step, step // 2::step, None]).reshape(-1, 3)
    shade = frame.rgb[step // 2::step, step // 2::step].reshape(-1, 3) / 255
    points, colors = cloud.points, cloud.colors / 255
    figure = plt.figure(figsize=(12, 4.2))
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1.4, 0.8))
    picture = figure.add_subplot(grid[0])
    picture.imshow(frame.rgb)
    picture.set_title('image')
    picture.axis('off')
    around = figure.add_subplot(grid[1], projection='3d')
    around.scatter(true[:, 0], true[:, 2], -true[:, 1], c=shade, s=3, linewidths=0,
                   depthshade=False)
    around.scatter(points[:, 0], points[:, 2], -points[:, 1], c=colors, s=45, edgecolors='black',
                   linewidths=0.6, depthshade=False)
    around.scatter([0], [0], [0], marker='^', c='red', s=60)
    around.view_init(22, -62)
    around.set_box_aspect([np.ptp(axis) for axis in np.vstack([true, points])[:, [0, 2, 1]].T],
                          zoom=1.1)
    around.set(xticks=(-2, 0, 2), yticks=(0, 2, 4, 6), zticks=(-1, 0, 1, 2))
    around.set_zlabel('up [m]', labelpad=-3)
    around.set_title('points, and small the true surfaces')
    above = figure.add_subplot(grid[2])
    above.scatter(true[:, 0], true[:, 2], c=shade, s=2, alpha=0.4, linewidths=0)
    above.scatter(points[:, 0], points[:, 2], c=colors, s=45, edgecolors='black', linewidths=0.6)
    above.scatter([0], [0], marker='^', c='red', s=60)
    above.set_aspect('equal')
    above.set_title('from above')
    for axes in (around, above):
        axes.set_xlabel('right [m]')
        axes.set_ylabel('forward [m]')
    figure.tight_layout()
    return figure


if __name__ == '__main__':
    sys.exit(main())
