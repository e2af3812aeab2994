# SPDX-License-Identifier: Apache-2.0
"""CLIP's ResNet in 8 bits on ONNX Runtime: built once into a file, which `precision: int8` reads.

ONNX Runtime quantises statically: weights with a step size for every output channel, maps with
one each, from their ranges over some images. Then the bias of every convolution is corrected so
that each channel's mean equals that of the float32 network (Nagel et al., ICCV 2019, §4.2), which
more than halves the error of depth. The first convolution and the last sum stay in float32.
docs/notes/performance.md has what did not help.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import hashlib
import json
import operator
import platform
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .engine import relative_error
from .errors import EngineError, reason

_FORMAT = 4
_BIAS_IMAGES = 8  # images over which the means of channels are corrected
# Largest relative error of features that counts as rounding. Measured: 0.02 to 0.05; 255 levels of
# a map and 63 of a weight, in 80 layers, explain half of this.
TOLERANCE = 0.2
_OPSET, _IR = 17, 8  # of ONNX, which every ONNX Runtime since 1.14 reads


def export_onnx(network: nn.Module) -> Any:
    """Export a float32 network of convolutions, sums, ReLUs and averages as an ONNX model."""
    import onnx
    nodes, constants = [], []
    channels: dict[str, int] = {}  # of outputs; rows of weights

    def constant(name: str, values: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(values, name))
        channels[name] = len(values)
        return name

    for step in fx.symbolic_trace(network).graph.nodes:
        inputs = [str(node) for node in step.all_input_nodes]
        width, options = channels.get(inputs[0], 3) if inputs else 0, dict[str, Any]()
        if step.op == 'get_attr':
            constant(step.name, operator.attrgetter(step.target)(network).contiguous().numpy())
        elif step.op == 'call_module':  # an average: as a convolution it is faster in 8 bits
            size: Any = network.get_submodule(step.target).kernel_size
            inputs.append(constant(f'{step}_weight', np.full(
                (width, 1, size, size), size ** -2, np.float32)))
            options = {'strides': [size] * 2, 'group': width}
        elif step.op == 'call_function':
            width = channels[inputs[1]]
            options = {'strides': step.args[3], 'pads': 2 * step.args[4]}
        if step.op.startswith('call'):
            kind = {'add_': 'Add', 'relu_': 'Relu'}.get(step.target, 'Conv')
            channels[step.name] = width
            nodes.append(onnx.helper.make_node(kind, inputs, [step.name], step.name, **options))
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, 'trunk', [onnx.helper.make_tensor_value_info('x', floats, ['B', 3, 'H', 'W'])],
        [onnx.helper.make_tensor_value_info(nodes[-1].output[0], floats, None)], constants)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', _OPSET)], ir_version=_IR)
    # Marks it as simplified, which ONNX Runtime recommends otherwise.
    model.metadata_props.add(key='onnx.quant.pre_process', value='onnxruntime.quant')
    return model


def quantize(network: nn.Module, images: Sequence[Tensor]) -> Any:
    """Quantise a float32 network to an ONNX model, by its ranges on (1, 3, H, W) images."""
    import onnx
    from onnxruntime import quantization  # type: ignore[import-untyped]

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        iterator = iter(images)

        def get_next(self) -> Any:
            return next(({'x': image.contiguous().numpy()} for image in self.iterator), None)

    exact = export_onnx(network)
    with TemporaryDirectory() as folder:
        paths = [f'{folder}/{name}.onnx' for name in ('float32', 'int8')]
        onnx.save(exact, paths[0])
        quantization.quantize_static(
            *paths, Images(), quantization.QuantFormat.QDQ, per_channel=True,
            reduce_range=not has_vnni(), activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[exact.graph.node[0].name, exact.graph.node[-2].name])
        return onnx.load(paths[1])


class BiasCorrection(fx.Interpreter):
    """Interpreter of a float32 network that corrects the biases of its quantised ONNX model.

    It runs the same images twice: in float32, then with `rounds`, rounding as the model does.
    """

    def __init__(self, network: nn.Module, model: Any) -> None:
        super().__init__(fx.symbolic_trace(network))
        self.rounds = False
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._means: dict[str, Tensor] = {}  # of channels in float32, by the name of the bias

    def _array(self, name: str) -> Tensor:
        import onnx
        return torch.from_numpy(onnx.numpy_helper.to_array(self._tensors[name]).copy())

    def run_node(self, n: fx.Node) -> Any:
        """Run a layer, correct its bias, and round its output."""
        import onnx
        y = super().run_node(n)
        if n.op == 'call_function':
            mean, bias = y.mean((0, 2, 3)), f'{n.args[2]}_quantized'
            shift = self._means.setdefault(bias, mean) - mean
            y.add_(shift[:, None, None])
            if bias in self._tensors:
                levels = self._array(bias) + (shift / self._array(f'{bias}_scale')).round().int()
                self._tensors[bias].CopyFrom(onnx.numpy_helper.from_array(levels.numpy(), bias))
        if not self.rounds or f'{n}_scale' not in self._tensors:
            return y
        step_size, zero_point = self._array(f'{n}_scale'), self._array(f'{n}_zero_point').int()
        if n.op == 'get_attr':
            return torch.fake_quantize_per_channel_affine(y, step_size, zero_point, 0, -128, 127)
        return torch.fake_quantize_per_tensor_affine(y, step_size, zero_point, 0, 255)


def correct_biases(network: nn.Module, model: Any, images: Tensor) -> bytes:
    """Serialise a quantised model, with biases that restore float32's means of channels."""
    interpreter = BiasCorrection(network, model)
    for interpreter.rounds in (False, True):
        interpreter.run(images)
    content: bytes = model.SerializeToString()
    return content


