# SPDX-License-Identifier: Apache-2.0
"""CLIP's ResNet in 8 bits on ONNX Runtime: made once into a file, which `precision: int8` reads.

Static quantisation: weights to 8 bits with a scale for every output channel; maps to 8 bits
with a scale each, from their extremes over calibration images; then every convolution's bias so
that the mean of every channel is again that of the float32 network on some of these images (Nagel
et al., ICCV 2019, §4.2): this takes the error of depth to less than a half. The first convolution
and the last sum stay in float32. What did not help is in docs/notes/performance.md.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from .engine import difference
from .errors import EngineError, reason
from .resnet import Convolution, replaced

_FORMAT = 3
_CORRECTED = 8  # images on which, together, the means of channels are corrected
_LEVELS = 255
# Greatest difference of features, as a part of their length, that passes for rounding. Measured:
# 0.02 to 0.05; 255 levels of a map and 63 of a weight, in 80 steps, explain half of this.
TOLERANCE = 0.2
_OPSET, _IR = 17, 8  # of ONNX, which every ONNX Runtime since 1.14 reads

# Takes a step of a network: its number, from 1; a convolution, an average, or None for a sum; what
# goes in, of a sum two; and whether a ReLU follows.
Do = Callable[[int, 'nn.Module | None', list[Any], bool], Any]


class Numbers(NamedTuple):
    """What 8 bits need to know of the steps."""

    ranges: list[tuple[float, float]]  # lowest and greatest value of what each gives
    biases: dict[int, Tensor]  # of the convolutions, by the step's number
    top: int  # greatest weight


def walk(network: nn.Module, x: Any, do: Do) -> None:
    """Take the steps of a network of `Convolution` and `nn.AvgPool2d` in the way of `do`."""
    numbers = itertools.count(1)

    class Step(nn.Module):
        def __init__(self, operation: nn.Module) -> None:
            super().__init__()
            self.operation = operation

        def forward(self, x: Any, relu: bool = False) -> Any:
            return do(next(numbers), self.operation, [x], relu)

        def relu(self, x: Any) -> Any:
            return self.forward(x, relu=True)

        def add_relu(self, x: Any, shortcut: Any) -> Any:
            y = self.forward(x)
            return do(next(numbers), None, [y, shortcut], True)

    replaced(network, Step)(x)


def calibrate(network: nn.Module, images: Sequence[Tensor], top: int) -> Numbers:
    """Find ranges of all maps on (1, 3, H, W) images, then biases that keep channels' means."""
    ranges: dict[int, tuple[float, float]] = {}
    means: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}

    def note(number: int, operation: nn.Module | None, given: list[Tensor], relu: bool) -> Tensor:
        y: Tensor = operation(*given) if operation else given[0] + given[1]
        if isinstance(operation, Convolution) and few:
            means[number] = means.get(number, 0) + y.mean((0, 2, 3))
        y = y.relu_() if relu else y
        low, high = ranges.get(number, (0.0, 0.0))
        ranges[number] = min(low, float(y.min())), max(high, float(y.max()))
        return y

    def correct(
        number: int, operation: nn.Module | None, given: list[Tensor], relu: bool,
    ) -> Tensor:
        if isinstance(operation, Convolution):
            weight = operation.weight
            if number > 1:
                levels, scales = _levels(weight, top)
                weight = levels * scales[:, None, None, None]
            y = conv2d(given[0], weight, None, operation.stride, operation.padding)
            biases[number] = means[number] / len(images[:_CORRECTED]) - y.mean((0, 2, 3))
            y.add_(biases[number][:, None, None])
        else:
            y = operation(*given) if operation else given[0] + given[1]
        y = y.relu_() if relu else y
        if number == len(ranges):
            return y
        scale, zero = _affine(ranges[number])
        return y.div_(scale).round_().add_(zero).clamp_(0, _LEVELS).sub_(zero).mul_(scale)

    for i, image in enumerate(images):
        few = i < _CORRECTED
        walk(network, image, note)
    walk(network, torch.cat(list(images[:_CORRECTED])), correct)
    return Numbers(list(ranges.values()), biases, top)


def _affine(values: tuple[float, float]) -> tuple[float, int]:
    """Scale and zero point of a tensor in 8 bits without sign."""
    low, high = values
    scale = max(high - low, 1e-9) / _LEVELS
    return scale, round(-low / scale)


