# SPDX-License-Identifier: Apache-2.0
"""The evaluation from the data to the results folder."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

import depthclip_ros
from depthclip_ros.core import DepthConfig, DepthEstimator
from depthclip_ros.core.engine import one_thread
from depthclip_ros.core.projection import mean_of_passes, smooth, upsample
from depthclip_ros.core.weights import RELEASES
from depthclip_ros.node.config import NodeConfig

from . import records as recording
from . import summarize, witness
from .calibrated import Calibrated
from .contenders import (
    FOCAL,
    Contender,
    TrainingMean,
    baselines,
    foreign,
    method_and_variants,
    without_failed_controls,
)
from .datasets import Dataset, Where, open_dataset
from .errors import EvaluationError
from .gate import Experiment, judge
from .metrics import metrics_of
from .paper import METHOD, PAPER_ROWS
from .progress import progress
from .protocol import PROTOCOLS, Protocol
from .records import Records
from .results import (
    CONFIG,
    METRICS,
    PER_IMAGE,
    SUMMARY,
    Data,
    ResultsError,
    Sample,
    Skipped,
    Summary,
    Timing,
    write_text,
)
from .scorer import Image, Scorer, digest_of, encode_all

LATEST = 'latest'
SAMPLES_PER_ROLE = 3


class Foreign(NamedTuple):
    """Another program's predictions; `scale` 0: as the data set's tools have it."""

    name: str
    folder: Path
    scale: float = 0.0
    align: str = 'none'


@dataclass(frozen=True)
class Options:
    """What the user asked for; see the command line."""

    where: Where
    config: DepthConfig
    node: NodeConfig
    own_input: bool = False  # the crop is resized to the configuration's input
    protocol: str = ''
    average: str = 'image'
    tables: tuple[str, ...] = ('1',)
    output: Path = Path('results')
    resume: str | None = None
    batch_size: int = 8
    limit: int = 0
    mean_map: bool = True
    report: bool = True
    command: str = ''
    predictions: tuple[Foreign, ...] = ()
    calibrations: tuple[Path, ...] = ()


class Evaluation:
    """One run. `run` reads as its table of contents."""

    def __init__(self, options: Options) -> None:
        """Open data and model; nothing is written yet.

        Raises:
            DepthClipError: anything is not as it must be.

        """
        self._options = options
        self._dataset = _limited(open_dataset(options.where), options.limit)
        self._protocol = _protocol(options.protocol, self._dataset)
        self._dataset.check_unit()
        self._say_data()
        self._foreign = [self._predictions(foreign) for foreign in options.predictions]
        self._estimator = self._load()
        self._calibrated = [Calibrated.open(path, self._estimator, self._view())
                            for path in options.calibrations]

    def write(self, folder: Path) -> Path:
        """Write the method's depth for other programs; see `witness.write`."""
        return witness.write(self._dataset, self._protocol, self._estimator, folder, {
            'command': self._options.command, 'versions': _versions(),
            'data': f'{self._dataset.format}, {self._dataset.split}',
            'protocol': self._protocol.name, 'weights': self._estimator.weights.digest,
            'config': self._estimator.config.to_dict()})

    def run(self) -> Path:
        """Evaluate; returns the results folder."""
        started = time.perf_counter()
        self._open_folder()
        training = self._training_mean()
        chosen = self._contenders(training)
        records = self._open_records(chosen)
        scorer = Scorer(self._dataset, self._protocol, self._estimator, chosen, self._text,
                        self._options.batch_size)
        try:
            done = self._score(scorer, records)
            every = self._every(records)
            with progress(len(every), 'shuffled images') as bar:
                scorer.score_partners(every, bar.update)
        finally:
            scorer.close()
            self._dataset.close()
        timing = Timing(done, time.perf_counter() - started, scorer.network_seconds)
        self._summarize(every, chosen, timing)
        self._report()
        self._link_latest()
        return self._folder

    # Data and model ---------------------------------------------------------------------------

    def _say_data(self) -> None:
        dataset = self._dataset
        _say(f'{dataset.path}: {dataset.format}, {dataset.split}, {len(dataset)} images, '
             f'{dataset.depth} depth; protocol {self._protocol.name}: '
             f'{self._protocol.description}')
        for warning in dataset.warnings:
            _say(f'WARNING: {warning}')

    def _predictions(self, foreign: Foreign) -> witness.Predictions:
        found = witness.open_predictions(foreign.name, foreign.folder, self._dataset,
                                         foreign.scale, foreign.align)
        warning = witness.check_unit(found, self._dataset)
        if warning:
            _say(f'WARNING: {warning}')
        return found

    def _view(self) -> float:
        """Focal length of what the network sees, in its widths; 0 if not known."""
        return self._dataset.entries[0].focal / self._protocol.size[1]

    def _load(self) -> DepthEstimator:
        node, config = self._options.node, self._options.config
        # float32 means float32 on a GPU too, and the same sums in every run.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        config, note = fit_input(config, self._protocol, own=self._options.own_input)
        if note:
            _say(note)
        self._reference_focal = config.reference_focal or DepthConfig().reference_focal
        config, ignored = scored(config)
        if ignored:
            _say(f'WARNING: {", ".join(ignored)} does not count in the method\'s row: every '
                 'pixel is scored, of the whole crop, and nothing is known but the image.')
        if node.num_threads:
            torch.set_num_threads(node.num_threads)
        # On a CPU an image goes to a thread: prepared for several, the network is far slower.
        with one_thread():
            estimator = DepthEstimator(
                config, node.weights, node.device, cache_dir=node.cache_dir,
                offline=node.offline, log=_say)
        _say(f'{estimator.weights.name} on {estimator.device}, {estimator.precision}, '
             f'{estimator.grid[0]} x {estimator.grid[1]} patches')
        if not estimator.weights.trained:
            _say('WARNING: the weights are random numbers; every depth is meaningless.')
        return estimator

    # Folder and records -----------------------------------------------------------------------

    def _open_folder(self) -> None:
        """A new dated folder, or the one to be continued."""
        options = self._options
        if options.resume is None:
            stamp = datetime.now().astimezone().strftime('%Y-%m-%d_%H-%M-%S')
            self._folder = _make_folder(options.output / stamp)
            self._link_latest()
            return
        self._folder = Path(options.resume) if options.resume else options.output / LATEST
        if not (self._folder / recording.FOLDER).is_dir():
            raise EvaluationError(f'--resume: {self._folder} is no folder of an interrupted '
                                  'evaluation; name one, or start anew without --resume.')
        self._folder = self._folder.resolve()

    def _training_mean(self) -> TrainingMean | None:
        training = self._dataset.training() if self._options.mean_map else None
        return None if training is None else TrainingMean.compute(training, self._protocol)

    def _contenders(self, training: TrainingMean | None) -> list[Contender]:
        config, node = self._estimator.config, self._options.node
        chosen = [*method_and_variants(config, self._options.tables, self._focal()),
                  *(calibrated.contender() for calibrated in self._calibrated),
                  *baselines(config, training, self._protocol.max_depth, len(self._dataset)),
                  *map(foreign, self._foreign)]
        _check_names(chosen)
        with one_thread():  # Sums of several threads may end in other digits.
            self._text = encode_all(chosen, self._estimator, node.weights, node.cache_dir, _say)
        return without_failed_controls(chosen, self._text)

    def _focal(self) -> float:
        """To which focal length the words belong; 0 if that of any image is not known."""
        unknown = [entry.name for entry in self._dataset.entries if not entry.focal]
        if not unknown:
            return self._reference_focal
        _say(f'WARNING: no row {FOCAL!r}: the focal length of {len(unknown)} of '
             f'{len(self._dataset)} images is not known (such as {unknown[0]}). Give a list '
             'whose third column holds it, in pixels.')
        return 0.0

    def _open_records(self, chosen: Sequence[Contender]) -> Records:
        header = self._header(chosen)
        if (self._folder / recording.FOLDER / recording.HEADER).is_file():
            recording.check_header(self._folder, header)
        else:
            recording.write_header(self._folder, header)
        _say(f'results: {self._folder}')
        return Records(self._folder, len(chosen), self._estimator.grid)

    def _header(self, chosen: Sequence[Contender]) -> dict[str, Any]:
        """Everything that the digits of a record depend on."""
        dataset, estimator = self._dataset, self._estimator
        names = '\n'.join(f'{e.index} {e.name} {e.scene}' for e in dataset.entries)
        return {
            'version': depthclip_ros.__version__, 'data': dataset.format, 'depth': dataset.depth,
            'images': len(dataset), 'names': hashlib.sha256(names.encode()).hexdigest(),
            'protocol': self._protocol.name, 'config': estimator.config.to_dict(),
            'weights': estimator.weights.digest, 'precision': estimator.precision,
            'device': estimator.device.type, 'batch_size': self._options.batch_size,
            'contenders': [f'{c.name}: {c.note} {c.key}' for c in chosen]}

    # The pass over the images -----------------------------------------------------------------

    def _score(self, scorer: Scorer, records: Records) -> int:
        """Score what is not yet recorded; returns the number of images done here and now."""
        done = {int(p) for p in records.read()['position']}
        remaining = [p for p in range(len(self._dataset)) if p not in done]
        if done:
            _say(f'{len(done)} images are done, {len(remaining)} remain')
            self._check_contents(records)
        with progress(len(remaining), 'evaluation') as bar:
            for scored_images in scorer.score(remaining):
                records.write(scored_images)
                bar.update(len(scored_images))
        return len(remaining)

    def _every(self, records: Records) -> NDArray[Any]:
        every = records.read()
        if len(every) != len(self._dataset):
            raise ResultsError(f'{self._folder}: {len(every)} of {len(self._dataset)} images are '
                               'recorded; run again with --resume.')
        return every

    def _check_contents(self, records: Records) -> None:
        """Refuse to go on from records of other images, whatever their names."""
        every = records.read()
        with progress(len(every), 'comparing with what is done') as bar:
            for record in every:
                position = int(record['position'])
                if digest_of(self._dataset.read(position)) != record['digest'].tobytes():
                    raise EvaluationError(
                        f'--resume {self._folder}: {self._dataset.entries[position].name} is not '
                        'the image that was scored then: the data have changed. Evaluate anew, '
                        'without --resume.')
                bar.update()
        self._dataset.close()

    # Results ----------------------------------------------------------------------------------

    def _summarize(
        self, every: NDArray[Any], chosen: Sequence[Contender], timing: Timing,
    ) -> None:
        measured = summarize.Measured(every[every['pixels'] > 0], chosen, self._dataset.entries,
                                      self._options.average, self._protocol.max_depth)
        if not len(measured.records):
            raise EvaluationError(f'{self._dataset.path}: no image has a valid true depth within '
                                  f'{self._protocol.max_depth:g} m; is the depth right?')
        rows = summarize.rows(measured)
        ranks = summarize.ranking(measured, SAMPLES_PER_ROLE)
        self._write_samples(measured, ranks)
        summarize.histograms(measured).write(self._folder)
        write_text(self._folder / PER_IMAGE, summarize.per_image_csv(measured))
        write_text(self._folder / CONFIG, self._config_text())
        numbers = {role: [self._dataset.entries[measured.records['position'][i]].index
                          for i in places] for role, places in ranks.items()}
        headline = rows[0]
        summary = Summary(
            created=datetime.now().astimezone().isoformat(timespec='seconds'),
            command=self._options.command, config=self._estimator.config.to_dict(),
            versions=_versions(), weights=self._estimator.weights,
            data=self._data(every), protocol=self._protocol.info(
                self._options.average, resized(self._protocol, self._estimator.config)),
            rows=rows, paper=list(PAPER_ROWS),
            gate=judge(headline.metrics, self._experiment(headline.images)),
            verdict=summarize.verdict(measured), tables=list(self._options.tables),
            best=numbers['best'], median=numbers['median'], worst=numbers['worst'],
            timing=timing)
        # Last: a folder with a summary is complete.
        write_text(self._folder / SUMMARY, summary.to_json())

    def _data(self, every: NDArray[Any]) -> Data:
        dataset = self._dataset
        skipped = [Skipped(dataset.entries[p].index, dataset.entries[p].name,
                           'no valid true depth where it is scored')
                   for p in every['position'][every['pixels'] == 0]]
        digest = hashlib.sha256(every['digest'].tobytes()).hexdigest()
        for image in skipped:
            _say(f'WARNING: image {image.name} is left out: {image.reason}')
        return Data(str(dataset.path), dataset.format, dataset.split, len(dataset),
                    len(dataset) - len(skipped), dataset.depth, digest, skipped,
                    list(dataset.warnings), dataset.origin, dataset.official)

    def _experiment(self, images: int) -> Experiment:
        estimator, options = self._estimator, self._options
        config, weights = estimator.config, estimator.weights
        return Experiment(
            config, next((name for name, release in RELEASES.items()
                          if release.sha256 == weights.digest), config.backbone),
            estimator.precision, weights.name, weights.digest, self._dataset.official, images,
            self._protocol.name, options.average)

    def _write_samples(self, measured: summarize.Measured, ranks: dict[str, list[int]]) -> None:
        """Do the images for the figures again: they are few, and were not kept."""
        metrics = metrics_of(measured.sums(METHOD)[0])
        for role, places in ranks.items():
            for place in places:
                position = int(measured.records['position'][place])
                self._sample(position, role, metrics[place]).write(self._folder)

    def _sample(self, position: int, role: str, metrics: NDArray[np.float64]) -> Sample:
        image = Image.read(self._dataset, self._protocol, position)
        config, entry = self._estimator.config, image.entry
        features = self._estimator.maps([image.rgb]).features
        weights, patches, _ = self._estimator.read_out(self._estimator.logits(features))
        patches = smooth(mean_of_passes(patches, 1), config.smoothing)
        depth = upsample(patches, self._protocol.size, config.upsampling)[0]
        return Sample(
            entry.index, entry.name, entry.scene, role, image.rgb, depth.cpu().numpy(),
            image.truth, weights[0].cpu().numpy(),
            patches[0].cpu().numpy(), list(config.tokens), list(config.bins),
            dict(zip(METRICS, (float(m) for m in metrics), strict=True)))

    def _config_text(self) -> str:
        values = {**self._estimator.config.to_dict(), **self._options.node.to_dict()}
        return yaml.safe_dump({'/**': {'ros__parameters': values}}, sort_keys=False,
                              default_flow_style=None, width=99)

    def _report(self) -> None:
        if not self._options.report:
            return
        from . import report
        report.write(self._folder, report.Source.read(self._folder))

    def _link_latest(self) -> None:
        """`latest` points at this folder."""
        link = self._folder.parent / LATEST
        part = link.with_name(f'.{LATEST}.{self._folder.name}')
        try:
            part.unlink(missing_ok=True)
            part.symlink_to(self._folder.name, target_is_directory=True)
            part.replace(link)
        except OSError as error:
            _say(f'WARNING: {link}: the link cannot be made ({error.strerror}).')


