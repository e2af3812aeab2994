# SPDX-License-Identifier: Apache-2.0
"""How the trunk of an image encoder runs: always what is fastest here, with the same features.

    oneDNN graph    a ResNet in bfloat16 on a CPU with AMX: all convolutions through oneDNN's graph
                    compiler (`onednn_graph`), 10 to 13 % faster there
    oneDNN          a ResNet on a CPU: oneDNN's fused convolutions (`resnet`, `winograd`)
    CUDA graph      everything on a GPU, in plain operations of torch (`cuda_graph`)
    torch           the same without the graph; a vision transformer on a CPU
    ONNX Runtime    a ResNet in 8 bits on a CPU, from a file (`int8`)

Whether something works here is found out by trying, at the real size; where it breaks, the next
one runs, and the log says so. That each gives the features of CLIP's own modules is shown by the
tests, and on one's own processor by `depthclip doctor`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .backbone import ImageEncoder
from .cuda_graph import GraphedTrunk
from .device import cpu_has_amx, reason
from .errors import EngineError, WeightsError
from .onednn_graph import GraphedResNet
from .resnet import FoldedResNet

if TYPE_CHECKING:
    from .weights import Log

# Largest ||features - reference|| / ||reference|| that passes for rounding, for `doctor` and the
# tests. Measured: 1e-6 in float32, 0.001 in float16, 0.006 in bfloat16.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}


def install(
    encoder: ImageEncoder, dtype: torch.dtype, device: torch.device, size: tuple[int, int],
    log: Log, source: str = 'the state dict', images: int = 1,
) -> str:
    """Let an encoder's trunk run as fast as it can, on a device and in a number format.

    A known image goes through it, as many times at once as images usually do.

    Args:
        encoder: on the CPU, in float32; its trunk is replaced.
        dtype: of the trunk; the head stays in float32.
        device: where both run.
        size: (height, width) of the network's input.
        log: told what does not run here.
        source: of the weights, for errors.
        images: that usually go through it together.

    Returns:
        What runs it, as above.

    Raises:
        EngineError: nothing does, or the number format has too small a range.
        WeightsError: these weights give no finite features.

    """
    encoder.to(device)
    encoder.dtype = dtype
    ways = _ways(encoder.trunk, dtype, device, size)
    while ways:
        name, build = ways.pop(0)
        try:
            encoder.trunk = build()
            features = try_known_image(encoder, size, device, images)
        except Exception as error:
            if not ways:
                raise EngineError(f'the network does not run on {device} in {str(dtype)[6:]} '
                                  f'({reason(error)}).') from error
            log(f'WARNING: {name} does not run the network in {str(dtype)[6:]} here '
                f'({reason(error)}); going on with {ways[0][0]}, which is slower.')
        else:
            break
    check_finite(features, dtype, source)
    return name


def _ways(
    trunk: nn.Module, dtype: torch.dtype, device: torch.device, size: tuple[int, int],
) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Names and builders of what can run a trunk in a number format, the fastest first."""
    trunk = trunk.to(device, dtype)
    for module in trunk.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()  # CLIP's own gives it float32 in every precision
    ways: list[tuple[str, Callable[[], nn.Module]]] = [('torch', lambda: trunk)]
    if device.type == 'cuda':
        ways.insert(0, ('CUDA graph', lambda: GraphedTrunk(trunk)))
    elif isinstance(trunk, FoldedResNet):
        network = trunk
        ways.insert(0, ('oneDNN', lambda: network.fused(size)))
        if dtype == torch.bfloat16 and cpu_has_amx():
            ways.insert(0, ('oneDNN graph', lambda: GraphedResNet(network)))
    return ways


def try_known_image(
    encoder: ImageEncoder, size: tuple[int, int], device: torch.device, images: int = 1,
) -> Tensor:
    """Features of a known image on a device: (images, C, height / stride, width / stride)."""
    with torch.inference_mode():
        features: Tensor = encoder(known_image(size).to(device).expand(images, -1, -1, -1))
    return features


def known_image(size: tuple[int, int]) -> Tensor:
    """(1, 3, height, width): a fixed normalised image of smooth blobs and noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 6, 8, generator=generator)
    blobs = nn.functional.interpolate(coarse, size, mode='bilinear')
    return blobs + 0.2 * torch.randn(1, 3, *size, generator=generator)


def check_finite(features: Tensor, dtype: torch.dtype, source: str) -> None:
    """Refuse features of a known image that are NaN or infinite.

    Raises:
        WeightsError: they are, in float32.
        EngineError: they are, in a number format of a smaller range or precision.

    """
    share = 1 - float(features.isfinite().float().mean())
    if not share:
        return
    found = (f'{source}: with these weights {share:.2%} of the features of a known image are NaN '
             f'or infinite in {str(dtype)[6:]}, and so would be the depth')
    if dtype != torch.float32:
        raise EngineError(f'{found}. Use precision: float32; if that fails, too, the weights are '
                          'damaged.')
    raise WeightsError(f'{found}; the weights are damaged. Fetch, export or convert them again.')


def difference(features: Tensor, reference: Tensor) -> float:
    """How far features are from the reference's, as a part of their length."""
    features, reference = features.cpu().float(), reference.cpu().float()
    return float((features - reference).norm() / reference.norm().clamp_min(1e-12))
