# SPDX-License-Identifier: Apache-2.0
"""Device, number format, and the runtime (engine) of an image encoder's trunk.

    oneDNN          a ResNet on a CPU: oneDNN's fused convolutions (`resnet`)
    CUDA graph      everything on a GPU, in plain operations of torch
    torch           the same without the graph; a vision transformer on a CPU
    ONNX Runtime    a ResNet in 8 bits on a CPU, from a file (`int8`)

Each engine is tried at the real size; if it fails, the next one runs, and the log tells so. Tests
and `depthclip doctor` compare the features of each with those of CLIP's own modules.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import ImageEncoder
from .errors import (
    ConfigError,
    DeviceError,
    EngineError,
    WeightsError,
    is_short_of_memory,
    reason,
)
from .resnet import Convolution, FoldedResNet, OneDnnConvolution, fuse_convolutions

# Largest ||features - reference|| / ||reference|| that counts as rounding. Measured: 1e-6 in
# float32, 0.001 in float16, 0.006 in bfloat16.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
_LOGGER = logging.getLogger(__name__)
# Number of threads that torch chose, while it is overridden.
_default_threads: int | None = None
# The process's settings of GPU arithmetic, and how many threads override them now.
_process_settings: list[tuple[Any, str, Any]] = []
_exact_count, _exact_lock = 0, threading.Lock()


def resolve_device(name: str, log: Callable[[str], None] = _LOGGER.info) -> torch.device:
    """Resolve auto, cpu, cuda or cuda:N to a device that computes, or raise DeviceError.

    This build of torch may lack kernels for a GPU that it counts. Then auto is the CPU, and `log`
    gets a warning.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, index = ('cuda' if name == 'auto' and count else name).partition(':')
    if name in ('cpu', 'auto') and kind != 'cuda':
        return torch.device('cpu')
    if kind != 'cuda' or not (index or '0').isdecimal():
        raise DeviceError(f"device: '{name}' is none of auto, cpu, cuda, cuda:N.")
    device = torch.device('cuda', int(index or 0))
    if device.index >= count:
        cause = ('this torch is a CPU-only build; install a CUDA build'
               if not torch.backends.cuda.is_built() else  # type: ignore[no-untyped-call]
               f'torch {torch.__version__} sees {count} GPUs; check the driver with nvidia-smi')
        raise DeviceError(f"device: '{name}', but {cause}, or use device: auto.")
    try:
        torch.ones(1, device=device).add_(1).item()
    except Exception as error:
        if is_short_of_memory(error):  # it computes, and memory may be free later
            return device
        cause = (f'{device} does not compute with torch {torch.__version__}, built for CUDA '
               f'{torch.version.cuda} ({reason(error)}): install a torch that is built for this '
               'GPU and its driver')
        if name != 'auto':
            raise DeviceError(f"device: '{name}', but {cause}, or use device: cpu.") from error
        log(f'WARNING: device: auto: {cause}. The CPU computes instead, which is slower.')
        return torch.device('cpu')
    return device


