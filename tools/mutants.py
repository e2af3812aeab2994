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
from collections.abc import Sequence
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
    Mutant(f'{NODE}/image_io.py', "'bgr8': _Layout(3, 'BGR2RGB'),",
           "'bgr8': _Layout(3, None),", IMAGES),
    Mutant(f'{NODE}/image_io.py', "order = '>' if msg.is_bigendian else '<'",
           "order = '<'", IMAGES),
    Mutant(f'{NODE}/image_io.py', "('rggb', 'BayerBG2RGB')",
           "('rggb', 'BayerRG2RGB')", IMAGES),
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

# Of the evaluation: one test where a file is long.
EVAL = 'offline_eval'
METRICS = 'test/test_eval_metrics.py'
GATE = 'test/test_eval_gate.py'
STATISTICS = 'test/test_eval_statistics.py'
DATASETS = 'test/test_eval_datasets.py'
BASELINES = 'test/test_eval_baselines.py'
RUN = 'test/test_eval_run.py'
WITNESS = 'test/test_eval_witness.py'
REPORT = 'test/test_eval_report.py'

EVALUATION = (
    # Metrics
    Mutant(f'{EVAL}/metrics.py', 'torch.clamp(depth, MIN_DEPTH, max_depth, out=ratio)',
           'torch.clamp(depth, MIN_DEPTH, out=ratio)', METRICS),
    Mutant(f'{EVAL}/metrics.py', 'torch.maximum(ratio, other, out=other)', 'other = ratio.clone()',
           METRICS),
    Mutant(f'{EVAL}/metrics.py', 'flat.nan_to_num(_FAR)', 'flat.nan_to_num(1.0)', METRICS),
    Mutant(f'{EVAL}/metrics.py', '_THRESHOLDS = (1.25, 1.25 ** 2, 1.25 ** 3)',
           '_THRESHOLDS = (1.25, 1.5, 1.75)', METRICS),
    Mutant(f'{EVAL}/metrics.py', "'log10': s['log'] / math.log(10)", "'log10': s['log']", METRICS),
    Mutant(f'{EVAL}/metrics.py', "'rmse': np.sqrt(s['square'])", "'rmse': s['square']", METRICS),
    Mutant(f'{EVAL}/metrics.py', "s['square_log'] - s['signed_log'] ** 2", "s['square_log']",
           METRICS),
    Mutant(f'{EVAL}/metrics.py', 'mean: Sums = metrics_of(sums).mean(axis=0)',
           'mean: Sums = metrics_of(sums.sum(axis=0))', METRICS),
    Mutant(f'{EVAL}/metrics.py', "2 * c * n + np.square(c) * total['inverse']",
           "2 * c * n + c * total['inverse']", METRICS),
    Mutant(f'{EVAL}/metrics.py', 'self.depth[[(n - 1) // 2, n // 2]]',
           'self.depth[[n // 2, n // 2]]', METRICS),
    Mutant(f'{EVAL}/metrics.py', 'max_depth ** 2 * (n / 3 - total',
           'max_depth ** 2 * (n / 2 - total', METRICS),
    Mutant(f'{EVAL}/metrics.py', 'totals = np.tensordot(counts, values, 1)',
           'totals = np.tensordot(np.ones_like(counts), values, 1)', STATISTICS),
    # Protocol
    Mutant(f'{EVAL}/protocol.py', '(inside < np.float32(self.max_depth))',
           '(inside <= np.float32(self.max_depth))', METRICS),
    Mutant(f'{EVAL}/protocol.py', 'crop = np.s_[56:472, 60:604]', 'crop = np.s_[55:471, 60:604]',
           METRICS),
    Mutant(f'{EVAL}/protocol.py', 'scored = np.s_[45:471, 41:601]',
           'scored = np.s_[45:471, 46:601]', METRICS),
    Mutant(f'{EVAL}/protocol.py', 'int(0.40810811 * height)', 'int(0.3324324 * height)', METRICS),
    # Gate
    Mutant(f'{EVAL}/gate.py', "'not reproduced' if reasons else 'reproduced'",
           "'not reproduced' if reasons or offsets else 'reproduced'", GATE),
    Mutant(f'{EVAL}/gate.py', 'if not abs(offset) <= GATE_LIMITS[metric]:',
           'if abs(offset) > GATE_LIMITS[metric]:', GATE),
    Mutant(f'{EVAL}/gate.py', 'if run.images != PAPER_IMAGES:',
           'if run.images < PAPER_IMAGES - 1:', GATE),
    Mutant(f'{EVAL}/gate.py', "frozenset({'engine',", "frozenset({'engine', 'temperature',", GATE),
    Mutant(f'{EVAL}/gate.py', "'backbone': run.backbone, 'precision': run.precision",
           "'backbone': run.backbone", GATE),
    Mutant(f'{EVAL}/gate.py', 'if run.weights_digest != _RN50:', "if run.weights != 'RN50':",
           GATE),
    # Bootstrap
    Mutant(f'{EVAL}/bootstrap.py', 'return drawn[:, groups].astype(np.float64)',
           'return np.ones_like(drawn[:, groups], np.float64)', STATISTICS),
    Mutant(f'{EVAL}/bootstrap.py', 'own = [name or f', 'own = [f', STATISTICS),
    Mutant(f'{EVAL}/bootstrap.py', 'stdtrit(groups - 1, (1 - LEVEL) / 2)',
           'stdtrit(groups - 1, 1 - LEVEL)', STATISTICS),
    Mutant(f'{EVAL}/bootstrap.py', 'LEAST_GROUPS = 20', 'LEAST_GROUPS = 2', STATISTICS),
    # Verdict
    Mutant(f'{EVAL}/summarize.py', 'part, measured.how)).max(axis=1)',
           'part, measured.how)).mean(axis=1)', STATISTICS),
    Mutant(f'{EVAL}/metrics.py', 'curve[:, i].argmax() if m in HIGHER_IS_BETTER else',
           'curve[:, i].argmax() if m not in HIGHER_IS_BETTER else', STATISTICS),
    Mutant(f'{EVAL}/summarize.py', 'return Comparison(name, named(_SIGNS * gain)',
           'return Comparison(name, named(gain)', STATISTICS),
    Mutant(f'{EVAL}/summarize.py',
           'values = np.mean([average(s, measured.how) for s in sums], axis=0)',
           'values = average(sums[0], measured.how)', STATISTICS),
    Mutant(f'{EVAL}/summarize.py', "if c.group in ('baseline', 'foreign') and c.is_test",
           "if c.group in ('baseline', 'foreign')",
           f'{WITNESS}::test_others_stand_beside_the_verdict_and_never_in_the_gate'),
    Mutant(f'{EVAL}/summarize.py', "np.lexsort((measured.records['position'], -d1))",
           "np.lexsort((measured.records['position'], d1))",
           f'{RUN}::test_samples_are_the_best_median_and_worst'),
    Mutant(f'{EVAL}/summarize.py', 'in np.array_split(counts, 10)',
           'in np.array_split(np.ones_like(counts), 10)', STATISTICS),
    Mutant(f'{EVAL}/results.py', 'if self.low > 0:', 'if self.high > 0:', STATISTICS),
    # Baselines
    Mutant(f'{EVAL}/baselines.py', 'float(total.sum() / max(count.sum(), 1))',
           'float(3 * total.sum() / max(count.sum(), 1))', BASELINES),
    Mutant(f'{EVAL}/baselines.py', 'total / np.maximum(count, 1), mean)',
           'total / len(training), mean)', BASELINES),
    Mutant(f'{EVAL}/baselines.py', 'if order != list(range(count)):', 'if order:', BASELINES),
    Mutant(f'{EVAL}/baselines.py', 'count = min(PARTNERS, images - 1)',
           'count = min(PARTNERS, images)', BASELINES),
    Mutant(f'{EVAL}/baselines.py', '(features @ features.T).min() > ALIKE',
           '(features @ features.T).max() > ALIKE', BASELINES),
    # Read-out and scoring
    Mutant(f'{EVAL}/scorer.py', 'order += [start + (i + shift) % size',
           'order += [start + (i + shift - 1) % size', BASELINES),
    Mutant(f'{EVAL}/scorer.py', 'focal / np.float32(contender.focal)',
           'np.float32(contender.focal) / focal',
           f'{RUN}::test_the_focal_length_has_a_row_of_its_own'),
    Mutant(f'{EVAL}/scorer.py', 'return {place: smooth(depth, estimator.config.smoothing)',
           'return {place: depth', f'{RUN}::test_read_out_and_smoothing_are_the_node_s_own'),
    Mutant(f'{EVAL}/scorer.py', 'good = (patches.isfinite() & (patches > MIN_DEPTH))',
           'good = patches.isfinite()', BASELINES),
    Mutant(f'{EVAL}/scorer.py', 'slice(rows[0], rows[-1] + 1)', 'slice(rows[0], rows[-1])',
           f'{RUN}::test_the_headline_is_the_node_s_own_prediction'),
    Mutant(f'{EVAL}/scorer.py', 'found[0][partners(count, contender.shift)]', 'found[0]',
           f'{RUN}::test_baselines_are_ordered_as_they_must_be'),
    # Data
    Mutant(f'{EVAL}/datasets/nyu_mat.py', "self._key = 'depths' if inpainted else 'rawDepths'",
           "self._key = 'depths'", DATASETS),
    Mutant(f'{EVAL}/datasets/nyu_mat.py', "return test if self.part == 'test' else train",
           "return train if self.part == 'test' else test", DATASETS),
    Mutant(f'{EVAL}/datasets/splits.py', 'ravel().astype(int) - 1)', 'ravel().astype(int))',
           DATASETS),
    Mutant(f'{EVAL}/datasets/base.py', 'if not low <= median <= high:', 'if not low <= median:',
           DATASETS),
    Mutant(f'{EVAL}/datasets/base.py', 'stored.astype(np.float32) / np.float32(scale)',
           'stored.astype(np.float32) / np.float32(1000)', DATASETS),
    Mutant(f'{EVAL}/datasets/base.py', "images'\n        self.entries = [self.entries[p] for p in "
           "positions]\n        self.official = False",
           "images'\n        self.entries = [self.entries[p] for p in positions]", DATASETS),
    # Records and resuming
    Mutant(f'{EVAL}/records.py', '    if different:', '    if len(different) > 1:',
           f'{WITNESS}::test_resuming_with_other_predictions'),
    Mutant(f'{EVAL}/records.py', 'if not done.issuperset(batch)',
           'if not done.intersection(batch)', BASELINES),
    Mutant(f'{EVAL}/records.py', "every[np.argsort(every['position'])]", 'every', BASELINES),
    Mutant(f'{EVAL}/runner.py',
           "if digest_of(self._dataset.read(position)) != record['digest'].tobytes():",
           "if not record['digest'].any():",
           f'{RUN}::test_resume_with_other_images_of_the_same_names'),
    # Report
    Mutant(f'{EVAL}/names.py', "else f'{value:.3f}'", "else f'{value:.2f}'",
           f'{REPORT}::test_numbers'),
    Mutant(f'{EVAL}/report/tables.py', '- (gain if metric in HIGHER_IS_BETTER else -gain))',
           '- gain)', f'{REPORT}::test_verdict_says_only_what_the_interval_allows'),
    Mutant(f'{EVAL}/report/tables.py', "'yes' if abs(difference) <= limits[metric] else 'no'",
           "'yes' if difference <= limits[metric] else 'no'",
           f'{REPORT}::test_gate_is_shown_metric_by_metric'),
    Mutant(f'{EVAL}/report/tables.py', 'choose = max if metric in HIGHER_IS_BETTER else min',
           'choose = min if metric in HIGHER_IS_BETTER else max',
           f'{REPORT}::test_bold_is_the_best_of_this_run'),
    Mutant(f'{EVAL}/report/tables.py', 'p.table == table] if summary.data.official else []',
           'p.table == table]', f'{REPORT}::test_no_published_number_stands_beside_other_images'),
    Mutant(f'{EVAL}/report/figures.py', 'numbers / (numbers.sum() * np.diff(edges))',
           'numbers / numbers.sum()', f'{REPORT}::test_density_is_per_metre'),
    # Other programs and calibrations
    Mutant(f'{EVAL}/witness.py', 'np.rint(depth * np.float32(scale))',
           'np.floor(depth * np.float32(scale))', f'{WITNESS}::'
           'test_depth_that_does_not_fit_into_the_files'),
    Mutant(f'{EVAL}/witness.py', 'NYU_SCALE, KITTI_SCALE = 1000.0, 256.0',
           'NYU_SCALE, KITTI_SCALE = 1000.0, 1000.0',
           f'{WITNESS}::test_kitti_is_written_as_its_tools_read_it'),
    Mutant(f'{EVAL}/witness.py', 'return p * (np.median(y) / np.median(p))',
           'return p * (np.mean(y) / np.mean(p))', f'{WITNESS}::test_alignments'),
    Mutant(f'{EVAL}/calibrated.py', '        if seen:\n', '        if len(seen) > 1:\n',
           f'{WITNESS}::test_calibrations_that_do_not_belong'),
    Mutant(f'{EVAL}/calibrated.py', 'float(f) / reference if f', 'float(f) if f',
           f'{WITNESS}::test_the_calibrated_row_is_what_the_node_would_say'),
)
PACKAGES = {'depthclip_ros': MUTANTS, EVAL: EVALUATION}


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
    chosen = [m for every in PACKAGES.values() for m in every
              if re.search(arguments.pattern, f'{m.file} {m.old} {m.new}')]
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
        for package, every in PACKAGES.items():
            if set(every) <= set(chosen):
                record(f'mutants of {package}', by_file(every, survivors))
    return 0 if count >= GOAL * len(chosen) else 1


def by_file(every: Sequence[Mutant], survivors: Sequence[Mutant]) -> dict[str, int | str]:
    """How many were planted and caught, in all and in every file."""
    files = {mutant.file: Path(mutant.file).stem for mutant in every}
    caught = [mutant.file for mutant in every if mutant not in survivors]
    return {'planted': len(every), 'caught': len(caught), **{
        stem: f'{caught.count(file)} of {[m.file for m in every].count(file)}'
        for file, stem in files.items()}}


if __name__ == '__main__':
    sys.exit(main())
