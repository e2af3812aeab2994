# SPDX-License-Identifier: Apache-2.0
"""Which processor, which number format on it, and how the trunk of an image encoder runs there.

    oneDNN          a ResNet on a CPU: oneDNN's fused convolutions (`resnet`)
    CUDA graph      everything on a GPU, in plain operations of torch
    torch           the same without the graph; a vision transformer on a CPU
    ONNX Runtime    a ResNet in 8 bits on a CPU, from a file (`int8`)

Whether something works here is found out by trying, at the real size; where it breaks, the next
one runs, and the log says so. That each gives the features of CLIP's own modules is shown by tests
and `depthclip doctor`.
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
from .resnet import Convolution, FoldedResNet, OneDnnConvolution, fused

# Largest ||features - reference|| / ||reference|| that passes for rounding, for `doctor` and the
# tests. Measured: 1e-6 in float32, 0.001 in float16, 0.006 in bfloat16.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
_LOGGER = logging.getLogger(__name__)
# What torch itself chose, while it is overridden.
_own_threads: int | None = None
# What the process has chosen of its GPUs' arithmetic, and how many threads override it now.
_process_choice: list[tuple[Any, str, Any]] = []
_exact_users, _exact_lock = 0, threading.Lock()


def resolve_device(name: str, log: Callable[[str], None] = _LOGGER.info) -> torch.device:
    """Turn auto, cpu, cuda or cuda:N into a device that computes, or raise DeviceError.

    A GPU that torch counts need not compute: its build may be without kernels for that one. Then
    auto is the CPU, and `log` is told.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, index = ('cuda' if name == 'auto' and count else name).partition(':')
    if name in ('cpu', 'auto') and kind != 'cuda':
        return torch.device('cpu')
    if kind != 'cuda' or not (index or '0').isdecimal():
        raise DeviceError(f"device: '{name}' is none of auto, cpu, cuda, cuda:N.")
    device = torch.device('cuda', int(index or 0))
    if device.index >= count:
        why = ('this torch is a CPU-only build; install a CUDA build'
               if not torch.backends.cuda.is_built() else  # type: ignore[no-untyped-call]
               f'torch {torch.__version__} sees {count} GPUs; check the driver with nvidia-smi')
        raise DeviceError(f"device: '{name}', but {why}, or use device: auto.")
    try:
        torch.ones(1, device=device).add_(1).item()
    except Exception as error:
        if is_short_of_memory(error):  # it computes, and there may be room again
            return device
        why = (f'{device} does not compute with torch {torch.__version__}, built for CUDA '
               f'{torch.version.cuda} ({reason(error)}): install a torch that is built for this '
               'GPU and its driver')
        if name != 'auto':
            raise DeviceError(f"device: '{name}', but {why}, or use device: cpu.") from error
        log(f'WARNING: device: auto: {why}. The CPU computes instead, which is slower.')
        return torch.device('cpu')
    return device


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Compute on a device as it is meant here, whatever the process around it has chosen.

    A GPU is the current one, so that nothing is allocated on another, and multiplies float32
    without TF32, which rounds factors to 10 bits. Nothing is autocast: eq. 3 is float32. Tensors
    are on the CPU where no device is named. What the process had chosen counts again afterwards.
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
    """Let this process's GPUs multiply float32 without TF32 meanwhile.

    What the process had chosen counts again when the last of several threads is done.
    """
    global _process_choice, _exact_users  # noqa: PLW0603 (torch has it for the process, too)
    with _exact_lock:
        if not _exact_users:
            _process_choice = _choose_exact_float32()
        _exact_users += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_users -= 1
            for backend, name, value in () if _exact_users else _process_choice:
                setattr(backend, name, value)


def _choose_exact_float32() -> list[tuple[Any, str, Any]]:
    """Choose it for the process; gives what was chosen: backend, name of the setting, value."""
    cudnn: Any = torch.backends.cudnn  # not all of it is typed
    matmul = torch.backends.cuda.matmul
    settings: list[tuple[Any, str, Any]] = [
        (cudnn, 'allow_tf32', False), (matmul, 'allow_tf32', False)]
    try:
        before = [(backend, name, getattr(backend, name)) for backend, name, _ in settings]
    except RuntimeError:  # the process has taken the newer interface: beside it the older raises
        settings = [(cudnn.conv, 'fp32_precision', 'ieee'), (matmul, 'fp32_precision', 'ieee')]
        before = [(backend, name, getattr(backend, name)) for backend, name, _ in settings]
    before.append((cudnn, 'benchmark', cudnn.benchmark))
    for backend, name, value in (*settings, (cudnn, 'benchmark', True)):
        setattr(backend, name, value)
    return before


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a GPU, without waiting for that."""
    return tensor.pin_memory().to(device, non_blocking=True)


def download(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Copy tensors to the host, and wait for the GPU once, where they are on one."""
    copies = tuple(None if tensor is None else tensor.to('cpu', non_blocking=True)
                   for tensor in tensors)
    devices = {tensor.device for tensor in tensors if tensor is not None and tensor.is_cuda}
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return copies