@contextmanager
def compute_on(device: torch.device) -> Iterator[None]:
    """Compute on a device, independently of the process's global settings of torch.

    A GPU is the current device, so that nothing is allocated on another, and multiplies float32
    without TF32, which rounds factors to 10 bits. Autocast is off, since eq. 3 is float32. The
    default device is the CPU. Afterwards the process's settings apply again.
    """
    default = getattr(torch, 'get_default_device', lambda: None)()  # since torch 2.3
    with nullcontext() if default == torch.device('cpu') else torch.device('cpu'), \
            torch.autocast('cpu', enabled=False):
        if device.type != 'cuda':
            yield
            return
        with torch.autocast('cuda', enabled=False), torch.cuda.device(device), exact_float32():
            yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let the GPUs of this process multiply float32 without TF32 meanwhile.

    The process's settings apply again when the last of several threads leaves.
    """
    global _process_settings, _exact_count  # noqa: PLW0603 (torch has it for the process, too)
    with _exact_lock:
        if not _exact_count:
            _process_settings = _set_exact_float32()
        _exact_count += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_count -= 1
            for backend, name, value in () if _exact_count else _process_settings:
                setattr(backend, name, value)


def _set_exact_float32() -> list[tuple[Any, str, Any]]:
    """Turn TF32 off and cudnn.benchmark on; return the settings before: backend, name, value."""
    cudnn: Any = torch.backends.cudnn  # not all of it is typed
    matmul = torch.backends.cuda.matmul
    settings: list[tuple[Any, str, Any]] = [
        (cudnn, 'allow_tf32', False), (matmul, 'allow_tf32', False)]
    try:
        previous = [(backend, name, getattr(backend, name)) for backend, name, _ in settings]
    except RuntimeError:  # the process uses the newer interface, beside which the older raises
        settings = [(cudnn.conv, 'fp32_precision', 'ieee'), (matmul, 'fp32_precision', 'ieee')]
        previous = [(backend, name, getattr(backend, name)) for backend, name, _ in settings]
    previous.append((cudnn, 'benchmark', cudnn.benchmark))
    for backend, name, value in (*settings, (cudnn, 'benchmark', True)):
        setattr(backend, name, value)
    return previous


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to a GPU asynchronously."""
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Copy tensors to the host, with one synchronisation if they are on a GPU."""
    copies = tuple(None if tensor is None else tensor.to('cpu', non_blocking=True)
                   for tensor in tensors)
    devices = {tensor.device for tensor in tensors if tensor is not None and tensor.is_cuda}
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return copies


def use_threads(count: int) -> None:
    """Set torch's number of CPU threads for the whole process; 0: torch's default."""
    global _default_threads  # noqa: PLW0603 (torch has it for the process, too)
    default = _default_threads or torch.get_num_threads()
    if count or _default_threads:
        torch.set_num_threads(count or default)
    _default_threads = default if count else None


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute with one thread, for reproducible bits; a setting of the whole process."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def release_freed_memory() -> None:
    """Return the freed memory that glibc retains to the system: 450 MB after loading."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


def resolve_precision(
    name: str, device: torch.device, log: Callable[[str], None] = _LOGGER.info,
) -> torch.dtype:
    """Resolve the number format of the backbone; auto is float32 on a CPU and float16 on CUDA.

    A processor without instructions for a format runs float32 instead, which is 8 to 21 times as
    fast on a CPU, and `log` gets a warning. This depends on the processor alone, so that results
    on a machine are reproducible. ConfigError for float16 on a CPU, and for int8 on a GPU.
    """
    if name == 'auto':
        name = 'float16' if device.type == 'cuda' and _gpu_has(device, 'float16') else 'float32'
    if name == ('float16' if device.type == 'cpu' else 'int8'):
        raise ConfigError(f'precision: {name}, but the device is {device}: float16 is for GPUs, '
                          'int8 for CPUs; use auto, bfloat16 or another device.')
    if name in ('float16', 'bfloat16'):
        if not (cpu_has_bfloat16() if device.type == 'cpu' else _gpu_has(device, name)):
            log(f'WARNING: precision: {name}, but this processor has no arithmetic for it (such '
                'as AVX-512 BF16 or AMX, or a newer GPU): float32 runs instead, which is faster '
                'here, and more exact.')
            name = 'float32'
        elif device.type == 'cpu' and cpu_is_intel() and not cpu_has_amx():
            log("WARNING: precision: bfloat16 takes longer than float32 on Intel's processors "
                'without AMX (twice the time where it was measured). `depthclip doctor` measures '
                'this one; use float32.')
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _gpu_has(device: torch.device, name: str) -> bool:
    """Tell whether a GPU computes in float16 (Volta, and a few older) or bfloat16 (Ampere)."""
    capability = torch.cuda.get_device_capability(device)
    return capability >= (7 + (name == 'bfloat16'), 0) or (
        name == 'float16' and capability in ((5, 3), (6, 0), (6, 2)))


def cpu_is_intel() -> bool:
    """Tell whether this processor is Intel's; False if the system does not tell."""
    path = Path('/proc/cpuinfo')
    return path.exists() and 'GenuineIntel' in path.read_text(encoding='utf-8')


