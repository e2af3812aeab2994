# SPDX-License-Identifier: Apache-2.0
"""Ways to run the trunk of an image encoder: one choice, the same features within a tolerance.

    eager      CLIP's own modules, step by step; in float32 the reference
    torch      batch norm folded, channels-last; on a CPU oneDNN's fused convolutions
    onednn     the folded network through oneDNN's graph compiler, on a CPU
    compile    the folded network through torch.compile (needs a C++ compiler on a CPU)
    onnxruntime    the folded network on ONNX Runtime, on a CPU, in float32 or int8 (see `int8`)
    auto       onednn for bfloat16 on a CPU with AMX, onnxruntime for int8, else torch: what is
               fastest (docs/performance.md)

Whatever runs is first compared with the reference on known images of the real size and number, and
refused if it lies. What the reference gives is kept on disk, where it can speak for an engine, but
not against one. That is also the only probe of what is private to torch: where an operator is
missing or breaks at that size, the next engine runs, and the log says so.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import files, int8
from .backbone import ImageEncoder, is_resnet
from .device import cpu_has_amx, reason
from .errors import EngineError, WeightsError
from .onednn_graph import GraphedResNet
from .resnet import FoldedResNet

if TYPE_CHECKING:
    from .weights import Log

# Largest ||features - reference|| / ||reference|| that passes for rounding. Measured: 1e-6 in
# float32, 0.001 in float16, 0.006 in bfloat16; in int8 0.02 to 0.05, 0.3 with a tiny network. An
# engine that lies is off by about 1.
TOLERANCES = {
    torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05, torch.int8: 0.3}
KNOWN_FORMAT = 1
KNOWN_SUFFIX = '.known'
_LARGEST_KNOWN = 64 << 20  # bytes; of RN50 at 640x480 they are 1.2 million


def install(  # noqa: C901, PLR0913, PLR0917
    encoder: ImageEncoder, name: str, dtype: torch.dtype, device: torch.device,
    size: tuple[int, int], log: Log, source: str = 'the state dict', images: int = 1,
    quantized: bytes = b'', known: KnownFeatures | None = None,
) -> str:
    """Let an encoder's trunk run on an engine, on a device and in a number format.

    Args:
        encoder: on the CPU; its trunk, in any number format, is replaced.
        name: auto, eager, torch, onednn, compile or onnxruntime.
        dtype: of the trunk; the head stays in float32, and so does what goes into a trunk in int8.
        device: where both run.
        size: (height, width) of the network's input.
        log: told what is wrong with an engine that auto passes over, and what is slow.
        source: of the weights, for errors.
        images: that usually go through it together.
        quantized: the trunk as an ONNX model in 8 bits (`int8.write`), for int8.
        known: what the reference gave when it was last asked. Then it is not asked, and only the
            engine that was the best then is tried.

    Returns:
        Name of the engine that runs.

    Raises:
        EngineError: it does not run here, or its features are wrong. Where `known.given` is true
            then, try again with a new encoder: the reference itself decides.
        WeightsError: the reference itself gives no finite features.

    """
    reference = encoder.trunk
    image = known_image(size)
    if encoder.trunk_size is not None:  # two pieces of it go the way of all
        size = encoder.trunk_size
        image = image[:, :, :encoder.stride, :2 * encoder.stride]
    expected = _reference_features(encoder, image, source, known)
    encoder.to(device)
    encoder.dtype = torch.float32 if dtype == torch.int8 else dtype

    batch = image.to(device).expand(images, -1, -1, -1)

    def features_on(engine: str, *, fused: bool) -> Tensor:
        encoder.trunk = build_onnx_trunk(reference, device, quantized) \
            if engine == 'onnxruntime' else \
            build_trunk(engine, reference, dtype, device, size, fused=fused)
        features: Tensor = encoder(batch)
        return features

    def run_on(engine: str) -> None:
        fused = can_be_fused(engine, reference, device)
        with _explained(engine), torch.inference_mode():
            try:
                features = features_on(engine, fused=fused)
            except Exception as error:
                if not fused:
                    raise
                log(_slower(dtype, error))
                features = features_on(engine, fused=False)
        check_features(engine, dtype, features, expected)

    def runs(engine: str, following: str | None) -> bool:
        try:
            run_on(engine)
        except EngineError as error:
            if following is None:
                raise
            log(f'WARNING: {error} Going on with engine: {following}.')
            return False
        return True

    candidates = automatic(reference, dtype, device) if name == 'auto' else [name]
    if known is not None and known.given:
        candidates = candidates[:1]
    engine = next(
        engine for engine, following in itertools.zip_longest(candidates, candidates[1:])
        if runs(engine, following))
    if known is not None and not known.given and engine == candidates[0]:
        known.write(image, expected)
    return engine


def _reference_features(
    encoder: ImageEncoder, image: Tensor, source: str, known: KnownFeatures | None,
) -> Tensor:
    """What the reference gives of an image, or gave.

    Raises:
        WeightsError: they are not finite.

    """
    kept = None if known is None else known.read(image, encoder.stride)
    if kept is not None:
        return kept
    encoder.trunk.float()
    with torch.inference_mode():
        features: Tensor = encoder(image)
    if not features.isfinite().all():
        raise WeightsError(
            f'{source}: with these weights {_share_not_finite(features)} of the features of a '
            'known image are NaN or infinite, and so would be the depth; the weights are damaged. '
            'Fetch, export or convert them again.')
    return features


class KnownFeatures:
    """What the reference makes of the known image, on disk: to ask it again is half of a start.

    Attributes:
        given: whether the last `read` gave them; the one after that does not.

    """

    def __init__(
        self, folder: Path, weights_digest: str, features: str, channels: int, log: Log,
    ) -> None:
        """Use a folder for weights, by their SHA-256, and one kind of features."""
        self._folder, self._channels, self._log = folder, channels, log
        # With its version and build of torch, and the instructions that this uses here.
        self._key = [KNOWN_FORMAT, weights_digest, features, torch.__version__,
                     torch.__config__.show()]
        self.given = False

    def path(self, image: Tensor) -> Path:
        """File for an image: its name is a hash of all that changes the features."""
        pixels = hashlib.sha256(image.contiguous().numpy().data).hexdigest()
        key = json.dumps([*self._key, *image.shape, pixels])
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self._folder / f'{name}{KNOWN_SUFFIX}'

    def read(self, image: Tensor, stride: int) -> Tensor | None:
        """(1, C, H / stride, W / stride) for an image (1, 3, H, W).

        None where they are not kept, were just given or, with a warning, cannot be used.
        """
        if self.given:
            self.given = False
            return None
        path, (height, width) = self.path(image), image.shape[2:]
        try:
            numbers = np.frombuffer(files.read_sealed(path, _LARGEST_KNOWN), '<f4')
            features = torch.from_numpy(numbers.astype(np.float32)).view(
                1, self._channels, height // stride, width // stride)
            if not features.isfinite().all():
                raise ValueError('it holds numbers that are not finite')
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RuntimeError) as error:
            why = (isinstance(error, OSError) and error.strerror) or reason(error)
            self._log(f'WARNING: what is kept of a known image, {path}, cannot be used ({why}); '
                      'it is computed again.')
            return None
        self.given = True
        return features

    def write(self, image: Tensor, features: Tensor) -> None:
        """Keep features; where that is not possible, say so."""
        files.keep_sealed(
            self.path(image), features.numpy().astype('<f4').tobytes(),
            'what is known of an image', 'it is computed again', self._log)


def automatic(trunk: nn.Module, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Engines to try, the fastest first."""
    if dtype == torch.int8:
        return ['onnxruntime']
    graph = device.type == 'cpu' and dtype == torch.bfloat16 and cpu_has_amx() \
        and is_resnet(trunk)
    return ['onednn', 'torch', 'eager'] if graph else ['torch', 'eager']


