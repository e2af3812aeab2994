# SPDX-License-Identifier: Apache-2.0
"""CLIP's ResNet in 8 bits on ONNX Runtime: made once into a file, which `precision: int8` reads.

Static quantisation: weights to 8 bits with a scale for every output channel; maps to 8 bits
with a scale each, from their extremes over calibration images; then every convolution's bias so
that the mean of every channel is again that of the float32 network on some of these images (Nagel
et al., ICCV 2019, §4.2): this takes the error of depth to less than a half. The first convolution
and the last sum stay in float32. What did not help is in docs/int8.md.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from .device import reason
from .engine import difference
from .errors import EngineError
from .resnet import Bottleneck, Convolution, FoldedResNet

FORMAT = 3
SUFFIX = '.onnx'
# On so many images, together, the means of channels are corrected.
_CORRECTED = 8
_LEVELS = 255
_OPSET, _IR = 17, 8  # of ONNX, which every ONNX Runtime since 1.14 reads
_CALIBRATION = 'calibrated on'

Range = tuple[float, float]


class Step(NamedTuple):
    """One step of the network. Tensor 0 is the images, tensor i + 1 what step i gives."""

    inputs: tuple[int, ...]  # of a sum two
    convolution: Convolution | None = None
    pool: int = 0  # averages so many by so many
    relu: bool = False


def steps_of(network: FoldedResNet) -> list[Step]:
    """The network's steps in order."""
    steps: list[Step] = []

    def add(*inputs: int, **what: Any) -> int:
        steps.append(Step(inputs, **what))
        return len(steps)

    def add_block(block: Bottleneck, x: int) -> int:
        y = add(x, convolution=block.reduce, relu=True)
        y = add(y, convolution=block.spatial, relu=True)
        if block.stride > 1:
            y, x = add(y, pool=block.stride), add(x, pool=block.stride)
        if block.shortcut is not None:
            x = add(x, convolution=block.shortcut)
        return add(add(y, convolution=block.expand), x, relu=True)

    x = 0
    for convolution in network.stem:
        x = add(x, convolution=convolution, relu=True)
    x = add(x, pool=2)
    for block in network.blocks:
        x = add_block(block, x)
    return steps


def run(
    steps: Sequence[Step], images: Tensor, see: Callable[[int, Tensor], Tensor],
    convolve: Callable[[int, Convolution, Tensor], Tensor],
) -> None:
    """Take the steps with torch.

    Args:
        steps: of the network.
        images: (B, 3, H, W).
        see: told the number of every tensor, and the tensor; gives what goes on in its place.
        convolve: told the number of a step, its convolution, and its input.

    """
    tensors = {0: images}
    last = {number: i for i, step in enumerate(steps) for number in step.inputs}
    for i, step in enumerate(steps):
        given = [tensors[number] for number in step.inputs]
        if step.convolution is not None:
            result = convolve(i, step.convolution, given[0])
        else:
            result = avg_pool2d(given[0], step.pool) if step.pool else given[0] + given[1]
        tensors[i + 1] = see(i + 1, result.relu_() if step.relu else result)
        for number in step.inputs:  # a batch of maps takes much memory
            if last[number] == i:
                tensors.pop(number, None)


def quantize(
    steps: Sequence[Step], images: Iterable[Tensor], top: int,
) -> tuple[list[Step], list[Range]]:
    """Calibrate.

    Args:
        steps: of the network, in float32.
        images: each (1, 3, H, W), normalised.
        top: greatest weight in 8 bits.

    Returns:
        The steps with corrected biases, and lowest and greatest value of every tensor.

    """
    ranges: list[Range] = [(0.0, 0.0)] * (len(steps) + 1)
    means: dict[int, Tensor] = {}
    kept: list[Tensor] = []

    def note(number: int, tensor: Tensor) -> Tensor:
        low, high = (float(value) for value in torch.aminmax(tensor))
        ranges[number] = min(ranges[number][0], low), max(ranges[number][1], high)
        return tensor

    def convolve(number: int, convolution: Convolution, x: Tensor) -> Tensor:
        y: Tensor = convolution(x)
        if len(kept) < _CORRECTED:
            means[number] = means.get(number, 0) + _mean(y)
        return y

    for image in images:
        run(steps, image, note, convolve)
        if len(kept) < _CORRECTED:
            kept.append(image)

    corrected = list(steps)

    def rounded(number: int, tensor: Tensor) -> Tensor:
        if number == len(steps):
            return tensor
        scale, zero = _affine(ranges[number])
        levels = tensor.div_(scale).round_().add_(zero).clamp_(0, _LEVELS)
        return levels.sub_(zero).mul_(scale)

    def correct(number: int, convolution: Convolution, x: Tensor) -> Tensor:
        weight = convolution.weight
        if number:
            levels, scales = _levels(weight, top)
            weight = levels * scales[:, None, None, None]
        y = conv2d(x, weight, None, convolution.stride, convolution.padding)
        bias = means[number] / len(kept) - _mean(y)
        corrected[number] = steps[number]._replace(convolution=Convolution(
            convolution.weight, bias, convolution.stride[0], convolution.padding[0]))
        return y.add_(bias[:, None, None])

    run(steps, torch.cat(kept), rounded, correct)
    return corrected, ranges


