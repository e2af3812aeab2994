# SPDX-License-Identifier: Apache-2.0
"""The files of OpenAI's `clip` package that are needed: the networks and the tokenizer.

The package around them imports torchvision, and its release on PyPI `pkg_resources.packaging`,
which current setuptools has no longer; OpenAI's main branch imports `packaging`. Neither is
imported here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import WeightsError

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

INSTALL_HINT = "install OpenAI's package: pip install openai-clip"
VOCABULARY = 'bpe_simple_vocab_16e6.txt.gz'


class ClipPackage:
    """The parts of OpenAI's package, each imported when it is first used."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the package."""
        self.folder = folder

    @cached_property
    def model(self) -> Any:
        """`clip.model` without the package around it.

        The package imports torchvision, and with it sympy and torch's compiler: two seconds and
        200 MiB that the networks do not need, and in which no other thread gets on.

        Raises:
            WeightsError: it cannot be imported.

        """
        return self._import('model')

    @cached_property
    def tokenizer(self) -> Any:
        """`clip.simple_tokenizer.SimpleTokenizer`, without the package around it.

        Raises:
            WeightsError: it cannot be imported.

        """
        return self._import('simple_tokenizer').SimpleTokenizer(str(self.folder / VOCABULARY))

    def tokenize(self, texts: list[str], context_length: int = 77) -> Any:
        """Tokens of sentences: (N, context_length) integers, as `clip.tokenize` gives them.

        Raises:
            RuntimeError: a sentence is too long.
            WeightsError: the tokenizer cannot be imported.

        """
        import torch  # the doctor looks at this package without it
        first, last = (self.tokenizer.encoder[f'<|{name}oftext|>'] for name in ('start', 'end'))
        rows = torch.zeros(len(texts), context_length, dtype=torch.int)
        for row, text in zip(rows, texts, strict=True):
            tokens = [first, *self.tokenizer.encode(text), last]
            if len(tokens) > context_length:
                raise RuntimeError(f'{len(tokens)} tokens do not fit into {context_length}')
            row[:len(tokens)] = torch.tensor(tokens)
        return rows

    def _import(self, name: str) -> Any:
        """Import a single file of the package, under a name of our own."""
        own_name = f'{__package__}.openai_clip_{name}'
        with _import_errors():
            spec = cast('ModuleSpec', importlib.util.spec_from_file_location(
                own_name, self.folder / f'{name}.py'))
            module = importlib.util.module_from_spec(spec)
            sys.modules[own_name] = module  # what looks classes up by their module finds them
            cast('Loader', spec.loader).exec_module(module)
        return module


@cache
def import_clip() -> ClipPackage:
    """Find OpenAI's `clip`.

    Raises:
        WeightsError: the package is missing, or another package of the same name is installed.

    """
    spec = importlib.util.find_spec('clip')
    if spec is None:
        raise WeightsError(
            f"the Python package 'clip' is missing (in {sys.prefix}); {INSTALL_HINT}.")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / 'model.py').is_file() and (folder / VOCABULARY).is_file():
            return ClipPackage(folder)
    where = spec.origin or ', '.join(map(str, folders))
    raise WeightsError(f"the package 'clip' at {where} has no {VOCABULARY}, so it is not "
                       f"OpenAI's; remove it (pip uninstall clip), then {INSTALL_HINT}.")


@contextmanager
def fitting_weights() -> Iterator[None]:
    """Say so where a network of OpenAI's cannot be built from weights.

    Raises:
        WeightsError: it cannot.

    """
    try:
        yield
    except (RuntimeError, ArithmeticError, AssertionError, LookupError, TypeError,
            ValueError) as error:
        raise WeightsError(
            'the weights do not fit their own architecture: '
            f'{" ".join(str(error).split())[:300]}. Give other weights.') from error


@contextmanager
def _import_errors() -> Iterator[None]:
    """Say what to do where a part of the package cannot be imported."""
    try:
        yield
    except ImportError as error:
        raise WeightsError(
            f"the Python package 'clip' cannot be imported ({error}); {INSTALL_HINT}.") from error


@cache
def tokenizer_digest() -> str:
    """SHA-256 of the tokenizer's vocabulary, found without importing the package (or torch).

    Raises:
        WeightsError: as `import_clip`.

    """
    return hashlib.sha256((import_clip().folder / VOCABULARY).read_bytes()).hexdigest()
