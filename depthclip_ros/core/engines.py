# SPDX-License-Identifier: Apache-2.0
"""Ways to run the trunk of an image encoder: one choice, the same features within a tolerance.

    eager      CLIP's own modules, step by step; in float32 the reference
    torch      batch norm folded, channels-last; on a CPU oneDNN's fused convolutions
    onednn     the folded network through oneDNN's graph compiler, on a CPU
    compile    the folded network through torch.compile (needs a C++ compiler on a CPU)
    onnxruntime    the folded network on ONNX Runtime, on a CPU, in float32 or int8 (see `int8`)
    auto       onednn for bfloat16 on a CPU with AMX, onnxruntime for int8, else torch: what is
               fastest (benchmarks/README.md)

Whatever runs is first compared with the reference on known images of the real size and number, and
refused if it lies. That is also the only probe of what is private to torch: where an operator is
missing or breaks at that size, the next engine runs, and the log says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import int8
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


def install(  # noqa: PLR0913, PLR0917
    encoder: ImageEncoder, name: str, dtype: torch.dtype, device: torch.device,
    size: tuple[int, int], log: Log, source: str = 'the state dict', images: int = 1,
    quantized: bytes = b'',
) -> str:
    """Let an encoder's trunk run on an engine, on a device and in a number format.

    Args:
        encoder: in float32 on the CPU; its trunk is replaced.
        name: auto, eager, torch, onednn, compile or onnxruntime.
        dtype: of the trunk; the head stays in float32, and so does what goes into a trunk in int8.
        device: where both run.
        size: (height, width) of the network's input.
        log: told what is wrong with an engine that auto passes over, and what is slow.
        source: of the weights, for errors.
        images: that usually go through it together.
        quantized: the trunk as an ONNX model in 8 bits (`int8.write`), for int8.

    Returns:
        Name of the engine that runs.

    Raises:
        EngineError: it does not run here, or its features are wrong.
        WeightsError: the reference itself gives no finite features.

    """
    reference = encoder.trunk
    image = known_image(size)
    if encoder.trunk_size is not None:  # two pieces of it go the way of all
        size = encoder.trunk_size
        image = image[:, :, :encoder.stride, :2 * encoder.stride]
    with torch.inference_mode():
        expected = encoder(image)
    if not expected.isfinite().all():
        raise WeightsError(
            f'{source}: with these weights {_share_not_finite(expected)} of the features of a '
            'known image are NaN or infinite, and so would be the depth; the weights are damaged. '
            'Fetch, export or convert them again.')
    encoder.to(device)
    encoder.dtype = torch.float32 if dtype == torch.int8 else dtype

    image = image.to(device).expand(images, -1, -1, -1)

    def features_on(engine: str, *, fused: bool) -> Tensor:
        encoder.trunk = build_onnx_trunk(reference, device, quantized) \
            if engine == 'onnxruntime' else \
            build_trunk(engine, reference, dtype, device, size, fused=fused)
        features: Tensor = encoder(image)
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
    return next(engine for engine, following in itertools.zip_longest(candidates, candidates[1:])
                if runs(engine, following))


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
