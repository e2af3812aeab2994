# SPDX-License-Identifier: Apache-2.0
"""Ways to run the trunk of an image encoder: one choice, the same features within a tolerance.

    eager      CLIP's own modules, step by step in float32: the reference
    torch      batch norm folded, channels-last; on a CPU oneDNN's fused convolutions
    compile    the folded network through torch.compile (needs a C++ compiler on a CPU)
    openvino   the folded network through OpenVINO (an optional package; CPUs only)
    auto       torch: nothing else is faster (docs/benchmarks.md)

Whatever runs is first compared with the reference on a known image, and refused if it lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .backbone import ImageEncoder, VitMaskClip
from .errors import ConfigError, EngineError
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
        name: auto, eager, torch, compile or openvino.
        dtype: of the trunk; the head stays in float32.
        device: where both run.
        size: (height, width) of the network's input.
        log: told what is wrong with an engine that auto passes over.

    Returns:
        Name of the engine that runs.

    Raises:
        ConfigError: the engine cannot run this network, or not on this device.
        EngineError: it does not run here, or its features are wrong.

    """
    image = known_image(size)
    with torch.inference_mode():
        expected = encoder(image)
    reference = encoder.trunk
    encoder.to(device)
    encoder.dtype = dtype
    if name != 'auto':
        _install_one(encoder, name, reference, image.to(device), expected)
        return name
    try:
        _install_one(encoder, 'torch', reference, image.to(device), expected)
    except EngineError as error:
        log(f'WARNING: {error} Going on with engine: eager.')
        _install_one(encoder, 'eager', reference, image.to(device), expected)
        return 'eager'
    return 'torch'


def _install_one(
    encoder: ImageEncoder, name: str, reference: nn.Module, image: Tensor, expected: Tensor,
) -> None:
    """Build one engine and compare it with the reference."""
    try:
        with torch.inference_mode():
            encoder.trunk = _BUILDERS[name](reference, encoder.dtype, image.device)
            features = encoder(image)
    except ConfigError:
        raise
    except Exception as error:  # engines are other people's code, and raise anything
        reason = ' '.join(str(error).split())[:300]
        raise EngineError(
            f'engine: {name} does not run here ({type(error).__name__}: {reason}).') from error
    check_features(name, encoder.dtype, features, expected)


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


def _eager(trunk: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    return trunk.to(device, dtype)


def _folded(trunk: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Plain operations, for every device and compiler; a vision transformer stays as it is."""
    if isinstance(trunk, VitMaskClip):
        return _eager(trunk, dtype, device)
    return FoldedResNet(trunk).to(device, dtype)


def _torch(trunk: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    network = _folded(trunk, dtype, device)
    if isinstance(network, FoldedResNet) and device.type == 'cpu' and has_onednn():
        network.fuse()
    return network


def _compile(trunk: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    network = _folded(trunk, dtype, device)
    # Freezing packs the weights, which only the CPU's code generation does.
    options: dict[str, Any] = {'freezing': True} if device.type == 'cpu' else {}
    network.compile(options=options)
    return network


def _openvino(trunk: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    if device.type != 'cpu':
        raise ConfigError(f'engine: openvino runs on CPUs, and the device is {device}; use '
                          'engine: torch, or device: cpu.')
    from .openvino_trunk import OpenVinoTrunk
    return OpenVinoTrunk(_folded(trunk, torch.float32, device), dtype)


_BUILDERS = {
    'eager': _eager, 'torch': _torch, 'compile': _compile, 'openvino': _openvino,
}


def has_onednn() -> bool:
    """Whether this torch has oneDNN and its fused convolutions (x86 builds from 2.0 on)."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in (
            '_convolution_pointwise', '_convolution_pointwise_', '_reorder_convolution_weight'))