def cpu_has_bfloat16() -> bool:
    """Tell whether this processor has instructions for bfloat16; `depthclip doctor` times them.

    Without them, oneDNN emulates bfloat16 slowly on x86-64, and refuses it elsewhere.
    """
    check = '_is_avx512_bf16_supported'
    if platform.machine().lower() in ('x86_64', 'amd64') and hasattr(torch.cpu, check):
        return cpu_has_amx() or bool(getattr(torch.cpu, check)())
    return can_fuse(torch.bfloat16)


def cpu_has_amx() -> bool:
    """Tell whether this processor has AMX, for matrices in bfloat16; False if torch cannot."""
    return bool(getattr(torch.cpu, '_is_amx_tile_supported', lambda: False)())


@functools.cache
def can_fuse(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN's fused convolutions run in a number format, by running one."""
    try:
        weight = torch.zeros(8, 8, 1, 1, dtype=dtype)
        convolution = OneDnnConvolution(Convolution(weight, weight[0, :, 0, 0]), (4, 4))
        images = torch.zeros(1, 8, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            convolution(convolution(images), images)
    except (RuntimeError, AttributeError):
        return False
    return True


def install(
    encoder: ImageEncoder, dtype: torch.dtype, device: torch.device, size: tuple[int, int],
    log: Callable[[str], None], source: str = 'the state dict', images: int = 1,
) -> str:
    """Replace an encoder's trunk by the fastest engine that runs it, and return its name.

    The head stays in float32. Each engine is tried with a batch of `images` known images of
    `size` (height, width). `log` gets the engines that fail; `source` names the weights in errors.
    EngineError if none runs; see also `check_finite`.
    """
    encoder.to(device)
    encoder.dtype = dtype
    trunk = encoder.trunk.to(device, dtype)
    for module in trunk.modules():
        if dtype != torch.float32 and isinstance(module, nn.LayerNorm):  # exact, as OpenAI's own
            module.float()
            module.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))
            module.register_forward_hook(lambda _, __, y: y.to(dtype))
    builders: list[tuple[str, Callable[[], nn.Module]]] = [('torch', lambda: trunk)]
    if device.type == 'cuda':
        example = probe_image(size).to(device, dtype)
        builders.insert(0, ('CUDA graph', lambda: GraphedTrunk(trunk, example, images)))
    elif isinstance(trunk, FoldedResNet):
        # Several images at once evict each other's maps from the caches: 2 to 7 % slower. With AMX
        # the fixed cost of calls dominates, and a pair is 7 to 9 % faster.
        chunk = 2 if dtype == torch.bfloat16 and cpu_has_amx() else 1
        builders.insert(0, (
            'oneDNN', lambda: ChunkedTrunk(fuse_convolutions(trunk, size), chunk)))
    for i, (name, build) in enumerate(builders):
        try:
            encoder.trunk = build()
            features = encode_probe_image(encoder, size, device, images)
            break
        except Exception as error:
            if i + 1 == len(builders):
                raise EngineError(f'the network does not run on {device} in {str(dtype)[6:]} '
                                  f'({reason(error)}).') from error
            log(f'WARNING: {name} does not run the network in {str(dtype)[6:]} here '
                f'({reason(error)}); going on with {builders[i + 1][0]}, which is slower.')
    check_finite(features, dtype, source)
    return name


def probe_image(size: tuple[int, int]) -> Tensor:
    """Make a fixed normalised image of smooth blobs and noise: (1, 3, height, width)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 6, 8, generator=generator, dtype=torch.float32)
    blobs = nn.functional.interpolate(coarse, size, mode='bilinear')
    return blobs + 0.2 * torch.randn(
        1, 3, *size, generator=generator, dtype=torch.float32)


@torch.inference_mode()
def encode_probe_image(
    encoder: ImageEncoder, size: tuple[int, int], device: torch.device, images: int = 1,
) -> Tensor:
    """Encode a batch of the known image: (images, C, height / stride, width / stride)."""
    features: Tensor = encoder(probe_image(size).to(device).expand(images, -1, -1, -1))
    return features


def check_finite(features: Tensor, dtype: torch.dtype, source: str) -> None:
    """Check that features are finite: WeightsError in float32, EngineError in other formats."""
    fraction = 1 - float(features.isfinite().float().mean())
    if fraction:
        raise (WeightsError if dtype == torch.float32 else EngineError)(
            f'{source}: with these weights {fraction:.2%} of the features of a known image are '
            f'NaN or infinite in {str(dtype)[6:]}, and so would be the depth. Use precision: '
            'float32; if that fails, too, the weights are damaged: give others.')


def relative_error(features: Tensor, reference: Tensor) -> float:
    """Compute the relative error ||features - reference|| / ||reference||."""
    features, reference = features.cpu().float(), reference.cpu().float()
    return float((features - reference).norm() / reference.norm().clamp_min(1e-12))


class ChunkedTrunk(nn.Module):
    """A trunk that splits a batch into chunks of `count` images."""

    def __init__(self, trunk: nn.Module, count: int) -> None:
        super().__init__()
        self.trunk, self.count = trunk, count

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride)."""
        return torch.cat([self.trunk(part) for part in torch.split(images, self.count)])