def fit_input(
    config: DepthConfig, protocol: Protocol, *, own: bool,
) -> tuple[DepthConfig, str]:
    """Let the network see what the protocol crops, unless its own input is asked for.

    Returns:
        The settings, and a sentence to log where the configuration wants another size.

    """
    height, width = protocol.size
    size = config.input_size
    if size == protocol.size:
        return config, ''
    if own:
        return config, f'The crop is {resized(protocol, config)}.'
    return config.replace(input_height=height, input_width=width), (
        f"The network's input is {height} x {width}, what protocol {protocol.name} crops; the "
        f'configuration has {size[0]} x {size[1]}, which --own-input keeps.')


def resized(protocol: Protocol, config: DepthConfig) -> str:
    """Say what becomes of the crop before the network sees it."""
    if config.input_size == protocol.size:
        return ''
    return f"resized to the network's own input of {config.input_height} x {config.input_width}"


def scored(config: DepthConfig) -> tuple[DepthConfig, list[str]]:
    """The paper's method on every pixel: settings for it, and which of them were others."""
    every_pixel = config.replace(
        range_min=0.0, range_max=0.0, out_of_range='clamp',
        reference_focal=0.0)
    ignored = [f'{name}: {getattr(config, name)}' for name in (
        'range_min', 'range_max', 'reference_focal')
        if getattr(config, name) != getattr(every_pixel, name)]
    return every_pixel, ignored


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _check_names(chosen: Sequence[Contender]) -> None:
    """Rows of other programs and of calibrations have names of their own."""
    names = [contender.name for contender in chosen] + [summarize.BEST_CONSTANT]
    taken = sorted({contender.name for contender in chosen
                    if contender.group in ('foreign', 'calibrated')
                    and names.count(contender.name) > 1})
    if taken:
        raise EvaluationError(f'{", ".join(taken)}: two rows would have that name; give '
                              '--predictions another name, or one --calibration at a time.')