def serves_every_size(engine: str) -> bool:
    """Whether an engine prepares nothing for the sizes and numbers of images."""
    return engine in ('eager', 'torch', 'onnxruntime')


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Engines are other people's code, and raise anything."""
    try:
        yield
    except Exception as error:
        raise EngineError(f'engine: {name} does not run here ({reason(error)}).') from error


def known_image(size: tuple[int, int]) -> Tensor:
    """(1, 3, height, width): a fixed normalised image of smooth blobs and noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 6, 8, generator=generator)
    blobs = nn.functional.interpolate(coarse, size, mode='bilinear')
    return blobs + 0.2 * torch.randn(1, 3, *size, generator=generator)


def check_features(
    name: str, dtype: torch.dtype, features: Tensor, expected: Tensor,
) -> None:
    """Refuse features that differ from the reference's by more than rounding.

    Raises:
        EngineError: they do.

    """
    found = features.to(expected)
    expected = expected.expand_as(found)
    if not found.isfinite().all():
        raise EngineError(
            f'engine: {name} gives features of a known image of which {_share_not_finite(found)} '
            f'are NaN or infinite in {str(dtype)[6:]}, where the reference has none. Use another '
            'engine, or a precision of a wider range (bfloat16, float32).')
    difference = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= TOLERANCES[dtype]:
        raise EngineError(
            f'engine: {name} gives wrong features on a known image: they differ from the '
            f'reference by {difference:.2g} of its length, and in {str(dtype)[6:]} only '
            f'{TOLERANCES[dtype]:g} is allowed. Use another engine or precision, and please '
            'report it.')


def _share_not_finite(features: Tensor) -> str:
    return f'{1 - float(features.isfinite().float().mean()):.2%}'


def can_be_fused(engine: str, trunk: nn.Module, device: torch.device) -> bool:
    """Whether an engine takes oneDNN's fused convolutions where they work."""
    return engine == 'torch' and device.type == 'cpu' and is_resnet(trunk)


