# SPDX-License-Identifier: Apache-2.0
"""State dicts of CLIP, from any training program: read as data, unwrapped and checked.

A state dict tells neither the width of the attention heads nor the activation; both are assumed
to be OpenAI's. Its shapes tell the rest (`Architecture`).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from .errors import WeightsError, first_of, quoted, reason
from .file_formats import FileKind, kind_of
from .files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

Log = Callable[[str], None]
TextEncoder = tuple[
    Callable[[list[str]], 'Tensor'], Callable[['Tensor'], 'Tensor'], int]

# Keys under which training programs nest the state dict, the usual ones first.
_WRAPPERS = 'state_dict', 'model_state_dict', 'model', 'net', 'module', 'weights', 'params'
# First convolution of OpenAI's image encoders, whose key shows a prefix of all keys.
_STEM_KEY = 'visual.conv1.weight'
_CLIP_KEY = re.compile(
    r'positional_embedding|text_projection|logit_scale|(token_embedding|ln_final)\.\w+|'
    r'input_resolution|context_length|vocab_size|transformer\.resblocks\..+|visual\.('
    r'class_embedding|positional_embedding|proj|(conv\d|bn\d|ln_pre|ln_post)\..+|'
    r'(transformer\.resblocks|layer\d|attnpool)\..+)')
_TO_OPENAI = ("take OpenAI's own (weights: ViT-B/32, or what its size is), or the repository's "
              'open_clip_model.safetensors with backbone: open_clip:ARCHITECTURE')
# Beginnings of the keys of foreign layouts, and what to do about each.
_FOREIGN_LAYOUTS = (
    (r'(text_model|vision_model|text_projection\.|visual_projection\.)',
     f"they are Hugging Face's names (transformers): {_TO_OPENAI}"),
    (r'visual\.trunk\.|text\.', ("they are open_clip's, of a model that OpenAI has not: "
     'backbone: open_clip:ARCHITECTURE reads them')),
    (r'_?image_encoder\.|_?text_encoder\.', ('they are of MobileCLIP, TinyCLIP or the like: '
     'backbone: open_clip:ARCHITECTURE reads some of these')),
    (r'(prompt_learner\.)?(ctx|token_prefix)$', ('they are learned prompts (CoOp and others), '
     'which are not used here: give the CLIP that they were trained with')),
    (r'(.*\.)?lora_', 'they are an adapter (LoRA): give the CLIP with the adapter merged into it'),
    (r'visual\.|conv1\.|class_embedding$', ('they are an image encoder alone, and words need the '
     'text encoder that was trained with it')),
)


class Architecture(NamedTuple):
    """Shape of a CLIP model.

    `patch` is None for a ResNet, whose `layers` are four numbers; 0 for timm's networks.
    """

    embed_dim: int
    resolution: int
    layers: tuple[int, ...] | int
    width: int
    patch: int | None
    text_width: int


class OpenClipWeights(dict[str, 'Tensor']):
    """State dict of one of open_clip's models, and the properties that tensors do not tell."""

    architecture: Architecture  # width and patch of timm's networks are 0
    normalization: tuple[tuple[float, ...], tuple[float, ...]]  # mean, deviation of RGB in [0, 1]
    image_encoder: Callable[[], Any]  # `backbone.ImageEncoder` of a vision tower but a ResNet
    text_encoder: Callable[[], TextEncoder]


# Files -------------------------------------------------------------------------------------------