def _make_folder(folder: Path) -> Path:
    """Make a folder that does not exist yet."""
    for suffix in ('', *(f'_{n}' for n in range(2, 100))):
        candidate = folder.with_name(folder.name + suffix)
        try:
            candidate.mkdir(parents=True)
            (candidate / recording.FOLDER).mkdir()  # From here on it can be resumed.
        except FileExistsError:
            continue
        except OSError as error:
            raise ResultsError(f'--output {folder.parent}: the folder cannot be made '
                               f'({error.strerror}); choose another.') from error
        return candidate
    raise ResultsError(f'{folder}: exists a hundred times; wait a second.')


def _limited(dataset: Dataset, limit: int) -> Dataset:
    """Only so many images, evenly from the whole."""
    if limit and limit < len(dataset):
        keep = np.unique(np.linspace(0, len(dataset) - 1, limit).astype(int)).tolist()
        dataset.keep(keep)
    return dataset


def _protocol(name: str, dataset: Dataset) -> Protocol:
    """The protocol asked for, or the data set's own."""
    driving = dataset.format.startswith('KITTI')
    chosen = name or ('kitti' if driving else 'depthclip')
    if driving != (chosen == 'kitti'):
        raise EvaluationError(f'--protocol {chosen}: not defined for {dataset.format}; use '
                              f'{"kitti" if driving else "depthclip or bts"}.')
    return PROTOCOLS[chosen]


def _versions() -> dict[str, str]:
    import cv2
    return {'depthclip_ros': depthclip_ros.__version__, 'python': platform.python_version(),
            'torch': str(torch.__version__), 'numpy': np.__version__,
            'opencv': cv2.__version__, 'platform': platform.platform()}
