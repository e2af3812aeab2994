# SPDX-License-Identifier: Apache-2.0
"""The evaluation: data → predictions → records → rows → results."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

import depthclip_ros
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.calibration import Calibration
from depthclip_ros.core.engine import single_thread
from depthclip_ros.core.files import numbered_folder, output_folder
from depthclip_ros.core.parameter_file import to_yaml
from depthclip_ros.core.releases import RELEASES
from depthclip_ros.evaluation.bootstrap import BEST_CONSTANT
from depthclip_ros.evaluation.datasets import Dataset, open_dataset
from depthclip_ros.evaluation.datasets.base import KITTI
from depthclip_ros.evaluation.errors import EvaluationError
from depthclip_ros.evaluation.metrics import MIN_DEPTH, by_name, metrics_of
from depthclip_ros.evaluation.protocol import PROTOCOLS, Protocol
from depthclip_ros.report.figures import Sample

from . import export, prediction_files, statistics
from .predictors import (
    FOCAL,
    Predictor,
    baselines,
    calibrated,
    encode,
    mark_failed_controls,
    method_and_variants,
    training_mean,
)
from .published import METHOD, PAPER_ROWS
from .records import HEADER, RECORDS, Run, load_records, load_run, save_record, save_run
from .reproduction import judge
from .results import Data, ProtocolInfo, Results, Summary, Timing, load, save, to_json, write
from .scoring import Scorer

LATEST = 'latest'
SAMPLES_PER_ROLE = 3


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    `runtime` holds weights, device, `cache_dir`, `offline` and `num_threads`, with the names of a
    parameter file. `predictions` are name, folder, scale (0: usual for the data set) and alignment
    of other programs' depth.
    """

    data: Path
    config: DepthConfig
    list_file: Path | None = None
    truth: Path | None = None
    inpainted: bool = False
    runtime: dict[str, Any] = field(default_factory=dict)
    own_input: bool = False  # resize the crop to the configuration's input
    protocol: str = ''
    average: str = 'image'
    tables: tuple[str, ...] = ('1',)
    output: Path = Path('results')
    resume: str | None = None
    command: str = ''
    predictions: tuple[tuple[str, Path, float, str], ...] = ()
    calibrations: tuple[Path, ...] = ()


def evaluate(options: Options) -> tuple[Path, Results]:
    """Run an evaluation; returns the results folder and its content.

    Raises:
        DepthClipError: data, model, options or output folder cannot be used.

    """
    started = time.perf_counter()
    dataset, protocol = open_data(options)
    resumed = _resumed_folder(options)
    training = _open_training(dataset)
    other_programs = _other_programs(options, dataset, protocol)
    estimator, reference = load_model(options, protocol)
    predictors = _predictors(options, dataset, training, protocol, estimator, reference,
                             other_programs)
    text = encode(predictors, estimator)
    predictors = mark_failed_controls(predictors, text)
    scorer = Scorer(dataset, protocol, estimator, predictors, text)
    folder = _open_folder(options, resumed, scorer)
    try:
        records, scored_images = _score_remaining(scorer, folder)
        scorer.score_partners(records)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'--resume {folder} continues.') from None
    timing = Timing(scored_images, time.perf_counter() - started, scorer.network_seconds)
    results = _summarize(options, scorer, records, timing, folder)
    save(folder, results)
    return folder, load(folder)  # as read back, so that report and files agree


def write_export(options: Options, folder: Path) -> Path:
    """Write the method's depth for other programs; see `export.write_all`."""
    dataset, protocol = open_data(options)
    estimator, _ = load_model(options, protocol)
    return export.write_all(dataset, protocol, estimator, folder, {
        'command': options.command, 'versions': _versions(),
        'data': f'{dataset.format}, {dataset.split}', 'protocol': protocol.name,
        'weights': estimator.weights.digest, 'config': estimator.config.to_dict()})


# Data and model ----------------------------------------------------------------------------------


