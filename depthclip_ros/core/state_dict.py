# SPDX-License-Identifier: Apache-2.0
"""State dicts of CLIP as others save them: read as data, unwrapped, checked, and named where not.

What a state dict cannot say is how wide an attention's heads are and which activation follows: the
architecture that is read off its shapes has OpenAI's (`Architecture`).
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
from .files import open_regular
from .formats import FileKind, kind_of

if TYPE_CHECKING:
    from torch import Tensor

Log = Callable[[str], None]
TextEncoder = tuple[
    Callable[[list[str]], 'Tensor'], Callable[['Tensor'], 'Tensor'], int]

# Where training programs keep the state dict among other things, the usual ones first.
_WRAPPERS = 'state_dict', 'model_state_dict', 'model', 'net', 'module', 'weights', 'params'
# A key of every image encoder of OpenAI's, by which a prefix is known.
_ANCHOR = 'visual.conv1.weight'
_CLIP_KEY = re.compile(
    r'positional_embedding|text_projection|logit_scale|(token_embedding|ln_final)\.\w+|'
    r'input_resolution|context_length|vocab_size|transformer\.resblocks\..+|visual\.('
    r'class_embedding|positional_embedding|proj|(conv\d|bn\d|ln_pre|ln_post)\..+|'
    r'(transformer\.resblocks|layer\d|attnpool)\..+)')
_TO_OPENAI = ("take OpenAI's own (weights: ViT-B/32, or what its size is), or the repository's "
              'open_clip_model.safetensors with backbone: open_clip:ARCHITECTURE')
# What begins the keys of weights that are something else, and what that is.
_OTHERS = (
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

    `patch` is None for a ResNet, whose `layers` are four numbers; 0 where only the network knows.
    """

    embed_dim: int
    resolution: int
    layers: tuple[int, ...] | int
    width: int
    patch: int | None
    text_width: int


class OpenClipWeights(dict[str, 'Tensor']):
    """State dict of one of open_clip's models, and what its tensors do not tell."""

    architecture: Architecture  # of timm's networks width and patch are not known (0)
    normalization: tuple[tuple[float, ...], tuple[float, ...]]  # mean, deviation of RGB in [0, 1]
    image_encoder: Callable[[], Any]  # `backbone.ImageEncoder` of a vision tower but a ResNet
    text_encoder: Callable[[], TextEncoder]


# Files -------------------------------------------------------------------------------------------


