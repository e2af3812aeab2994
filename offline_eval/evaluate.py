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
from depthclip_ros.core.engine import one_thread
from depthclip_ros.core.files import numbered_folder, output_folder
from depthclip_ros.core.parameter_file import to_yaml
from depthclip_ros.core.weights import RELEASES
from depthclip_ros.evaluation.bootstrap import BEST_CONSTANT
from depthclip_ros.evaluation.datasets import Dataset, open_dataset
from depthclip_ros.evaluation.datasets.base import KITTI
from depthclip_ros.evaluation.errors import EvaluationError
from depthclip_ros.evaluation.metrics import MIN_DEPTH, metrics_of, named
from depthclip_ros.evaluation.protocol import PROTOCOLS, Protocol
from depthclip_ros.figures import Sample

from . import export, predictions, statistics
from .contenders import (
    FOCAL,
    Contender,
    baselines,
    calibrated,
    encode,
    method_and_variants,
    training_mean,
    without_failed_controls,
)
from .gate import judge
from .published import METHOD, PAPER_ROWS
from .records import HEADER, RECORDS, Run, load_records, load_run, save_record, save_run
from .results import Data, How, Results, Summary, Timing, load, save, to_json, write
from .scoring import Scorer

LATEST = 'latest'
SAMPLES_PER_ROLE = 3


@dataclass(frozen=True)
class Options:
    """What the user asked for; see the command line.

    `runtime` has what the weights, the device, `cache_dir`, `offline` and `num_threads` are, by
    the names of a parameter file; `predictions` are name, folder, scale (0: as the data set's
    tools have it) and alignment of other programs' depth.
    """

    data: Path
    config: DepthConfig
    list_file: Path | None = None
    truth: Path | None = None
    inpainted: bool = False
    runtime: dict[str, Any] = field(default_factory=dict)
    own_input: bool = False  # the crop is resized to the configuration's input
    protocol: str = ''
    average: str = 'image'
    tables: tuple[str, ...] = ('1',)
    output: Path = Path('results')
    resume: str | None = None
    command: str = ''
    predictions: tuple[tuple[str, Path, float, str], ...] = ()
    calibrations: tuple[Path, ...] = ()


def evaluate(options: Options) -> tuple[Path, Results]:
    """Evaluate; returns the results folder, and what it holds.

    Raises:
        DepthClipError: anything is not as it must be.

    """
    started = time.perf_counter()
    dataset, protocol = open_data(options)
    continued = _continued(options)
    training = _training(dataset)
    others = _others(options, dataset, protocol)
    estimator, reference = load_model(options, protocol)
    chosen = _contenders(options, dataset, training, protocol, estimator, reference, others)
    text = encode(chosen, estimator)
    chosen = without_failed_controls(chosen, text)
    scorer = Scorer(dataset, protocol, estimator, chosen, text)
    folder = _open_folder(options, continued, scorer)
    try:
        records, done = _score(scorer, folder)
        scorer.score_partners(records)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'--resume {folder} continues.') from None
    timing = Timing(done, time.perf_counter() - started, scorer.network_seconds)
    results = _summarize(options, scorer, records, timing, folder)
    save(folder, results)
    return folder, load(folder)  # what is said of it is what it holds


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
    """Open the data, and choose the protocol: the one asked for, or the data set's own."""
    dataset = open_dataset(options.data, options.list_file, options.truth,
                           inpainted=options.inpainted)
    driving = dataset.origin == KITTI
    chosen = options.protocol or ('kitti' if driving else 'depthclip')
    if driving != (chosen == 'kitti'):
        raise EvaluationError(f'--protocol {chosen}: not defined for {dataset.format}; use '
                              f'{"kitti" if driving else "depthclip or bts"}.')
    protocol = PROTOCOLS[chosen]
    dataset.check_unit()
    _say(f'{dataset.path}: {dataset.format}, {dataset.split}, {len(dataset)} images, '
         f'{dataset.depth} depth; protocol {protocol.name}: {protocol.description}')
    for warning in dataset.warnings:
        _say(f'WARNING: {warning}')
    return dataset, protocol


def _training(dataset: Dataset) -> Dataset | None:
    """Open the training split, if there is one; its depth may be stored in another unit."""
    training = dataset.training()
    if training is not None:
        training.check_unit()
        warnings = tuple(text for text in training.warnings if text not in dataset.warnings)
        for warning in warnings:
            _say(f'WARNING: {warning}')
        dataset.warnings += warnings
    return training