def open_data(options: Options) -> tuple[Dataset, Protocol]:
    """Open the data set, with the protocol of the options or the data set's default."""
    dataset = open_dataset(options.data, options.list_file, options.truth,
                           inpainted=options.inpainted)
    is_driving = dataset.origin == KITTI
    name = options.protocol or ('kitti' if is_driving else 'depthclip')
    if is_driving != (name == 'kitti'):
        raise EvaluationError(f'--protocol {name}: not defined for {dataset.format}; use '
                              f'{"kitti" if is_driving else "depthclip or bts"}.')
    protocol = PROTOCOLS[name]
    dataset.check_unit()
    _log(f'{dataset.path}: {dataset.format}, {dataset.split}, {len(dataset)} images, '
         f'{dataset.depth} depth; protocol {protocol.name}: {protocol.description}')
    for warning in dataset.warnings:
        _log(f'WARNING: {warning}')
    return dataset, protocol


def _open_training(dataset: Dataset) -> Dataset | None:
    """Open the training split if there is one, and check its unit, which may differ."""
    training = dataset.training()
    if training is not None:
        training.check_unit()
        warnings = tuple(text for text in training.warnings if text not in dataset.warnings)
        for warning in warnings:
            _log(f'WARNING: {warning}')
        dataset.warnings += warnings
    return training


def load_model(options: Options, protocol: Protocol) -> tuple[DepthEstimator, float]:
    """Load the model; also returns the focal length of its words, in image widths."""
    # Real float32 on a GPU, and the same sums in every run.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    config, changes = config_for_protocol(options.config, protocol, own_input=options.own_input)
    if size_changes := [text for text in changes if text.startswith('input_')]:
        _log(f'WARNING: the network sees the crop of protocol {protocol.name} pixel by pixel, '
             f'with {" and ".join(size_changes)} (--own-input keeps the input).')
    if other_changes := [text for text in changes if text not in size_changes]:
        _log(f'{METHOD} is scored on every pixel and without a camera, with '
             f'{", ".join(other_changes)}; where focal lengths are known, the row {FOCAL!r} '
             'counts them.')
    runtime = options.runtime
    if runtime.get('num_threads'):
        torch.set_num_threads(int(runtime['num_threads']))
    # On a CPU each image has one thread; a network prepared for several would be far slower.
    with single_thread():
        estimator = DepthEstimator(
            config, runtime.get('weights', ''), runtime.get('device', 'auto'),
            cache_dir=runtime.get('cache_dir'), offline=bool(runtime.get('offline')), log=_log)
    _log(f'{estimator.weights.name} on {estimator.device}, {estimator.precision}, '
         f'{estimator.grid[0]} x {estimator.grid[1]} patches')
    if not estimator.weights.trained:
        _log('WARNING: the weights are random numbers; every depth is meaningless.')
    return estimator, options.config.reference_focal or DepthConfig().reference_focal


def config_for_protocol(
    config: DepthConfig, protocol: Protocol, *, own_input: bool,
) -> tuple[DepthConfig, list[str]]:
    """Adapt settings to score every pixel of a crop; also returns the changes, in words.

    The network's input is the crop pixel by pixel; with `own_input`, the crop is resized to the
    configured input.
    """
    height, width = config.input_size if own_input else protocol.size
    adapted = config.replace(input_height=height, input_width=width, range_min=0.0, range_max=0.0,
                             out_of_range='clamp', reference_focal=0.0)
    return adapted, [
        f'{name} {getattr(adapted, name)} instead of {getattr(config, name)}' for name in (
            'input_height', 'input_width', 'range_min', 'range_max', 'reference_focal')
        if getattr(adapted, name) != getattr(config, name)]


def _other_programs(
    options: Options, dataset: Dataset, protocol: Protocol,
) -> list[prediction_files.OtherProgram]:
    """Open other programs' depth, and check calibration files, before the model is loaded."""
    old_warnings = len(dataset.warnings)
    other_programs = [
        prediction_files.open_predictions(name, path, dataset, protocol, scale, align)
        for name, path, scale, align in options.predictions]
    for warning in dataset.warnings[old_warnings:]:
        _log(f'WARNING: {warning}')
    for path in options.calibrations:
        Calibration.load(path)
    return other_programs


