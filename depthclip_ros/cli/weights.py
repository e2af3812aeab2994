# SPDX-License-Identifier: Apache-2.0
"""`depthclip fetch` and `depthclip encode-text`: fill the caches of a robot without internet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..core import releases
from ..core import weights as core_weights
from ..core.errors import WeightsError
from .model import settings, to_stderr

if TYPE_CHECKING:
    import argparse


def fetch_weights(options: argparse.Namespace) -> int:
    """Download and verify official weights; without a name, list them.

    Raises:
        DepthClipError: the name is unknown, the download fails, or the cache cannot be written.

    """
    folder = core_weights.cache_folder()
    if options.name is None:
        print(f'Official CLIP weights (cache: {folder}):')
        for name in releases.RELEASES:
            print(f'  {name:16}{core_weights.find_release(name, folder) or "-"}')
        return 0
    path = core_weights.download_release(options.name, folder, to_stderr)
    releases.file_digest(path, releases.RELEASES[options.name])
    to_stderr(f'{options.name} is at {path}, checksum verified.')
    print(path)
    return 0


def encode_text(options: argparse.Namespace) -> int:
    """Cache the text features of a parameter file, scenes included, and print their paths.

    Raises:
        DepthClipError: the file is wrong, weights are missing, or the cache cannot be written.

    """
    from ..core.text_features import cache_path, cached_features, phrases_of, word_warnings
    depth, node = settings(options.config, options.weights)
    folder = core_weights.cache_folder(node.cache_dir)
    info, state_dict = core_weights.load_weights(
        node.weights, depth.backbone, folder, to_stderr, offline=node.offline)
    cache = folder / 'text'
    for phrases in phrases_of(depth):
        start = time.perf_counter()
        features, hit = cached_features(
            phrases, cache, depth.backbone, info.digest, lambda: state_dict, to_stderr)
        milliseconds = 1e3 * (time.perf_counter() - start)
        for doubt in word_warnings(phrases, features, lambda: state_dict, thorough=True):
            to_stderr(f'WARNING: {phrases.setting}: {doubt}')
        path = cache_path(phrases, cache, depth.backbone, info.digest)
        if not path.is_file():
            raise WeightsError(f'{path} could not be written, see above: a robot would have to '
                               'encode the words itself.')
        print(f'key:      {path.stem}')
        print(f'path:     {path}')
        print(f'features: {len(features)} {phrases.setting} x {features.shape[1]}, '
              f'weights {info.name}')
        print(f'{"hit" if hit else "encoded"} in {milliseconds:.1f} ms')
    return 0