def load_model(options: Options, protocol: Protocol) -> tuple[DepthEstimator, float]:
    """Load the model; also returns the focal length to which its words belong, in widths."""
    # float32 means float32 on a GPU too, and the same sums in every run.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    config, others = scored(options.config, protocol, own_input=options.own_input)
    if sizes := [text for text in others if text.startswith('input_')]:
        _say(f'WARNING: the network sees the crop of protocol {protocol.name} pixel by pixel, '
             f'with {" and ".join(sizes)} (--own-input keeps the input).')
    if rest := [text for text in others if text not in sizes]:
        _say(f'{METHOD} is scored on every pixel and without a camera, with {", ".join(rest)}; '
             f'where focal lengths are known, the row {FOCAL!r} counts them.')
    runtime = options.runtime
    if runtime.get('num_threads'):
        torch.set_num_threads(int(runtime['num_threads']))
    # On a CPU an image goes to a thread: prepared for several, the network is far slower.
    with one_thread():
        estimator = DepthEstimator(
            config, runtime.get('weights', ''), runtime.get('device', 'auto'),
            cache_dir=runtime.get('cache_dir'), offline=bool(runtime.get('offline')), log=_say)
    _say(f'{estimator.weights.name} on {estimator.device}, {estimator.precision}, '
         f'{estimator.grid[0]} x {estimator.grid[1]} patches')
    if not estimator.weights.trained:
        _say('WARNING: the weights are random numbers; every depth is meaningless.')
    return estimator, options.config.reference_focal or DepthConfig().reference_focal


def scored(
    config: DepthConfig, protocol: Protocol, *, own_input: bool,
) -> tuple[DepthConfig, list[str]]:
    """Settings for every pixel of a crop, and what is otherwise than it was given.

    The network sees the crop pixel by pixel, unless it is resized to the network's own input.
    """
    height, width = config.input_size if own_input else protocol.size
    used = config.replace(input_height=height, input_width=width, range_min=0.0, range_max=0.0,
                          out_of_range='clamp', reference_focal=0.0)
    return used, [f'{name} {getattr(used, name)} instead of {getattr(config, name)}' for name in (
        'input_height', 'input_width', 'range_min', 'range_max', 'reference_focal')
        if getattr(used, name) != getattr(config, name)]


def _others(
    options: Options, dataset: Dataset, protocol: Protocol,
) -> list[predictions.OtherProgram]:
    """Rows of other programs' depth; calibrations are tried, too: before a model is loaded."""
    known = len(dataset.warnings)
    others = [predictions.foreign(name, path, dataset, protocol, scale, align)
              for name, path, scale, align in options.predictions]
    for warning in dataset.warnings[known:]:
        _say(f'WARNING: {warning}')
    for path in options.calibrations:
        Calibration.load(path)
    return others


def _contenders(
    options: Options, dataset: Dataset, training: Dataset | None, protocol: Protocol,
    estimator: DepthEstimator, reference: float, others: Sequence[Contender],
) -> list[Contender]:
    """All of them, the method first; rows that the user adds have names of their own."""
    focals = sorted({entry.focal / protocol.size[1] for entry in dataset.entries if entry.focal})
    calibrations = [calibrated(path, estimator, focals) for path in options.calibrations]
    unknown = [entry.name for entry in dataset.entries if not entry.focal]
    if unknown:
        _say(f'WARNING: no row {FOCAL!r}: the focal length of {len(unknown)} of {len(dataset)} '
             f'images is not known (such as {unknown[0]}). Give a list whose third column holds '
             'it, in pixels.')
    own = method_and_variants(estimator.config, options.tables, 0.0 if unknown else reference)
    mean_map, mean = training_mean(training, protocol)
    if training is not None and mean_map is None:
        warning = (f'{training.path}: no image of the training split has valid depth; there are '
                   'no rows of its mean.')
        _say(f'WARNING: {warning}')
        dataset.warnings += (warning,)
    controls = baselines(estimator.config, mean_map, mean, protocol.max_depth, len(dataset))
    taken = [BEST_CONSTANT, *(c.name for c in (*own, *controls))]
    for contender in (*calibrations, *others):
        if contender.name in taken:
            raise EvaluationError(f'{contender.name}: two rows would have that name; give '
                                  '--predictions another name, or one --calibration at a time.')
        taken.append(contender.name)
    return [*own, *calibrations, *controls, *others]


# Folder and records ------------------------------------------------------------------------------