def _predictors(
    options: Options, dataset: Dataset, training: Dataset | None, protocol: Protocol,
    estimator: DepthEstimator, reference: float, other_programs: Sequence[Predictor],
) -> list[Predictor]:
    """Make all predictors, the method first.

    Raises:
        EvaluationError: two rows would have one name.

    """
    focals = sorted({entry.focal / protocol.size[1] for entry in dataset.entries if entry.focal})
    calibrations = [calibrated(path, estimator, focals) for path in options.calibrations]
    without_focal = [entry.name for entry in dataset.entries if not entry.focal]
    if without_focal:
        _log(f'WARNING: no row {FOCAL!r}: the focal length of {len(without_focal)} of '
             f'{len(dataset)} images is not known (such as {without_focal[0]}). Give a list whose '
             'third column holds it, in pixels.')
    variants = method_and_variants(
        estimator.config, options.tables, 0.0 if without_focal else reference)
    mean_map, mean = training_mean(training, protocol)
    if training is not None and mean_map is None:
        warning = (f'{training.path}: no image of the training split has valid depth; there are '
                   'no rows of its mean.')
        _log(f'WARNING: {warning}')
        dataset.warnings += (warning,)
    controls = baselines(estimator.config, mean_map, mean, protocol.max_depth, len(dataset))
    names = [BEST_CONSTANT, *(p.name for p in (*variants, *controls))]
    for predictor in (*calibrations, *other_programs):
        if predictor.name in names:
            raise EvaluationError(f'{predictor.name}: two rows would have that name; give '
                                  '--predictions another name, or one --calibration at a time.')
        names.append(predictor.name)
    return [*variants, *calibrations, *controls, *other_programs]


# Folder and records ------------------------------------------------------------------------------


def _resumed_folder(options: Options) -> Path | None:
    """Find the folder of the run to resume; None for a new run, whose output folder is checked.

    Raises:
        ConfigError: the output folder cannot be written.
        EvaluationError: there is no such run, or it is damaged.

    """
    if options.resume is None:
        output_folder(str(options.output), '--output')
        return None
    folder = Path(options.resume or options.output / LATEST).resolve()
    if not (folder / RECORDS / HEADER).is_file():
        raise EvaluationError(f'--resume: {folder} is no folder of an interrupted evaluation; '
                              'name one, or start anew without --resume.')
    load_run(folder)
    return folder


def _open_folder(options: Options, folder: Path | None, scorer: Scorer) -> Path:
    """Make a dated folder, or resume one of an identical run; link `latest` to it.

    Raises:
        EvaluationError: the run in the folder had other data, model or options.

    """
    dataset, estimator = scorer.dataset, scorer.estimator
    listing = '\n'.join(f'{e.index} {e.name} {e.scene}' for e in dataset.entries)
    digest = hashlib.sha256(os.fsencode(listing))
    for position in dataset.probes():  # reading all images would take as long as the network
        pair = dataset.read(position)
        digest.update(pair.rgb.tobytes() + pair.depth.tobytes())
    run = Run(
        version=depthclip_ros.__version__, format=dataset.format, depth=dataset.depth,
        images=len(dataset), data=digest.hexdigest(), protocol=scorer.protocol.name,
        config=estimator.config.to_dict(), weights=estimator.weights.digest,
        precision=estimator.precision, device=estimator.device.type,
        rows=[predictor.identity() for predictor in scorer.predictors],
        sequences=[entry.sequence for entry in dataset.entries])
    if folder is None:
        folder = numbered_folder(
            options.output / datetime.now().astimezone().strftime('%Y-%m-%d_%H-%M-%S'))
        save_run(folder, run)  # from here on it can be resumed
    differences = list(load_run(folder).differences(msgspec.json.decode(to_json(run), type=Run)))
    if differences:
        raise EvaluationError(f'--resume {folder}: that run was another one ('
                              f'{"; ".join(differences)}). Give the same settings, or start anew '
                              'without --resume.')
    link = folder.parent / LATEST
    try:
        if link.is_symlink():
            link.unlink()
        link.symlink_to(folder.name, target_is_directory=True)
    except OSError as error:
        _log(f'WARNING: {link}: the link cannot be made ({error.strerror}).')
    _log(f'results: {folder}')
    return folder


