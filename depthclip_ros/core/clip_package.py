# SPDX-License-Identifier: Apache-2.0
"""OpenAI's `clip` package, in either of the two forms in which users have it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from .errors import WeightsError

INSTALL_HINT = "install OpenAI's package: pip install openai-clip"
VOCABULARY = 'bpe_simple_vocab_16e6.txt.gz'


@cache
def import_clip() -> Any:
    """Import OpenAI's `clip`.

    Raises:
        WeightsError: the package is missing, or another package of the same name is installed.

    """
    try:
        with _pkg_resources_packaging():
            clip = importlib.import_module('clip')
            model = importlib.import_module('clip.model')
    except ImportError as error:
        raise WeightsError(
            f"the Python package 'clip' cannot be imported ({error}); {INSTALL_HINT}.") from error
    if not (hasattr(clip, 'tokenize') and hasattr(model, 'build_model')):
        raise WeightsError(f"the package 'clip' at {clip.__file__} is not OpenAI's; remove it "
                           f'(pip uninstall clip), then {INSTALL_HINT}.')
    return clip


@contextmanager
def _pkg_resources_packaging() -> Iterator[None]:
    """Let `from pkg_resources import packaging` work for one import.

    The release on the package index says so, but current setuptools no longer has
    `pkg_resources` (or no `packaging` in it). What it held there is the package `packaging`
    itself. OpenAI's main branch imports that one and needs no help.
    """
    try:
        import pkg_resources
        has_packaging = hasattr(pkg_resources, 'packaging')
    except ImportError:
        has_packaging = False
    if has_packaging:
        yield
        return
    importlib.import_module('packaging.version')
    stand_in = types.ModuleType('pkg_resources')
    stand_in.packaging = importlib.import_module('packaging')  # type: ignore[attr-defined]
    previous = sys.modules.get('pkg_resources')
    sys.modules['pkg_resources'] = stand_in
    try:
        yield
    finally:
        if previous is None:
            del sys.modules['pkg_resources']
        else:
            sys.modules['pkg_resources'] = previous


@cache
def tokenizer_digest() -> str:
    """SHA-256 of the tokenizer's vocabulary, found without importing the package (or torch)."""
    spec = importlib.util.find_spec('clip')
    if spec is None or spec.origin is None:
        raise WeightsError(f"the Python package 'clip' is missing; {INSTALL_HINT}.")
    path = Path(spec.origin).with_name(VOCABULARY)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"the package 'clip' at {path.parent} has no {VOCABULARY}, so it is "
                           f"not OpenAI's; {INSTALL_HINT}.") from error
