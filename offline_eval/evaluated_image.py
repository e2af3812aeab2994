# SPDX-License-Identifier: Apache-2.0
"""One evaluated image: pixels, true depth, and features of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.backbone import EncoderOutput
from depthclip_ros.core.readout import mean_of_passes, read_out, similarity_logits
from depthclip_ros.evaluation.datasets import Entry, Pair
from depthclip_ros.evaluation.datasets.base import Metres, Rgb
from depthclip_ros.evaluation.metrics import ScaledScores, Sums
from depthclip_ros.evaluation.protocol import Protocol

TextFeatures = Mapping[tuple[str, ...], Tensor]  # (K, C) unit vectors, by words


@dataclass(frozen=True)
class EvaluatedImage:
    """One image of a data set, cropped by the protocol, with the features of the network."""

    position: int  # in the data set's entries
    entry: Entry
    pair: Pair  # the whole image and its depth
    rgb: Rgb  # (H, W, 3)
    truth: Metres  # (H, W), NaN where no pixel is scored
    maps: EncoderOutput
    estimator: DepthEstimator
    protocol: Protocol
    text: TextFeatures

    @cached_property
    def valid(self) -> Metres:
        """(n,) true metres of the scored pixels."""
        return self.truth[~np.isnan(self.truth)]

    @cached_property
    def median(self) -> float:
        """Median of the scored true depth, in metres."""
        return float(np.median(self.valid.astype(np.float64)))

    @cached_property
    def constants(self) -> ScaledScores:
        """Scores of constants."""
        return ScaledScores(1.0, self.valid)

    def constant(self, metres: float) -> Sums:
        """Score one depth everywhere: (11,) sums."""
        sums: Sums = self.constants.score([metres])[0]
        return sums

    @property
    def focal(self) -> float:
        """Focal length in widths of the network's input; 0 if unknown."""
        config = self.estimator.config
        zoom = config.input_height / (self.protocol.size[0] * config.input_width)
        return float(np.float32(self.entry.focal) * np.float32(zoom))

    def word_depth(self, tokens: Sequence[str], bins: Sequence[float]) -> Tensor:
        """Predict (h, w) metres from words; each word has the bin at its index."""
        return mean_of_passes(self.read_out(tokens, bins)[1], 1)[0]

    def read_out(
        self, tokens: Sequence[str], bins: Sequence[float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute weights, depth and spread of every pass, see `readout.read_out`."""
        return read_out(self.logits[tuple(tokens)],
                        torch.tensor(bins, device=self.estimator.device))

    @cached_property
    def logits(self) -> dict[tuple[str, ...], Tensor]:
        """(passes, K, h, w) similarity logits by words, from one product with all texts."""
        logits = similarity_logits(self.maps.features, torch.cat(list(self.text.values())),
                                   self.estimator.config.temperature)
        sizes = [len(words) for words in self.text.values()]
        return dict(zip(self.text, torch.split(logits, sizes, dim=1), strict=True))