def _mean(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (C,)."""
    mean: Tensor = maps.mean((0, 2, 3))
    return mean


def _affine(values: Range) -> tuple[float, int]:
    """Scale and zero point of a tensor in 8 bits without sign."""
    low, high = values
    scale = max(high - low, 1e-9) / _LEVELS
    return scale, round(-low / scale)


def _levels(weight: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Weights as whole numbers from -top to top, and the scale of every output channel."""
    scales = weight.abs().amax((1, 2, 3)).clamp_min(1e-9) / top
    return (weight / scales[:, None, None, None]).round(), scales


def write(  # noqa: C901
    steps: Sequence[Step], ranges: Sequence[Range] | None = None, top: int = 127,
    notes: str = '',
) -> bytes:
    """Write the network as an ONNX model.

    Args:
        steps: of the network.
        ranges: of every tensor, to compute in 8 bits; None: in float32.
        top: greatest weight in 8 bits.
        notes: what is calibrated on, in words.

    """
    import onnx
    nodes, constants = [], []

    def constant(name: str, values: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.array(values, order='C'), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def dequantized(name: str, levels: Any, scales: Tensor) -> str:
        """Constant of whole numbers with a scale for every output channel."""
        inputs = [constant(f'{name} levels', levels), constant(f'{name} scales', scales.numpy()),
                  constant(f'{name} zero', np.zeros(len(scales), levels.dtype))]
        return node('DequantizeLinear', inputs, name, axis=0)

    def convolve(number: int, convolution: Convolution, x: str, output: str) -> str:
        weight, bias = convolution.weight, convolution.bias
        name = f'convolution {number}'
        if ranges is None or number == 0:
            inputs = [constant(f'{name} weight', weight.numpy()),
                      constant(f'{name} bias', bias.numpy())]
        else:
            levels, scales = _levels(weight, top)
            fine = scales * _affine(ranges[steps[number].inputs[0]])[0]
            inputs = [
                dequantized(f'{name} weight', levels.numpy().astype(np.int8), scales),
                dequantized(f'{name} bias', (bias / fine).round().numpy().astype(np.int32), fine)]
        return node('Conv', [x, *inputs], output, kernel_shape=list(weight.shape[2:]),
                    strides=convolution.stride, pads=2 * convolution.padding)

    def rounded(name: str, values: Range) -> str:
        scale, zero = _affine(values)
        place = [constant(f'{name} scale', np.float32(scale)),
                 constant(f'{name} zero', np.uint8(zero))]
        levels = node('QuantizeLinear', [name, *place], f'{name} levels')
        return node('DequantizeLinear', [levels, *place], f'{name} rounded')

    def pool(size: int, channels: int, x: str, output: str) -> str:
        """Average; in 8 bits as a convolution of each channel, which ONNX Runtime does faster."""
        if ranges is None:
            return node('AveragePool', [x], output, kernel_shape=[size] * 2, strides=[size] * 2)
        levels = np.full((channels, 1, size, size), top, np.int8)
        weight = dequantized(
            f'{output} weight', levels, torch.full((channels,), 1 / (top * size * size)))
        return node('Conv', [x, weight], output, kernel_shape=[size] * 2, strides=[size] * 2,
                    group=channels)

    names, channels = ['images'], [0]
    for i, step in enumerate(steps):
        output = 'features' if i + 1 == len(steps) else f'map {i + 1}'
        given = [names[number] for number in step.inputs]
        raw = f'{output} before ReLU' if step.relu else output
        if step.convolution is not None:
            convolve(i, step.convolution, given[0], raw)
        elif step.pool:
            pool(step.pool, channels[step.inputs[0]], given[0], raw)
        else:
            node('Add', given, raw)
        if step.relu:
            node('Relu', [raw], output)
        channels.append(channels[step.inputs[0]] if step.convolution is None else
                        len(step.convolution.weight))
        names.append(output if ranges is None or output == 'features' else
                     rounded(output, ranges[i + 1]))
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, 'trunk',
        [onnx.helper.make_tensor_value_info('images', floats, ['B', None, 'H', 'W'])],
        [onnx.helper.make_tensor_value_info('features', floats, None)], constants)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', _OPSET)], ir_version=_IR)
    onnx.helper.set_model_props(model, {_CALIBRATION: notes})
    content: bytes = model.SerializeToString()
    return content


class OnnxTrunk(nn.Module):
    """The folded network on ONNX Runtime, for images of every size and number.

    Attributes:
        calibrated_on: what the calibration's images were; '' in float32.

    """

    def __init__(self, content: bytes) -> None:
        """Prepare a model that `write` wrote."""
        super().__init__()
        self._session = _session(content)
        notes = self._session.get_modelmeta().custom_metadata_map
        self.calibrated_on = str(notes.get(_CALIBRATION, ''))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 32, W / 32), in float32."""
        features, = self._session.run(None, {'images': images.contiguous().numpy()})
        return torch.from_numpy(features)


def _session(content: bytes) -> Any:
    import onnxruntime  # type: ignore[import-untyped]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads would burn cores that others need: torch's for the rest of an image, too.
    settings.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(content, settings, providers=['CPUExecutionProvider'])


def require() -> None:
    """Raise an error that names the extra, where a library is missing.

    Raises:
        EngineError: it is.

    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise EngineError(
            f'precision: int8 needs ONNX Runtime and onnx ({error}): pip install onnxruntime onnx'
        ) from error