class OnnxTrunk(nn.Module):
    """An ONNX model on ONNX Runtime, for batches and images of any size."""

    def __init__(self, content: bytes) -> None:
        import onnxruntime  # type: ignore[import-untyped]
        super().__init__()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        # Spinning threads would occupy cores that torch's threads need for the rest of an image.
        settings.add_session_config_entry('session.intra_op.allow_spinning', '0')
        self._session = onnxruntime.InferenceSession(
            content, settings, providers=['CPUExecutionProvider'])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 32, W / 32), in float32."""
        features, = self._session.run(None, {'x': images.contiguous().numpy()})
        return torch.from_numpy(features)


def has_vnni() -> bool:
    """Tell whether sums of 8-bit products do not saturate; otherwise weights get 7 bits.

    Without VNNI, x86-64 adds two products in 16 bits, with saturation.
    """
    if platform.machine().lower() not in ('x86_64', 'amd64'):
        return True
    return bool(getattr(torch.cpu, '_is_vnni_supported', lambda: False)())


def build(network: nn.Module, images: Sequence[Tensor]) -> bytes:
    """Build the model for `OnnxTrunk` from a float32 `FoldedResNet` and (1, 3, H, W) images.

    EngineError: the relative error of its features on the last image exceeds `TOLERANCE`.
    """
    model = correct_biases(network, quantize(network, images), torch.cat([*images[:_BIAS_IMAGES]]))
    error = relative_error(OnnxTrunk(model)(images[-1]), network(images[-1]))
    if not error <= TOLERANCE:
        raise EngineError(
            f'precision: int8: the features in 8 bits differ from float32 by {error:.2g} of '
            f'their length, where rounding explains {TOLERANCE}; nothing was kept. Use float32, '
            'and please report it.')
    return model


def cache_path(
    folder: Path, weights_digest: str, size: tuple[int, int], normalization: str,
) -> Path:
    """Path in the cache, by a hash of all that the model depends on.

    `size` is (height, width) of the network's input. EngineError without ONNX Runtime.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise EngineError(f'precision: int8 needs ONNX Runtime and onnx ({error}): '
                          'pip install onnxruntime onnx') from error
    key = json.dumps([_FORMAT, weights_digest, *size, normalization, has_vnni()])
    return folder / 'int8' / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.onnx'


def load(path: Path) -> OnnxTrunk:
    """Read a model that `build` made; EngineError if it is missing or unusable."""
    try:
        return OnnxTrunk(path.read_bytes())
    except Exception as error:  # ONNX Runtime raises types of its own
        cause = 'is missing' if isinstance(error, FileNotFoundError) else \
            f'cannot be used ({reason(error)})'
        raise EngineError(
            'precision: int8: the network in 8 bits for these weights, input size and '
            f'normalisation, {path}, {cause}. Make it with `depthclip quantize`, with the same '
            '--config and --weights, and --images FOLDER for pictures of your camera.') from error