def read_data(path: Path, *, is_release: bool = False) -> Any:
    """Read a file as data: what it holds, whatever it is called.

    Args:
        path: `torch.save` of anything that is made of tensors, numbers and texts, or safetensors.
        is_release: it is one of OpenAI's archives, proven by its SHA-256. Those are TorchScript,
            which is a program, and loaded as their own loader does.

    Raises:
        WeightsError: it is something else, which is named, or damaged.

    """
    import torch  # this module must import without torch, for the doctor
    kind = FileKind('', '')
    try:
        # Open files, since torch takes names for formats, and safetensors knows UTF-8 alone.
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
        raise WeightsError(f'{path}: {_unreadable(error, kind)}.') from error


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Compare the archive's own checksums, which `torch.load` does not, and bound its size."""
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
    """Allow what training programs keep beside tensors and does nothing: scores and options."""
    import numpy as np
    import torch
    if not hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):  # before 2.6
        return contextlib.nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    kinds: list[Any] = [type(np.dtype(kind)) for kind in ('f2', 'f4', 'f8', 'i4', 'i8', 'u1', '?')]
    kinds += [argparse.Namespace, PosixPath]
    kinds += [(scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]
    return torch.serialization.safe_globals([np.dtype, *kinds])


def _unreadable(error: Exception, kind: FileKind) -> str:
    """The reason of an exception of torch or safetensors, without its advice to programmers."""
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


def tensors_of(loaded: Any, source: str, log: Log, anchor: str = _ANCHOR) -> dict[str, Tensor]:
    """Find the state dict of one model in what a file holds.

    Out of the wrappers of training programs, and without the prefix that all of its keys have.

    Args:
        loaded: what was read.
        source: where from, for errors.
        log: told what is left out.
        anchor: a key that the model has.

    Raises:
        WeightsError: it holds none, or several.

    """
    import torch
    for _ in range(3):  # a wrapper in a wrapper in a wrapper
        inner = [name for name in _WRAPPERS if isinstance(loaded, Mapping)
                 and isinstance(loaded.get(name), Mapping)]
        if not inner:
            break
        say_left_out([name for name, other in loaded.items() if name != inner[0]
                      and isinstance(other, Mapping) and anchor in ' '.join(map(str, other))],
                     source, log)
        loaded = loaded[inner[0]]
    if not isinstance(loaded, Mapping):
        what = f'one tensor of {tuple(loaded.shape)}' if isinstance(loaded, torch.Tensor) else \
            f'{type(loaded).__name__}'
        raise WeightsError(f'{source}: holds {what}, no state dict (tensors by their names); save '
                           'it with torch.save(model.state_dict(), PATH).')
    prefixes = sorted({str(key)[:-len(anchor)] for key in loaded
                       if str(key) == anchor or str(key).endswith(f'.{anchor}')})
    if len(prefixes) > 1 and '' not in prefixes:
        raise WeightsError(f'{source}: holds {len(prefixes)} models, {", ".join(prefixes)}; save '
                           'the tensors of one, without that prefix.')
    prefix = prefixes[0] if prefixes else ''
    if prefix:
        say_left_out([key for key in loaded if not str(key).startswith(prefix)], source, log)
    return {str(key)[len(prefix):]: value for key, value in loaded.items()
            if str(key).startswith(prefix)}


def say_left_out(keys: list[Any], source: str, log: Log) -> None:
    """Name what is no part of the model."""
    if keys:
        log(f'{source}: left out, as no part of the model: {first_of(keys, 5)}.')


def openai_tensors(loaded: Any, source: str, log: Log) -> dict[str, Tensor]:
    """State dict in OpenAI's layout, checked; what CLIP has not is left out, and named.

    Raises:
        WeightsError: it is another model's, or no weights.

    """
    tensors = tensors_of(loaded, source, log)
    if not {_ANCHOR, 'ln_final.weight'} <= tensors.keys():
        raise _another_model(list(tensors), source)
    say_left_out([key for key in tensors if not _CLIP_KEY.fullmatch(key)], source, log)
    tensors = {key: value for key, value in tensors.items() if _CLIP_KEY.fullmatch(key)}
    check_tensors(tensors, source)
    return {key: value.detach() for key, value in tensors.items()}


def _another_model(keys: list[str], source: str) -> WeightsError:
    shards = re.search(r'-\d+-of-0*(\d+)\.', source)
    shard = f' (it is one of {shards[1]} shards, by its name)' if shards else ''
    what = next((sentence for start, sentence in _OTHERS if any(
        re.match(start, key) for key in keys)), 'Give other weights')
    return WeightsError(f"{source}: is not a CLIP model in OpenAI's key layout. Its "
                        f'keys are {first_of(keys) or "none"}{shard}: {what}.')


def check_tensors(tensors: Mapping[str, Any], source: str, *, half: bool = True) -> None:
    """Refuse what cannot be weights: no tensor, no dense numbers, or numbers that are none.

    Args:
        tensors: by their names.
        source: where they are from, for errors.
        half: the model's numbers are rounded to half precision, as OpenAI's loader does.

    Raises:
        WeightsError: one cannot be a weight.

    """
    import torch
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.numel() == 1 \
                and not tensor.dtype.is_floating_point:
            continue  # a count
        if fault := _fault_of(tensor):
            raise WeightsError(
                f'{source}: {quoted(name)} {fault}, but a state dict has dense tensors of 16, 32 '
                'or 64 bits of floating point by their names; save such with '
                'torch.save(model.state_dict(), PATH).')
        # One pass over the memory, which NaN survives: 40 ms for RN50 where isfinite takes 200. In
        # float32, since torch 2.1 has none of half precision.
        # Batch norm's statistics stay in float32; all else OpenAI's loader rounds to half. What is
        # not finite there need not show in depth: a fused ReLU may make 0 of NaN.
        low, high = (float(number) for number in torch.aminmax(tensor.detach().float()))
        most = torch.finfo(torch.float16 if half and '.running_' not in name else
                           torch.float32).max
        least = 0.0 if name.endswith('.running_var') else -most
        if not (least <= low and high <= most):
            raise WeightsError(
                f'{source}: {quoted(name)} holds NaN or numbers beyond {least:.6g} to {most:.6g}, '
                'from which no depth can come; the training diverged or the file is damaged. Give '
                'other weights.')


def _fault_of(tensor: Any) -> str:
    """Why something holds no dense numbers of floating point, before they are looked at; or ''."""
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
    """SHA-256 over names, types, shapes and bytes of contiguous tensors, in order of names."""
    import torch
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def architecture(state_dict: Mapping[str, Tensor], source: str = 'the state dict') -> Architecture:
    """Architecture of CLIP weights, read off their shapes; WeightsError if it is none."""
    if isinstance(state_dict, OpenClipWeights):
        return state_dict.architecture

    def count(prefix: str) -> int:
        part = prefix.count('.')
        return len({key.split('.')[part] for key in state_dict if key.startswith(prefix)})

    layers: tuple[int, ...] | int
    patch: int | None
    try:
        if 'visual.proj' in state_dict or 'visual.class_embedding' in state_dict:
            width, _, _, patch = state_dict[_ANCHOR].shape
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