def _continued(options: Options) -> Path | None:
    """Folder of the run that is to be continued; None, and checked, where a new one is to be made.

    Raises:
        ConfigError: nothing can be written.
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
    """Make a dated folder, or continue one of the very same run; `latest` points at it."""
    dataset, estimator = scorer.dataset, scorer.estimator
    names = '\n'.join(f'{e.index} {e.name} {e.scene}' for e in dataset.entries)
    digest = hashlib.sha256(os.fsencode(names))
    for position in dataset.probes():  # of all it would take as long as the network
        pair = dataset.read(position)
        digest.update(pair.rgb.tobytes() + pair.depth.tobytes())
    run = Run(
        version=depthclip_ros.__version__, format=dataset.format, depth=dataset.depth,
        images=len(dataset), data=digest.hexdigest(), protocol=scorer.protocol.name,
        config=estimator.config.to_dict(), weights=estimator.weights.digest,
        precision=estimator.precision, device=estimator.device.type,
        rows=[contender.identity() for contender in scorer.contenders],
        sequences=[entry.sequence for entry in dataset.entries])
    if folder is None:
        folder = numbered_folder(
            options.output / datetime.now().astimezone().strftime('%Y-%m-%d_%H-%M-%S'))
        save_run(folder, run)  # from here on it can be resumed
    different = list(load_run(folder).differences(msgspec.json.decode(to_json(run), type=Run)))
    if different:
        raise EvaluationError(f'--resume {folder}: that run was another one ('
                              f'{"; ".join(different)}). Give the same settings, or start anew '
                              'without --resume.')
    link = folder.parent / LATEST
    try:
        if link.is_symlink():
            link.unlink()
        link.symlink_to(folder.name, target_is_directory=True)
    except OSError as error:
        _say(f'WARNING: {link}: the link cannot be made ({error.strerror}).')
    _say(f'results: {folder}')
    return folder


def _score(scorer: Scorer, folder: Path) -> tuple[NDArray[Any], int]:
    """Records of all images, and how many were scored here and now: what was not yet recorded."""
    done = load_records(folder / RECORDS, scorer.type)
    remaining = sorted(set(range(len(scorer.dataset))) - set(done['position'].tolist()))
    if len(done):
        _say(f'{len(done)} images are done, {len(remaining)} remain')
    every = [done]
    for record in scorer.score(remaining):
        save_record(folder / RECORDS, record)
        every.append(record)
    records = np.concatenate(every)
    return records[np.argsort(records['position'])], len(remaining)


# Results -----------------------------------------------------------------------------------------


def _summarize(
    options: Options, scorer: Scorer, every: NDArray[Any], timing: Timing, folder: Path,
) -> Results:
    dataset, protocol, estimator = scorer.dataset, scorer.protocol, scorer.estimator
    measured = statistics.Measured(every[every['pixels'] > 0], scorer.contenders, dataset.entries,
                                   options.average, protocol.max_depth)
    if not len(measured.records):
        raise EvaluationError(f'{dataset.path}: no image has a valid true depth within '
                              f'{protocol.max_depth:g} m; is the depth right?')
    config, weights, rows = estimator.config, estimator.weights, statistics.rows(measured)
    blind = [dataset.entries[p].name for p in every['position'][every['pixels'] == 0]]
    for name in blind:
        _say(f'WARNING: image {name} is left out: no valid true depth where it is scored')
    ranks = statistics.ranking(measured, SAMPLES_PER_ROLE)
    description = protocol.description + (
        '' if config.input_size == protocol.size else "; resized to the network's own input of "
        f'{config.input_height} x {config.input_width}')
    how = How(protocol.name, options.average, MIN_DEPTH, protocol.max_depth, description)
    backbone = next((name for name, release in RELEASES.items()
                     if release.sha256 == weights.digest), config.backbone)
    settings = {**config.to_dict(), 'backbone': backbone, 'precision': estimator.precision}
    write(folder / 'per_image.csv', statistics.per_image_csv(measured))
    write(folder / 'config.yaml', to_yaml({**config.to_dict(), **options.runtime}))
    return Results(Summary(
        created=datetime.now().astimezone().isoformat(timespec='seconds'),
        command=options.command, config=config.to_dict(), versions=_versions(), weights=weights,
        data=Data(
            str(dataset.path), dataset.format, dataset.split, len(dataset),
            len(dataset) - len(blind), dataset.depth,
            hashlib.sha256(every['digest'].tobytes()).hexdigest(), blind,
            list(dataset.warnings), dataset.origin, dataset.official),
        protocol=how, rows=rows, paper=list(PAPER_ROWS),
        gate=judge(rows[0], settings, weights, how, official=dataset.official),
        verdict=statistics.verdict(measured), tables=list(options.tables),
        ranks={role: [measured.of_records[i].index for i in places]
               for role, places in ranks.items()},
        histograms=statistics.histograms(measured), timing=timing),
        [_sample(scorer, measured, place, role)
         for role, places in ranks.items() for place in places])


def _sample(scorer: Scorer, measured: statistics.Measured, place: int, role: str) -> Sample:
    """An image for the figures; they are few, and are predicted once more."""
    position, estimator = int(measured.records['position'][place]), scorer.estimator
    entry = scorer.dataset.entries[position]
    rgb, truth = scorer.protocol.prepare(scorer.dataset.read(position))
    prediction = estimator.predict(rgb)
    return Sample(
        index=entry.index, name=entry.name, scene=entry.scene, role=role, rgb=rgb,
        depth=prediction.depth, truth=truth, weights=prediction.weights,
        patch_depth=prediction.patch_depth, tokens=list(estimator.config.tokens),
        bins=list(estimator.config.bins),
        metrics=named(metrics_of(measured.sums(METHOD)[0][place])))


def _versions() -> dict[str, str]:
    return {'depthclip_ros': depthclip_ros.__version__, 'python': platform.python_version(),
            'torch': str(torch.__version__), 'numpy': np.__version__,
            'opencv': cv2.__version__, 'platform': platform.platform()}


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