def _score_remaining(scorer: Scorer, folder: Path) -> tuple[NDArray[Any], int]:
    """Score the images without a record; returns all records, and the number of new ones."""
    finished = load_records(folder / RECORDS, scorer.type)
    remaining = sorted(set(range(len(scorer.dataset))) - set(finished['position'].tolist()))
    if len(finished):
        _log(f'{len(finished)} images are done, {len(remaining)} remain')
    parts = [finished]
    for record in scorer.score(remaining):
        save_record(folder / RECORDS, record)
        parts.append(record)
    records = np.concatenate(parts)
    return records[np.argsort(records['position'])], len(remaining)


# Results -----------------------------------------------------------------------------------------


def _summarize(
    options: Options, scorer: Scorer, records: NDArray[Any], timing: Timing, folder: Path,
) -> Results:
    dataset, protocol, estimator = scorer.dataset, scorer.protocol, scorer.estimator
    stats = statistics.RunStatistics(
        records[records['pixels'] > 0], scorer.predictors, dataset.entries, options.average,
        protocol.max_depth)
    if not len(stats.records):
        raise EvaluationError(f'{dataset.path}: no image has a valid true depth within '
                              f'{protocol.max_depth:g} m; is the depth right?')
    config, weights, rows = estimator.config, estimator.weights, statistics.rows(stats)
    skipped = [dataset.entries[p].name for p in records['position'][records['pixels'] == 0]]
    for name in skipped:
        _log(f'WARNING: image {name} is left out: no valid true depth where it is scored')
    ranks = statistics.ranking(stats, SAMPLES_PER_ROLE)
    description = protocol.description + (
        '' if config.input_size == protocol.size else "; resized to the network's own input of "
        f'{config.input_height} x {config.input_width}')
    protocol_info = ProtocolInfo(
        protocol.name, options.average, MIN_DEPTH, protocol.max_depth, description)
    backbone = next((name for name, release in RELEASES.items()
                     if release.sha256 == weights.digest), config.backbone)
    settings = {**config.to_dict(), 'backbone': backbone, 'precision': estimator.precision}
    write(folder / 'per_image.csv', statistics.per_image_csv(stats))
    write(folder / 'config.yaml', to_yaml({**config.to_dict(), **options.runtime}))
    return Results(Summary(
        created=datetime.now().astimezone().isoformat(timespec='seconds'),
        command=options.command, config=config.to_dict(), versions=_versions(), weights=weights,
        data=Data(
            str(dataset.path), dataset.format, dataset.split, len(dataset),
            len(dataset) - len(skipped), dataset.depth,
            hashlib.sha256(records['digest'].tobytes()).hexdigest(), skipped,
            list(dataset.warnings), dataset.origin, dataset.official),
        protocol=protocol_info, rows=rows, paper=list(PAPER_ROWS),
        gate=judge(rows[0], settings, weights, protocol_info, official=dataset.official),
        verdict=statistics.verdict(stats), tables=list(options.tables),
        ranks={role: [stats.scored_entries[i].index for i in indices]
               for role, indices in ranks.items()},
        histograms=statistics.histograms(stats), timing=timing),
        [_predict_sample(scorer, stats, index, role)
         for role, indices in ranks.items() for index in indices])


def _predict_sample(
    scorer: Scorer, stats: statistics.RunStatistics, index: int, role: str,
) -> Sample:
    """Predict an image of the figures once more; records hold no pixels."""
    position, estimator = int(stats.records['position'][index]), scorer.estimator
    entry = scorer.dataset.entries[position]
    rgb, truth = scorer.protocol.prepare(scorer.dataset.read(position))
    prediction = estimator.predict(rgb)
    return Sample(
        index=entry.index, name=entry.name, scene=entry.scene, role=role, rgb=rgb,
        depth=prediction.depth, truth=truth, weights=prediction.weights,
        patch_depth=prediction.patch_depth, tokens=list(estimator.config.tokens),
        bins=list(estimator.config.bins),
        metrics=by_name(metrics_of(stats.sums(METHOD)[0][index])))


def _versions() -> dict[str, str]:
    return {'depthclip_ros': depthclip_ros.__version__, 'python': platform.python_version(),
            'torch': str(torch.__version__), 'numpy': np.__version__,
            'opencv': cv2.__version__, 'platform': platform.platform()}


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