@functools.cache
def greatest_weight() -> int:
    """127, or 63 where the processor's sums of products of 8 bits overflow: found by trying.

    Without VNNI, x86-64 adds two products in 16 bits, and cuts off what is beyond.
    """
    channels = 64

    def convolution(size: int) -> Convolution:
        weight = torch.full((channels, channels, size, size), 1 / (channels * size * size))
        return Convolution(weight, torch.zeros(channels), 1, size // 2)

    steps = [Step((i,), convolution(size), relu=True) for i, size in enumerate((1, 1, 3, 1))]
    ones = torch.ones(1, channels, 16, 16)
    found = OnnxTrunk(write(steps, [(0.0, 1.0)] * 5, 127))(ones)
    return 127 if float(found[..., 8, 8].min()) > 0.9 else 63


def rounding(steps: Sequence[Step], top: int) -> float:
    """Error that rounding to 8 bits explains, as a part of the features' length, and twice that.

    Each step rounds its map to 255 levels, and its weights to `top` of either sign. The largest
    value is about three times the root mean square in both, a level s errs by s / √12, and the
    errors of the steps are independent. Measured: 0.02 to 0.05 for RN50, of which this is 0.17.
    """
    level = 3 / _LEVELS + 3 / top
    return 2 * level / math.sqrt(12) * math.sqrt(len(steps))


def make(network: FoldedResNet, images: Iterable[Tensor], notes: str) -> bytes:
    """Make the network in 8 bits.

    Args:
        network: in float32, on the CPU.
        images: each (1, 3, H, W), normalised.
        notes: what they are, in words.

    Returns:
        An ONNX model, for `OnnxTrunk`.

    Raises:
        EngineError: its features on the last image are further from float32's than rounding
            explains, or not finite.

    """
    steps, top = steps_of(network), greatest_weight()
    images = list(images)
    model = write(*quantize(steps, images, top), top, notes)
    apart = difference(OnnxTrunk(model)(images[-1]), network(images[-1]))
    if not apart <= rounding(steps, top):
        raise EngineError(
            f'precision: int8: the features in 8 bits differ from float32 by {apart:.2g} of '
            f'their length, where rounding explains {rounding(steps, top):.2g}; nothing was kept. '
            'Use float32, and please report it.')
    return model


def path_of(
    folder: Path, weights_digest: str, size: tuple[int, int], normalization: str,
) -> Path:
    """File of a network: its name is a hash of all that changes what it must hold.

    Args:
        folder: the cache.
        weights_digest: SHA-256 of the weights.
        size: (height, width) of the network's input.
        normalization: of the input, as in `DepthConfig`.

    Raises:
        EngineError: ONNX Runtime is missing.

    """
    require()
    key = json.dumps([FORMAT, weights_digest, *size, normalization, greatest_weight()])
    return folder / 'int8' / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}{SUFFIX}'


def load(path: Path) -> OnnxTrunk:
    """Read a network that was made.

    Raises:
        EngineError: it is not there, or cannot be used.

    """
    remedy = ('Make it with `depthclip quantize`, with the same --config and --weights, and '
              '--images FOLDER for pictures of your camera.')
    try:
        return OnnxTrunk(path.read_bytes())
    except FileNotFoundError as error:
        raise EngineError(
            'precision: int8: there is no network in 8 bits for these weights, input size and '
            f'normalisation ({path} is missing). {remedy}') from error
    except Exception as error:  # ONNX Runtime raises types of its own
        raise EngineError(f'precision: int8: {path} cannot be used ({reason(error)}). '
                          f'{remedy}') from error
