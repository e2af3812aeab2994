# SPDX-License-Identifier: Apache-2.0
"""Two files of OpenAI's `clip` package, run without the rest: the networks and the tokenizer.

The package imports torchvision, and with it sympy and torch's compiler: two seconds and 200 MiB.
Its release on PyPI imports `pkg_resources.packaging`, which current setuptools lack, and OpenAI's
main branch imports `packaging`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from .errors import WeightsError, reason

_HINT = "install OpenAI's package: pip install openai-clip"
_VOCABULARY = 'bpe_simple_vocab_16e6.txt.gz'


class ClipPackage:
    """The two files of OpenAI's package, each run on first use; WeightsError if that fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Any:
        """`clip.model`: the networks."""
        return self._run('model')

    @cached_property
    def tokenizer(self) -> Any:
        """`clip.simple_tokenizer.SimpleTokenizer`."""
        return self._run('simple_tokenizer').SimpleTokenizer(str(self.folder / _VOCABULARY))

    def tokenize(self, texts: list[str], context_length: int = 77) -> Any:
        """Tokenize N sentences: (N, context_length) integers; RuntimeError if one is too long."""
        import torch
        first, last = (self.tokenizer.encoder[f'<|{name}oftext|>'] for name in ('start', 'end'))
        rows = torch.zeros(len(texts), context_length, dtype=torch.int)
        for row, text in zip(rows, texts, strict=True):
            tokens = [first, *self.tokenizer.encode(text), last]
            row[:len(tokens)] = torch.tensor(tokens)
        return rows

    def _run(self, name: str) -> Any:
        spec: Any = importlib.util.spec_from_file_location(
            f'clip.{name}', self.folder / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise WeightsError(f"the Python package 'clip' cannot be imported ({error}); {_HINT}."
                               ) from error
        return module


@cache
def import_clip() -> ClipPackage:
    """Find OpenAI's `clip`; WeightsError if it is missing, or another package has its name."""
    spec = importlib.util.find_spec('clip')
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        if (folder / 'model.py').is_file() and (folder / _VOCABULARY).is_file():
            return ClipPackage(folder)
    raise WeightsError(
        f"the Python package 'clip' is missing (in {sys.prefix}); {_HINT}." if spec is None else
        f"the package 'clip' at {spec.origin or spec.name} has no {_VOCABULARY}, so it is not "
        f"OpenAI's; remove it (pip uninstall clip), then {_HINT}.")


@cache
def tokenizer_digest() -> str:
    """Compute the SHA-256 of the tokenizer's vocabulary."""
    return hashlib.sha256((import_clip().folder / _VOCABULARY).read_bytes()).hexdigest()


@contextmanager
def fitting_weights() -> Iterator[None]:
    """Build a network within: in float32, with a WeightsError if the weights do not fit.

    Modules take their number format from the process, which meanwhile is float32.
    """
    import torch
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    except (RuntimeError, ArithmeticError, AssertionError, LookupError, TypeError,
            ValueError) as error:
        raise WeightsError('the weights do not fit their own architecture: '
                           f'{reason(error)}. Give other weights.') from error
    finally:
        torch.set_default_dtype(dtype)