def _levels(weight: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Weights as whole numbers from -top to top, and the scale of every output channel."""
    scales = weight.abs().amax((1, 2, 3)).clamp_min(1e-9) / top
    return (weight / scales[:, None, None, None]).round(), scales


class _Map(NamedTuple):
    """What goes from step to step of the model that is written."""

    name: str
    channels: int = 0
    scale: float = 0.0


def write(network: nn.Module, numbers: Numbers) -> bytes:
    """Write a float32 network as an ONNX model in 8 bits."""
    import onnx
    ranges, top = numbers.ranges, numbers.top
    nodes, constants = [], []

    def constant(name: str, values: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.array(values, order='C'), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def dequantized(name: str, levels: Any, scales: Tensor) -> str:
        """Constant of whole numbers with a scale for every output channel."""
        return node('DequantizeLinear', [
            constant(f'{name} levels', levels), constant(f'{name} scales', scales.numpy()),
            constant(f'{name} zero', np.zeros(len(scales), levels.dtype))], name, axis=0)

    def do(number: int, operation: Any, given: list[_Map], relu: bool) -> _Map:
        x, name = given[0], f'step {number}'
        channels, output = x.channels, 'features' if number == len(ranges) else f'map {number}'
        raw = f'{output} before ReLU' if relu else output
        if operation is None:
            node('Add', [x.name for x in given], raw)
        elif isinstance(operation, Convolution):
            weight, bias = operation.weight, numbers.biases[number]
            channels = len(weight)
            if number == 1:
                inputs = [constant(f'{name} weight', weight.numpy()),
                          constant(f'{name} bias', bias.numpy())]
            else:
                levels, scales = _levels(weight, top)
                fine = scales * x.scale
                inputs = [dequantized(
                    f'{name} weight', levels.numpy().astype(np.int8), scales), dequantized(
                    f'{name} bias', (bias / fine).round().numpy().astype(np.int32), fine)]
            node('Conv', [x.name, *inputs], raw, kernel_shape=list(weight.shape[2:]),
                 strides=operation.stride, pads=2 * operation.padding)
        else:  # as a convolution of each channel, which ONNX Runtime does faster in 8 bits
            size = operation.kernel_size
            weights = dequantized(
                f'{name} weight', np.full((channels, 1, size, size), top, np.int8),
                torch.full((channels,), 1 / (top * size * size)))
            node('Conv', [x.name, weights], raw, kernel_shape=[size] * 2, strides=[size] * 2,
                 group=channels)
        if relu:
            node('Relu', [raw], output)
        if number == len(ranges):
            return _Map(output)
        scale, zero = _affine(ranges[number - 1])
        place = [constant(f'{output} scale', np.float32(scale)),
                 constant(f'{output} zero', np.uint8(zero))]
        rounded = node('QuantizeLinear', [output, *place], f'{output} levels')
        return _Map(node('DequantizeLinear', [rounded, *place], f'{output} rounded'),
                    channels, scale)

    walk(network, _Map('images'), do)
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, 'trunk',
        [onnx.helper.make_tensor_value_info('images', floats, ['B', None, 'H', 'W'])],
        [onnx.helper.make_tensor_value_info('features', floats, None)], constants)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', _OPSET)], ir_version=_IR)
    content: bytes = model.SerializeToString()
    return content


class OnnxTrunk(nn.Module):
    """A network that `write` wrote on ONNX Runtime, for images of every size and number."""

    def __init__(self, content: bytes) -> None:
        import onnxruntime  # type: ignore[import-untyped]
        super().__init__()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        # Waiting threads would burn cores that others need: torch's for the rest of an image, too.
        settings.add_session_config_entry('session.intra_op.allow_spinning', '0')
        self._session = onnxruntime.InferenceSession(
            content, settings, providers=['CPUExecutionProvider'])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 32, W / 32), in float32."""
        features, = self._session.run(None, {'images': images.contiguous().numpy()})
        return torch.from_numpy(features)


@functools.cache
def greatest_weight() -> int:
    """127, or 63 where the processor's sums of products of 8 bits overflow: found by trying.

    Without VNNI, x86-64 adds two products in 16 bits, and cuts off what is beyond.
    """
    channels = 64
    network = nn.Sequential(*(Convolution(
        torch.full((channels, channels, size, size), 1 / (channels * size * size)),
        torch.zeros(channels), 1, size // 2) for size in (1, 1, 3, 1)))
    numbers = Numbers([(0.0, 1.0)] * 4, dict.fromkeys(range(1, 5), torch.zeros(channels)), 127)
    found = OnnxTrunk(write(network, numbers))(torch.ones(1, channels, 16, 16))
    return 127 if float(found[..., 8, 8].min()) > 0.9 else 63


def make(network: nn.Module, images: Sequence[Tensor]) -> bytes:
    """Make a float32 `FoldedResNet` in 8 bits, of (1, 3, H, W) images: a model for `OnnxTrunk`.

    Raises:
        EngineError: its features on the last image are further from float32's than rounding
            explains, or not finite.

    """
    model = write(network, calibrate(network, images, greatest_weight()))
    apart = difference(OnnxTrunk(model)(images[-1]), network(images[-1]))
    if not apart <= TOLERANCE:
        raise EngineError(
            f'precision: int8: the features in 8 bits differ from float32 by {apart:.2g} of '
            f'their length, where rounding explains {TOLERANCE}; nothing was kept. Use float32, '
            'and please report it.')
    return model


def path_of(
    folder: Path, weights_digest: str, size: tuple[int, int], normalization: str,
) -> Path:
    """File in the cache, by all that changes what it must hold; EngineError without ONNX Runtime.

    `size` is that of the network's input, (height, width).
    """
    try:
        top = greatest_weight()
    except ImportError as error:
        raise EngineError(f'precision: int8 needs ONNX Runtime and onnx ({error}): '
                          'pip install onnxruntime onnx') from error
    key = json.dumps([_FORMAT, weights_digest, *size, normalization, top])
    return folder / 'int8' / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.onnx'


def load(path: Path) -> OnnxTrunk:
    """Read a network that was made; EngineError where it is not there, or cannot be used."""
    try:
        return OnnxTrunk(path.read_bytes())
    except Exception as error:  # ONNX Runtime raises types of its own
        why = 'is missing' if isinstance(error, FileNotFoundError) else \
            f'cannot be used ({reason(error)})'
        raise EngineError(
            'precision: int8: the network in 8 bits for these weights, input size and '
            f'normalisation, {path}, {why}. Make it with `depthclip quantize`, with the same '
            '--config and --weights, and --images FOLDER for pictures of your camera.') from error
