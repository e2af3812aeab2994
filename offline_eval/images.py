# SPDX-License-Identifier: Apache-2.0
"""One image that is evaluated: what was read, and what the network sees in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from depthclip_ros.core import DepthEstimator
from depthclip_ros.core.backbone import Maps
from depthclip_ros.core.projection import mean_of_passes, read_out, similarity_logits
from depthclip_ros.evaluation.datasets import Entry, Pair
from depthclip_ros.evaluation.datasets.base import Metres, Rgb
from depthclip_ros.evaluation.metrics import Multiples, Sums
from depthclip_ros.evaluation.protocol import Protocol

TextFeatures = Mapping[tuple[str, ...], Tensor]  # (K, C) unit vectors of every set of words


@dataclass(frozen=True)
class EvaluatedImage:
    """One image of a data set, as the protocol crops it, and what the network sees in it."""

    position: int  # in the data set's entries
    entry: Entry
    pair: Pair  # the whole image and its depth
    rgb: Rgb  # (H, W, 3)
    truth: Metres  # (H, W), NaN where it is not scored
    maps: Maps
    estimator: DepthEstimator
    protocol: Protocol
    text: TextFeatures

    @cached_property
    def valid(self) -> Metres:
        """(n,) metres, true depth that is scored."""
        return self.truth[~np.isnan(self.truth)]

    @cached_property
    def median(self) -> float:
        """Of the true depth, in metres."""
        return float(np.median(self.valid.astype(np.float64)))

    @cached_property
    def constants(self) -> Multiples:
        """Score of any constant."""
        return Multiples(1.0, self.valid)

    def constant(self, metres: float) -> Sums:
        """(11,) sums of one depth everywhere."""
        sums: Sums = self.constants.score([metres])[0]
        return sums

    @property
    def focal(self) -> float:
        """Focal length in widths of the network's input; 0 if not known."""
        config = self.estimator.config
        share = config.input_height / (self.protocol.size[0] * config.input_width)
        return float(np.float32(self.entry.focal) * np.float32(share))

    def word_depth(self, tokens: Sequence[str], bins: Sequence[float]) -> Tensor:
        """(h, w) metres that words say, in the order in which they get the bins."""
        return mean_of_passes(self.read_out(tokens, bins)[1], 1)[0]

    def read_out(
        self, tokens: Sequence[str], bins: Sequence[float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, depth and spread of every pass, as `projection.read_out` gives them."""
        return read_out(self.logits[tuple(tokens)],
                        torch.tensor(bins, device=self.estimator.device))

    @cached_property
    def logits(self) -> dict[tuple[str, ...], Tensor]:
        """(passes, K, h, w) of every set of words: features are compared with all at once."""
        every = similarity_logits(self.maps.features, torch.cat(list(self.text.values())),
                                  self.estimator.config.temperature)
        sizes = [len(words) for words in self.text.values()]
        return dict(zip(self.text, torch.split(every, sizes, dim=1), strict=True))