def build_trunk(
    engine: str, trunk: nn.Module, dtype: torch.dtype, device: torch.device,
    size: tuple[int, int], *, fused: bool,
) -> nn.Module:
    """Make of CLIP's own trunk the one that an engine runs; a vision transformer stays whole."""
    folded = engine != 'eager' and is_resnet(trunk)
    network = (FoldedResNet(trunk) if folded else trunk).to(device, dtype)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()  # CLIP's own gives it float32 in every precision
    if fused and isinstance(network, FoldedResNet):
        network.fuse(size)
    if engine == 'onednn':
        if not isinstance(network, FoldedResNet) or device.type != 'cpu':
            raise NotImplementedError('it is for ResNets on a CPU')
        return GraphedResNet(network)
    if engine == 'compile':
        # Freezing packs the weights, which only the CPU's code generation does.
        options: dict[str, Any] = {'freezing': True} if device.type == 'cpu' else {}
        network.compile(options=options)
    return network


def build_onnx_trunk(trunk: nn.Module, device: torch.device, quantized: bytes) -> nn.Module:
    """Give the trunk on ONNX Runtime: the one in 8 bits, or b'' for CLIP's own in float32."""
    if not is_resnet(trunk) or device.type != 'cpu':
        raise NotImplementedError('it is for ResNets on a CPU')
    return int8.OnnxTrunk(quantized or int8.write(int8.steps_of(FoldedResNet(trunk))))


def _slower(dtype: torch.dtype, error: Exception) -> str:
    remedy = ' precision: float32 is faster here.' if dtype != torch.float32 else ''
    return (f"WARNING: engine: torch runs in plain, slower steps, since oneDNN's fused "
            f'convolutions do not work here in {str(dtype)[6:]} ({reason(error)}).{remedy}')