def use_threads(count: int) -> None:
    """Let torch use so many CPU threads, in the whole process; 0: as many as it chose itself."""
    global _own_threads  # noqa: PLW0603 (torch has it for the process, too)
    own = _own_threads or torch.get_num_threads()
    if count or _own_threads:
        torch.set_num_threads(count or own)
    _own_threads = own if count else None


@contextmanager
def one_thread() -> Iterator[None]:
    """For what must have the same bits whatever the number of threads; not beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def release_freed_memory() -> None:
    """Give what glibc keeps of freed memory back to the system: after loading it is 450 MB."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


def resolve_precision(
    name: str, device: torch.device, log: Callable[[str], None] = _LOGGER.info,
) -> torch.dtype:
    """Number format of the backbone; auto is float32 on a CPU and float16 on CUDA.

    A processor without instructions for a format runs float32 in its place, which is 8 to 21 times
    as fast on a CPU, and `log` is told. That depends on the processor alone, so that a machine's
    numbers stay the same. ConfigError for float16 on a CPU, and for int8 on a GPU.
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
    """Whether a GPU computes in a format: before Volta few do in float16, since Ampere in both."""
    capability = torch.cuda.get_device_capability(device)
    return capability >= (7 + (name == 'bfloat16'), 0) or (
        name == 'float16' and capability in ((5, 3), (6, 0), (6, 2)))


def cpu_is_intel() -> bool:
    """Whether this processor is Intel's; False where the system does not tell."""
    path = Path('/proc/cpuinfo')
    return path.exists() and 'GenuineIntel' in path.read_text(encoding='utf-8')


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; `depthclip doctor` tells their worth.

    On x86-64 oneDNN would do it without them, slowly; elsewhere it refuses.
    """
    check = '_is_avx512_bf16_supported'
    if platform.machine().lower() in ('x86_64', 'amd64') and hasattr(torch.cpu, check):
        return cpu_has_amx() or bool(getattr(torch.cpu, check)())
    return can_fuse(torch.bfloat16)


def cpu_has_amx() -> bool:
    """Whether this processor multiplies matrices of bfloat16; False where torch cannot tell."""
    return bool(getattr(torch.cpu, '_is_amx_tile_supported', lambda: False)())


@functools.cache
def can_fuse(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused convolutions are here in a number format: by trying one."""
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
    """Let an encoder's trunk run as fast as it can, on a device and in a number format.

    A known image of `size` (height, width) goes through it, as many times at once as images
    usually do. The encoder's trunk is replaced; its head stays in float32. `log` is told what does
    not run here; `source` of the weights is for errors.

    Returns:
        What runs it, as above. EngineError if nothing does; see also `check_finite`.

    """
    encoder.to(device)
    encoder.dtype = dtype
    trunk = encoder.trunk.to(device, dtype)
    for module in trunk.modules():
        if dtype != torch.float32 and isinstance(module, nn.LayerNorm):  # exact, as OpenAI's own
            module.float()
            module.register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))
            module.register_forward_hook(lambda _, __, y: y.to(dtype))
    ways: list[tuple[str, Callable[[], nn.Module]]] = [('torch', lambda: trunk)]
    if device.type == 'cuda':
        example = known_image(size).to(device, dtype)
        ways.insert(0, ('CUDA graph', lambda: GraphedTrunk(trunk, example, images)))
    elif isinstance(trunk, FoldedResNet):
        # More images at once push each other's maps out of the caches: 2 to 7 % slower. But with
        # AMX the calls' fixed cost counts, and a pair is 7 to 9 % faster.
        fast = dtype == torch.bfloat16 and cpu_has_amx()
        ways.insert(0, ('oneDNN', lambda: InParts(fused(trunk, size), 1 + fast)))
    for i, (name, build) in enumerate(ways):
        try:
            encoder.trunk = build()
            features = try_known_image(encoder, size, device, images)
            break
        except Exception as error:
            if i + 1 == len(ways):
                raise EngineError(f'the network does not run on {device} in {str(dtype)[6:]} '
                                  f'({reason(error)}).') from error
            log(f'WARNING: {name} does not run the network in {str(dtype)[6:]} here '
                f'({reason(error)}); going on with {ways[i + 1][0]}, which is slower.')
    check_finite(features, dtype, source)
    return name