class GraphedTrunk(nn.Module):
    """A trunk on a GPU, captured as a CUDA graph for some batch sizes; others run eagerly.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Tests replace `torch.cuda`.
    """

    _capture_lock = threading.Lock()  # CUDA allows a process one capture at a time

    def __init__(
        self, trunk: nn.Module, example: Tensor, images: int = 1, cuda: Any = torch.cuda,
    ) -> None:
        """Capture batches of `images` images of the example's size; EngineError as `capture`.

        `example` is (1, 3, H, W), on the trunk's device and in its number format.
        """
        super().__init__()
        self._trunk, self._example, self._cuda = trunk, example, cuda
        # A stream on this device: torch's default stream for captures belongs to the GPU that was
        # current first, and a graph that is captured on another GPU's stream is empty.
        self._stream = cuda.Stream(example.device)
        self._last_replay = cuda.Event()  # its input and outputs are at fixed addresses
        self._pool: Any = None  # of memory, shared by all graphs, which replay one at a time
        self._graphs: dict[torch.Size, tuple[Any, Tensor, Tensor]] = {}
        self._replay_lock = threading.Lock()
        self.capture(images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride), copied out of the graph's memory."""
        if images.shape not in self._graphs:
            outputs: Tensor = self._trunk(images)
            return outputs
        with self._replay_lock:  # orders threads; the event orders their streams
            graph, static_input, outputs = self._graphs[images.shape]
            stream = self._cuda.current_stream(self._example.device)
            stream.wait_event(self._last_replay)
            static_input.copy_(images)
            graph.replay()
            outputs = outputs.clone()
            self._last_replay.record(stream)
            return outputs

    @torch.inference_mode()
    def capture(self, count: int) -> None:
        """Capture batches of `count` images; if it raises, they run eagerly.

        EngineError: a replay gives other features than the trunk.
        """
        cuda, stream, shape = self._cuda, self._stream, (count, *self._example.shape[1:])
        if torch.Size(shape) in self._graphs:
            return
        with self._capture_lock, self._replay_lock:
            static_input = torch.empty(
                shape, dtype=self._example.dtype, device=self._example.device,
                memory_format=torch.channels_last)
            static_input.copy_(self._example.expand(shape))
            stream.wait_stream(cuda.current_stream(self._example.device))
            with cuda.stream(stream):
                for _ in range(3):  # libraries choose their algorithms and allocate
                    self._trunk(static_input)
            graph = cuda.CUDAGraph()
            # thread_local: other threads may call CUDA meanwhile, e.g. for its free memory.
            with cuda.graph(graph, pool=self._pool, stream=stream,
                            capture_error_mode='thread_local'):
                outputs: Tensor = self._trunk(static_input)
            cuda.current_stream(self._example.device).wait_stream(stream)
            self._pool = graph.pool()
            self._graphs[static_input.shape] = graph, static_input, outputs
        # An empty graph would return the features of the example for ever.
        mirrored = static_input.flip(3)
        error = relative_error(self(mirrored), self._trunk(mirrored))
        if not error <= TOLERANCES[static_input.dtype]:
            del self._graphs[static_input.shape]
            raise EngineError(f'the CUDA graph of {count} images gives other features than the '
                              f'network: {error:.3g} apart.')
