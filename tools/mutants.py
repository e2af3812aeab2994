# SPDX-License-Identifier: Apache-2.0
"""Plant faults in a copy of the code, one at a time, and see whether the tests catch them.

    python tools/mutants.py [PATTERN] [--record]

Each mutant is a small change such as a person makes by mistake, with the tests that must fail then
(they must pass without it, or the run says so and ends). PATTERN chooses by file or text. A mutant
that hangs is caught, too: by its time limit. --record writes the figures into
docs/reliability.json. The test suite checks that every entry still applies.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 240.0  # seconds for the tests of one mutant
GOAL = 0.95  # of the mutants are to be caught

NODE, CORE = 'depthclip_ros/node', 'depthclip_ros/core'
IMAGES = 'test/test_image_io.py'
GEOMETRY = 'test/test_geometry.py'
UNITS = 'test/test_node_units.py'
FAULTS = 'test/test_node_faults.py'
CLOUD = 'test/test_cloud.py'
ERROR_BARS = 'test/test_node_stddev.py'


class Mutant(NamedTuple):
    """A planted fault: this text, there once, is replaced by that one; these tests must fail."""

    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    # Decoder
    Mutant(f'{NODE}/image_io.py', 'if msg.step < row:', 'if msg.step <= row:', IMAGES),
    Mutant(f'{NODE}/image_io.py', 'else (step, channels * size, size)',
           'else (step, size, channels * size)', IMAGES),
    Mutant(f'{NODE}/image_io.py', "'bgr8': _Layout(3, cv2.COLOR_BGR2RGB),",
           "'bgr8': _Layout(3, None),", IMAGES),
    Mutant(f'{NODE}/image_io.py', "order = '>' if msg.is_bigendian else '<'",
           "order = '<'", IMAGES),
    Mutant(f'{NODE}/image_io.py', "('rggb', cv2.COLOR_BayerBG2RGB)",
           "('rggb', cv2.COLOR_BayerRG2RGB)", IMAGES),
    Mutant(f'{NODE}/image_io.py', 'pixels = (pixels >> 8)', 'pixels = (pixels & 255)', IMAGES),
    Mutant(f'{NODE}/image_io.py', 'if width * height > most:', 'if width * height > 2 * most:',
           IMAGES),
    Mutant(f'{NODE}/image_io.py', 'valid = (millimetres >= 1)', 'valid = (millimetres >= 0)',
           IMAGES),
    Mutant(f'{NODE}/image_io.py', 'millimetres = np.rint(metres', 'millimetres = np.floor(metres',
           IMAGES),
    Mutant(f'{NODE}/image_io.py', 'offset=step * height, strides=(chroma_step, 2, 1)',
           'offset=width * height, strides=(chroma_step, 2, 1)', IMAGES),
    Mutant(f'{NODE}/image_io.py', "if msg.encoding == 'nv21' else cv2.COLOR_YUV2RGB_NV12",
           "if msg.encoding != 'nv21' else cv2.COLOR_YUV2RGB_NV12", IMAGES),
    Mutant(f'{NODE}/image_io.py',
           '_check_pixel_count(file.width, file.height, max_pixels)\n'
           '    pixels = compressed.decode(file)\n    original',
           'pixels = compressed.decode(file)\n    original', IMAGES),
    Mutant(f'{NODE}/compressed.py', 'if data[position] != 0xFF or marker == 0:',
           'if data[position] != 0xFF and marker == 0:', IMAGES),
    Mutant(f'{NODE}/compressed.py', 'position += 2 + length\n', 'position += 1 + length\n',
           IMAGES),
    Mutant(f'{NODE}/compressed.py', "int.from_bytes(frames[0][3:5], 'big'), int",
           "int.from_bytes(frames[0][1:3], 'big'), int", IMAGES),
    Mutant(f'{NODE}/compressed.py', 'if end > len(data):', 'if end > len(data) + 12:', IMAGES),
    Mutant(f'{NODE}/compressed.py', 'pixels.shape[:2] != (file.height, file.width) or ', '',
           IMAGES),
    Mutant(f'{NODE}/serialized.py', 'if not place + length <= len(raw) < place + length + 4:',
           'if not len(raw) < place + length + 4:', 'test/test_serialized.py'),
    Mutant(f'{NODE}/serialized.py', 'return -(-place // 4) * 4', 'return place // 4 * 4 + 4',
           'test/test_serialized.py'),
    Mutant(f'{NODE}/serialized.py', 'return raw[:_STAMP.start] + raw[_STAMP.stop:]',
           'return raw[_STAMP.stop:40]', UNITS),
    # Geometry
    Mutant(f'{CORE}/geometry.py', 'u = x + (np.arange(w) + 0.5) * width / w - 0.5',
           'u = x + (np.arange(w) + 0.5) * width / w', GEOMETRY),
    Mutant(f'{CORE}/geometry.py', 'v = y + (np.arange(h) + 0.5) * height / h - 0.5',
           'v = y + np.arange(h) * height / h - 0.5', GEOMETRY),
    Mutant(f'{CORE}/geometry.py', 'x = (u - cx - skew * y) / fx', 'x = (u - cx) / fx', GEOMETRY),
    Mutant(f'{CORE}/geometry.py', 'matrix[:2, 2] -= (x_offset, y_offset)',
           'matrix[:2, 2] -= (y_offset, x_offset)', GEOMETRY),
    Mutant(f'{CORE}/geometry.py', 'matrix[:2] /= [[binning_x], [binning_y]]',
           'matrix[:2, :2] /= [[binning_x], [binning_y]]', GEOMETRY),
    Mutant(f'{CORE}/geometry.py', 'if not np.isfinite(values).all():',
           'if np.isnan(values).all():', GEOMETRY),
    Mutant(f'{CORE}/geometry.py', 'x + roi_width > width or', 'x + roi_width >= width or',
           GEOMETRY),
    Mutant(f'{CORE}/geometry.py', 'P=_read_only(self.P * scale)', 'P=_read_only(self.P)',
           f'{GEOMETRY} {UNITS}'),
    Mutant(f'{CORE}/distortion.py', 'D * [3.0, 5.0, 7.0, 9.0]', 'D * [2.0, 4.0, 6.0, 8.0]',
           GEOMETRY),
    # Cloud, calibration, projection
    Mutant(f'{NODE}/cloud.py', 'np.isfinite(xyz).all(axis=-1) & (patch_depth > 0.0)',
           'np.isfinite(xyz).all(axis=-1)', CLOUD),
    Mutant(f'{NODE}/cloud.py', '[1 << 16, 1 << 8, 1]', '[1, 1 << 8, 1 << 16]', CLOUD),
    Mutant(f'{NODE}/calibration.py', 'if model is None or key != self._key:',
           'if model is None:', UNITS),
    Mutant(f'{NODE}/calibration.py', '                self._rays.clear()\n', '', UNITS),
    Mutant(f'{CORE}/projection.py', 'return similarity / temperature',
           'return similarity * temperature', 'test/test_projection.py'),
    Mutant(f'{CORE}/projection.py', "align_corners=mode == 'bilinear')", 'align_corners=True)',
           'test/test_registration.py test/test_projection.py'),
    Mutant(f'{CORE}/projection.py', '(weights * offsets.square()).sum(dim=1).sqrt()',
           '(weights * offsets.square()).sum(dim=1)', 'test/test_projection.py'),
    Mutant(f'{CORE}/projection.py', "if out_of_range == 'inf' else (math.nan, math.nan)",
           "if out_of_range == 'inf' else (low, high)",
           'test/test_registration.py test/test_projection.py'),
    # Worker, statistics
    Mutant(f'{NODE}/worker.py', 'for camera in self._cameras if camera.waiting()]',
           'for camera in self._cameras[:1] if camera.waiting()]', UNITS),
    Mutant(f'{NODE}/worker.py', 'if self._ending:\n                return None',
           'if self._ending and not self._jobs:\n                return None', UNITS),
    Mutant(f'{NODE}/worker.py', 'due = max(due + self._period, time.monotonic())',
           'due = time.monotonic() + self._period', UNITS),
    Mutant(f'{NODE}/statistics.py', 'math.ceil(percent / 100 * len(values)) - 1)',
           'math.ceil(percent / 100 * len(values)))', UNITS),
    Mutant(f'{NODE}/statistics.py', '        self._last[condition] = now\n', '', UNITS),
    Mutant(f'{NODE}/statistics.py', 'deque(maxlen=size)', 'deque()', UNITS),
    # Camera and pipeline, in a running node
    Mutant(f'{NODE}/image_stream.py', 'self._counters.rejected[condition] += 1\n'
           '            self._counters.pending -= 1',
           'self._counters.rejected[condition] += 1', FAULTS),
    Mutant(f'{NODE}/camera.py', 'raw, self._frame = self._frame, None', 'raw = self._frame',
           'test/test_node_images.py'),
    Mutant(f'{NODE}/camera.py', '            else:\n                self._counters.dropped += 1\n'
           '            self._frame = raw',
           '            self._frame = raw', 'test/test_node_load.py'),
    Mutant(f'{NODE}/pipeline.py', "if camera.throttle.due(f'{what}: {condition}'):\n"
           '                self._node', 'if camera:\n                self._node', FAULTS),
    Mutant(f'{NODE}/pipeline.py', 'if abs(age) < MAX_AGE and', 'if age < MAX_AGE * 1e9 and',
           'test/test_node_load.py'),
    Mutant(f'{NODE}/pipeline.py', 'camera.count_unprojected(error.condition)\n',
           "camera.count_unprojected('absent')\n", FAULTS),
    Mutant(f'{NODE}/inputs.py', 'if best_effort \\\n', 'if not offers \\\n', FAULTS),
    # Parameters
    Mutant(f'{NODE}/parameters.py', "SETTINGS[name].metadata['reload'] and wanted[name] != now",
           "SETTINGS[name].metadata['reload'] and wanted[name] == now",
           'test/test_node_parameters.py'),
    Mutant(f'{NODE}/parameters.py', 'if unknown:\n            raise ConfigError(_unknown_message',
           'if not unknown:\n            raise ConfigError(_unknown_message',
           'test/test_node_parameters.py'),
    Mutant(f'{NODE}/parameters.py', '        if _changes(parameters):\n            self._apply',
           '        if not parameters:\n            self._apply', 'test/test_node_parameters.py'),
    Mutant(f'{CORE}/config.py', 'if any(later <= earlier for', 'if any(later < earlier for',
           'test/test_config.py'),
    # Error bars
    Mutant(f'{NODE}/outputs.py', "header, stddev, '32FC1')", "header, 1000 * stddev, '32FC1')",
           ERROR_BARS),
    Mutant(f'{NODE}/cloud.py', 'offset=4 * i, datatype', 'offset=4 * i + 4 * (i > 3), datatype',
           CLOUD),
    Mutant(f'{NODE}/cloud.py', 'np.where(known, patch_stddev, np.float32(np.nan))',
           'patch_stddev', CLOUD),
    Mutant(f'{NODE}/pipeline.py', '(known > self.config.max_stddev)',
           '(known < self.config.max_stddev)', ERROR_BARS),
    Mutant(f'{CORE}/estimator.py',
           'known = np.where(np.isfinite(self.patch_depth), self.patch_stddev, '
           'np.float32(np.nan))', 'known = self.patch_stddev', ERROR_BARS),
    Mutant(f'{CORE}/estimator.py', 'stddev > config.max_stddev', 'stddev < config.max_stddev',
           ERROR_BARS),
)


def planted(mutant: Mutant, text: str) -> str:
    """A file's text with the fault in it.

    Raises:
        ValueError: the text to replace is not there exactly once.

    """
    if text.count(mutant.old) != 1 or mutant.old == mutant.new:
        raise ValueError(f'{mutant.file}: {mutant.old!r} is there {text.count(mutant.old)} times; '
                         'the code has changed: correct this entry of tools/mutants.py')
    return text.replace(mutant.old, mutant.new)


def copy_tree(folder: Path) -> None:
    """Copy what git knows or could know of this tree."""
    listed = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, check=True, text=True,
        capture_output=True).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def passes(folder: Path, tests: str) -> bool:
    """Whether these tests pass in that tree."""
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider',
               *tests.split()]
    try:
        return subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False,
                              stderr=subprocess.DEVNULL, timeout=PATIENCE).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main() -> int:
    """Plant them all; 1 if too many survive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pattern', nargs='?', default='')
    parser.add_argument('--record', action='store_true', help='keep the figures in docs/')
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if re.search(arguments.pattern, f'{m.file} {m.old} {m.new}')]
    survivors, start = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / 'tree'
        copy_tree(folder)
        for tests in sorted({mutant.tests for mutant in chosen}):
            if not passes(folder, tests):
                sys.exit(f'{tests}: does not pass without any mutant')
        for mutant in chosen:
            path = folder / mutant.file
            text = path.read_text(encoding='utf-8')
            path.write_text(planted(mutant, text), encoding='utf-8')
            caught = not passes(folder, mutant.tests)
            path.write_text(text, encoding='utf-8')
            if not caught:
                survivors.append(mutant)
            print(f'{"caught" if caught else "SURVIVED":9} {mutant.file}: '
                  f'{" ".join(mutant.old.split())[:60]} -> {" ".join(mutant.new.split())[:60]}',
                  flush=True)
    count = len(chosen) - len(survivors)
    print(f'{count} of {len(chosen)} caught in {time.monotonic() - start:.0f} s')
    if arguments.record:
        sys.path.insert(0, str(ROOT / 'tools'))
        from reliability import record
        record('mutants', {'planted': len(chosen), 'caught': count})
    return 0 if count >= GOAL * len(chosen) else 1


if __name__ == '__main__':
    sys.exit(main())