def known_image(size: tuple[int, int]) -> Tensor:
    """(1, 3, height, width): a fixed normalised image of smooth blobs and noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 6, 8, generator=generator, dtype=torch.float32)
    blobs = nn.functional.interpolate(coarse, size, mode='bilinear')
    return blobs + 0.2 * torch.randn(
        1, 3, *size, generator=generator, dtype=torch.float32)


@torch.inference_mode()
def try_known_image(
    encoder: ImageEncoder, size: tuple[int, int], device: torch.device, images: int = 1,
) -> Tensor:
    """Features of a known image on a device: (images, C, height / stride, width / stride)."""
    features: Tensor = encoder(known_image(size).to(device).expand(images, -1, -1, -1))
    return features


def check_finite(features: Tensor, dtype: torch.dtype, source: str) -> None:
    """Refuse features of a known image that are not finite: WeightsError, else EngineError."""
    share = 1 - float(features.isfinite().float().mean())
    if share:
        raise (WeightsError if dtype == torch.float32 else EngineError)(
            f'{source}: with these weights {share:.2%} of the features of a known image are NaN '
            f'or infinite in {str(dtype)[6:]}, and so would be the depth. Use precision: float32; '
            'if that fails, too, the weights are damaged: give others.')


def difference(features: Tensor, reference: Tensor) -> float:
    """How far features are from the reference's, as a part of their length."""
    features, reference = features.cpu().float(), reference.cpu().float()
    return float((features - reference).norm() / reference.norm().clamp_min(1e-12))


class InParts(nn.Module):
    """A trunk that takes a batch so many images at a time."""

    def __init__(self, trunk: nn.Module, count: int) -> None:
        super().__init__()
        self.trunk, self.count = trunk, count

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride)."""
        return torch.cat([self.trunk(part) for part in torch.split(images, self.count)])


class GraphedTrunk(nn.Module):
    """A trunk on a GPU, captured as a CUDA graph for those numbers of images that are asked for.

    Others run without. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Tests
    give something that stands in for `torch.cuda`.
    """

    _capturing = threading.Lock()  # CUDA takes one capture at a time of a process

    def __init__(
        self, trunk: nn.Module, example: Tensor, images: int = 1, cuda: Any = torch.cuda,
    ) -> None:
        """Capture batches of so many images of the example's size.

        `example` is (1, 3, H, W), on the trunk's device and in its number format.

        Raises:
            EngineError: what is replayed is not what the trunk gives.

        """
        super().__init__()
        self._trunk, self._example, self._cuda = trunk, example, cuda
        # Of its own, on its device: torch's stream for captures belongs to the GPU that was the
        # first, and a graph that is captured on another GPU's is empty.
        self._stream = cuda.Stream(example.device)
        self._done = cuda.Event()  # of the last replay, whose input and output are at fixed places
        self._pool: Any = None  # of memory, which all graphs share: one is replayed at a time
        self._graphs: dict[torch.Size, tuple[Any, Tensor, Tensor]] = {}
        self._busy = threading.Lock()
        self.capture(images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride), in memory of the caller's own."""
        if images.shape not in self._graphs:
            features: Tensor = self._trunk(images)
            return features
        with self._busy:  # which orders threads; the event orders their streams
            graph, given, features = self._graphs[images.shape]
            stream = self._cuda.current_stream(self._example.device)
            stream.wait_event(self._done)
            given.copy_(images)
            graph.replay()
            features = features.clone()
            self._done.record(stream)
            return features

    @torch.inference_mode()
    def capture(self, count: int) -> None:
        """Prepare for batches of so many images; whatever it raises, they run without.

        Raises:
            EngineError: what is replayed is not what the trunk gives.

        """
        cuda, stream, shape = self._cuda, self._stream, (count, *self._example.shape[1:])
        if torch.Size(shape) in self._graphs:
            return
        with self._capturing, self._busy:
            given = torch.empty(shape, dtype=self._example.dtype, device=self._example.device,
                                memory_format=torch.channels_last)
            given.copy_(self._example.expand(shape))
            stream.wait_stream(cuda.current_stream(self._example.device))
            with cuda.stream(stream):
                for _ in range(3):  # libraries choose their algorithms and allocate
                    self._trunk(given)
            graph = cuda.CUDAGraph()
            # Other threads may ask CUDA for something meanwhile, such as its memory's size.
            with cuda.graph(graph, pool=self._pool, stream=stream,
                            capture_error_mode='thread_local'):
                features: Tensor = self._trunk(given)
            cuda.current_stream(self._example.device).wait_stream(stream)
            self._pool = graph.pool()
            self._graphs[given.shape] = graph, given, features
        # A graph that holds nothing would give the features of the example for ever.
        other = given.flip(3)
        wrong = difference(self(other), self._trunk(other))
        if not wrong <= TOLERANCES[given.dtype]:
            del self._graphs[given.shape]
            raise EngineError(f'the CUDA graph of {count} images gives other features than the '
                              f'network: {wrong:.3g} apart.')