def read_data(path: Path, *, is_release: bool = False) -> Any:
    """Read a file of weights as data, by its format and not its suffix.

    Args:
        path: safetensors, or `torch.save` of tensors, numbers and texts.
        is_release: its SHA-256 is that of one of OpenAI's archives. Those are TorchScript, which
            can run code, and are loaded as OpenAI's loader does.

    Raises:
        WeightsError: it is damaged, or of another format, which the message names.

    """
    import torch  # this module must import without torch, for the doctor
    kind = FileKind('', '')
    try:
        # Open files, since torch goes by the suffix, and safetensors by names in UTF-8.
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that TorchScript is deprecated
            kind = kind_of(file)
            if is_release:
                return torch.jit.load(file, 'cpu').state_dict()  # type: ignore[no-untyped-call]
            if kind.name == 'safetensors':
                from safetensors.torch import load_file
                # The open file under a name that is UTF-8; it is mapped, not read as a whole.
                mapped = Path(f'/proc/self/fd/{file.fileno()}')
                return load_file(mapped if mapped.exists() else path)
            if kind.name == 'torch':
                _check_archive(file, path)
            elif kind.name != 'pickle':
                raise WeightsError(f'{path}: is no file of weights but {kind.sentence}.')
            with _safe_globals():
                return torch.load(file, map_location='cpu', weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # what a damaged file makes torch, pickle and zipfile raise
        raise WeightsError(f'{path}: {_unreadable_reason(error, kind)}.') from error


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Verify the checksums in an archive, which `torch.load` skips, and bound its size."""
    with zipfile.ZipFile(file) as archive:
        size, total = path.stat().st_size, sum(record.file_size for record in archive.infolist())
        if total > max(2 * size, 1 << 30):
            raise WeightsError(f'{path}: would unpack to {total:,} bytes, of {size:,}: torch.save '
                               'does not pack, so another program made it. Give the original.')
        damaged = archive.testzip()
    if damaged is not None:
        raise WeightsError(f'{path}: is damaged: the checksum of {damaged} in it is wrong. Copy '
                           'or download it again.')
    file.seek(0)


def _safe_globals() -> Any:
    """Allow `torch.load` the harmless types in checkpoints: NumPy scalars and options."""
    import numpy as np
    import torch
    if not hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):  # before 2.6
        return contextlib.nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    kinds: list[Any] = [type(np.dtype(kind)) for kind in ('f2', 'f4', 'f8', 'i4', 'i8', 'u1', '?')]
    kinds += [argparse.Namespace, PosixPath]
    kinds += [(scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]
    return torch.serialization.safe_globals([np.dtype, *kinds])


def _unreadable_reason(error: Exception, kind: FileKind) -> str:
    """Explain an exception of torch or safetensors, without its advice to programmers."""
    match = re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', str(error))
    name = match[1] if match else ''
    if name.startswith('numpy'):
        return ('holds arrays of NumPy: where you trust it, save tensors: torch.save({name: '
                'torch.from_numpy(array) for name, array in …}, OTHER)')
    if name:
        return (f'asks for {name}, which is a program and no tensor: where you trust it, load it '
                'with what wrote it, and torch.save(model.state_dict(), OTHER)')
    return (f'is {kind.sentence or "a file"}, and cannot be read as CLIP weights: truncated, '
            f'corrupt, or more than tensors ({type(error).__name__}). Get it anew, or where you '
            'trust it save its tensors with torch.save(model.state_dict(), PATH)')


# Contents ----------------------------------------------------------------------------------------


def tensors_of(loaded: Any, source: str, log: Log, stem_key: str = _STEM_KEY) -> dict[str, Tensor]:
    """Find the state dict of one model in the content of a file.

    Removes the wrappers of training programs, and the prefix that all keys share.

    Args:
        loaded: content of the file, as `read_data` returns it.
        source: name of the file, for errors.
        log: gets the names of what is left out.
        stem_key: a key of the model, without the prefix.

    Raises:
        WeightsError: the file holds no state dict, or several.

    """
    import torch
    for _ in range(3):  # a wrapper in a wrapper in a wrapper
        inner = [name for name in _WRAPPERS if isinstance(loaded, Mapping)
                 and isinstance(loaded.get(name), Mapping)]
        if not inner:
            break
        log_left_out([name for name, value in loaded.items() if name != inner[0]
                      and isinstance(value, Mapping) and stem_key in ' '.join(map(str, value))],
                     source, log)
        loaded = loaded[inner[0]]
    if not isinstance(loaded, Mapping):
        content = f'one tensor of {tuple(loaded.shape)}' if isinstance(loaded, torch.Tensor) else \
            f'{type(loaded).__name__}'
        raise WeightsError(f'{source}: holds {content}, no state dict (tensors by their names); '
                           'save it with torch.save(model.state_dict(), PATH).')
    prefixes = sorted({str(key)[:-len(stem_key)] for key in loaded
                       if str(key) == stem_key or str(key).endswith(f'.{stem_key}')})
    if len(prefixes) > 1 and '' not in prefixes:
        raise WeightsError(f'{source}: holds {len(prefixes)} models, {", ".join(prefixes)}; save '
                           'the tensors of one, without that prefix.')
    prefix = prefixes[0] if prefixes else ''
    if prefix:
        log_left_out([key for key in loaded if not str(key).startswith(prefix)], source, log)
    return {str(key)[len(prefix):]: value for key, value in loaded.items()
            if str(key).startswith(prefix)}


def log_left_out(keys: list[Any], source: str, log: Log) -> None:
    """Log the keys that are no part of the model."""
    if keys:
        log(f'{source}: left out, as no part of the model: {first_of(keys, 5)}.')


def openai_tensors(loaded: Any, source: str, log: Log) -> dict[str, Tensor]:
    """Extract a checked state dict in OpenAI's layout; `log` gets the keys that CLIP lacks.

    WeightsError: the keys are another model's, or the values no weights.
    """
    tensors = tensors_of(loaded, source, log)
    if not {_STEM_KEY, 'ln_final.weight'} <= tensors.keys():
        raise _wrong_layout_error(list(tensors), source)
    log_left_out([key for key in tensors if not _CLIP_KEY.fullmatch(key)], source, log)
    tensors = {key: value for key, value in tensors.items() if _CLIP_KEY.fullmatch(key)}
    check_tensors(tensors, source)
    return {key: value.detach() for key, value in tensors.items()}


def _wrong_layout_error(keys: list[str], source: str) -> WeightsError:
    shards = re.search(r'-\d+-of-0*(\d+)\.', source)
    shard = f' (it is one of {shards[1]} shards, by its name)' if shards else ''
    explanation = next((sentence for pattern, sentence in _FOREIGN_LAYOUTS if any(
        re.match(pattern, key) for key in keys)), 'Give other weights')
    return WeightsError(f"{source}: is not a CLIP model in OpenAI's key layout. Its "
                        f'keys are {first_of(keys) or "none"}{shard}: {explanation}.')


def check_tensors(tensors: Mapping[str, Any], source: str, *, half: bool = True) -> None:
    """Check that every value is a dense, finite tensor of floating point.

    Args:
        tensors: by their names.
        source: name of the file, for errors.
        half: the weights will be rounded to half precision, as OpenAI's loader does.

    Raises:
        WeightsError: a value cannot be a weight.

    """
    import torch
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.numel() == 1 \
                and not tensor.dtype.is_floating_point:
            continue  # a count
        if defect := _defect_of(tensor):
            raise WeightsError(
                f'{source}: {quoted(name)} {defect}, but a state dict has dense tensors of 16, 32 '
                'or 64 bits of floating point by their names; save such with '
                'torch.save(model.state_dict(), PATH).')
        # aminmax passes NaN on and reads memory once: 40 ms for RN50, where isfinite takes 200.
        # torch 2.1 has it for float32 only. OpenAI's loader rounds all but the statistics of batch
        # norm to half. Depth need not show the overflow: a fused ReLU may turn NaN into 0.
        low, high = (float(number) for number in torch.aminmax(tensor.detach().float()))
        highest = torch.finfo(torch.float16 if half and '.running_' not in name else
                              torch.float32).max
        lowest = 0.0 if name.endswith('.running_var') else -highest
        if not (lowest <= low and high <= highest):
            raise WeightsError(
                f'{source}: {quoted(name)} holds NaN or numbers beyond {lowest:.6g} to '
                f'{highest:.6g}, from which no depth can come; the training diverged or the file '
                'is damaged. Give other weights.')


def _defect_of(tensor: Any) -> str:
    """Say why a value is no dense tensor of floating point; '' if it is one."""
    import torch
    if not isinstance(tensor, torch.Tensor):
        return f'is {type(tensor).__name__}'
    if not tensor.numel() or tensor.dtype not in (
            torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f'is {tensor.dtype}'
    if tensor.layout is not torch.strided:
        return 'is sparse (call .to_dense() of it)'
    if tensor.is_meta:
        return 'is on the meta device, and so holds no numbers'
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return 'repeats numbers of its memory (call .clone() of it)'
    return ''


def digest_of(state_dict: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 over names, types, shapes and bytes of contiguous tensors, by name."""
    import torch
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def architecture(state_dict: Mapping[str, Tensor], source: str = 'the state dict') -> Architecture:
    """Infer the architecture of CLIP weights from their shapes; WeightsError if it is none."""
    if isinstance(state_dict, OpenClipWeights):
        return state_dict.architecture

    def count(prefix: str) -> int:
        part = prefix.count('.')
        return len({key.split('.')[part] for key in state_dict if key.startswith(prefix)})

    layers: tuple[int, ...] | int
    patch: int | None
    try:
        if 'visual.proj' in state_dict or 'visual.class_embedding' in state_dict:
            width, _, _, patch = state_dict[_STEM_KEY].shape
            layers, stride = count('visual.transformer.resblocks.'), patch
            positions = state_dict['visual.positional_embedding'].shape[0]
        else:
            width, patch, stride = state_dict['visual.layer1.0.conv1.weight'].shape[0], None, 32
            layers = tuple(count(f'visual.layer{i}.') for i in (1, 2, 3, 4))
            positions = state_dict['visual.attnpool.positional_embedding'].shape[0]
        return Architecture(
            state_dict['text_projection'].shape[1], stride * round((positions - 1) ** 0.5),
            layers, width, patch, state_dict['ln_final.weight'].shape[0])
    except (LookupError, ValueError) as error:
        raise WeightsError(f"{source}: is not a CLIP model in OpenAI's key layout "
                           f'({reason(error)}). Give other weights.') from error
