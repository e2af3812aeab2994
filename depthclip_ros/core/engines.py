# SPDX-License-Identifier: Apache-2.0
"""Ways to run the trunk of an image encoder: one choice, the same features within a tolerance.

    eager      CLIP's own modules, step by step; in float32 the reference
    torch      batch norm folded, channels-last; on a CPU oneDNN's fused convolutions
    onednn     the folded network through oneDNN's graph compiler, on a CPU
    compile    the folded network through torch.compile (needs a C++ compiler on a CPU)
    auto       onednn for bfloat16 on a CPU with AMX, else torch: what is fastest
               (benchmarks/README.md)

Whatever runs is first compared with the reference on a known image, and refused if it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .backbone import ImageEncoder, VitMaskClip
from .device import cpu_has_amx
from .errors import EngineError
from .onednn_graph import GraphedResNet
from .resnet import FoldedResNet

if TYPE_CHECKING:
    from .weights import Log

# Largest ||features - reference|| / ||reference|| that passes for rounding. Measured: 1e-6 in
# float32, 0.001 in float16, 0.006 in bfloat16. An engine that lies is off by about 1.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}


def install(
    encoder: ImageEncoder, name: str, dtype: torch.dtype, device: torch.device,
    size: tuple[int, int], log: Log,
) -> str:
    """Let an encoder's trunk run on an engine, on a device and in a number format.

    Args:
        encoder: in float32 on the CPU; its trunk is replaced.
        name: auto, eager, torch, onednn or compile.
        dtype: of the trunk; the head stays in float32.
        device: where both run.
        size: (height, width) of the network's input.
        log: told what is wrong with an engine that auto passes over.

    Returns:
        Name of the engine that runs.

    Raises:
        EngineError: it does not run here, or its features are wrong.

    """
    reference = encoder.trunk
    candidates = automatic(reference, dtype, device) if name == 'auto' else [name]
    # A small image is enough, but what is compiled for one size is checked at that.
    generic = serves_every_size(candidates[0])
    image = known_image((3 * encoder.stride, 4 * encoder.stride) if generic else size)
    with torch.inference_mode():
        expected = encoder(image)
    encoder.to(device)
    encoder.dtype = dtype

    def run_on(engine: str) -> str:
        with _explained(engine), torch.inference_mode():
            encoder.trunk = build_trunk(engine, reference, dtype, device, size)
            features = encoder(image.to(device))
        check_features(engine, dtype, features, expected)
        return engine

    def run_first(engine: str, *others: str) -> str:
        try:
            return run_on(engine)
        except EngineError as error:
            if not others:
                raise
            log(f'WARNING: {error} Going on with engine: {others[0]}.')
            return run_first(*others)

    return run_first(*candidates)


def automatic(trunk: nn.Module, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Engines to try, the fastest first."""
    graph = device.type == 'cpu' and dtype == torch.bfloat16 and cpu_has_amx() \
        and not isinstance(trunk, VitMaskClip)
    return ['onednn', 'torch', 'eager'] if graph else ['torch', 'eager']


def serves_every_size(engine: str) -> bool:
    """Whether an engine prepares nothing for the sizes and numbers of images."""
    return engine in ('eager', 'torch')


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Engines are other people's code, and raise anything."""
    try:
        yield
    except Exception as error:
        reason = ' '.join(str(error).split())[:300]
        raise EngineError(
            f'engine: {name} does not run here ({type(error).__name__}: {reason}).') from error


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
    expected = expected.nan_to_num()
    found = features.to(expected).nan_to_num()
    difference = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= TOLERANCES[dtype]:
        raise EngineError(
            f'engine: {name} gives wrong features on a known image: they differ from the '
            f'reference by {difference:.2g} of its length, and in {str(dtype)[6:]} only '
            f'{TOLERANCES[dtype]:g} is allowed. Use another engine or precision, and please '
            'report it.')


def build_trunk(
    engine: str, trunk: nn.Module, dtype: torch.dtype, device: torch.device,
    size: tuple[int, int],
) -> nn.Module:
    """Make of CLIP's own trunk the one that an engine runs; a vision transformer stays whole."""
    folded = engine != 'eager' and not isinstance(trunk, VitMaskClip)
    network = (FoldedResNet(trunk) if folded else trunk).to(device, dtype)
    if engine == 'torch' and isinstance(network, FoldedResNet) and device.type == 'cpu' \
            and has_onednn():
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


def has_onednn() -> bool:
    """Whether this torch has oneDNN and its fused convolutions (x86 builds from 2.0 on)."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in (
            '_convolution_pointwise', '_convolution_pointwise_', '_reorder_convolution_weight'))
