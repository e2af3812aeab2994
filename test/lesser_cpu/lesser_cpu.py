# SPDX-License-Identifier: Apache-2.0
"""Processors and builds of torch that can do less than this machine: what they refuse, refused.

    plain               a torch without oneDNN's private operators and TorchScript's fusion
    avx2                x86-64 without AVX-512 and AVX-NE-CONVERT, as most laptops are

`pytest --cpu KIND` runs the suite so; this folder is then on the path of every process that it
starts, and `sitecustomize` does there what `pretend` does here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from importlib.abc import MetaPathFinder
from pathlib import Path

KINDS = ('plain', 'avx2')
VARIABLE = 'DEPTHCLIP_TEST_CPU'
# What each kind lets the libraries use that ask the processor themselves.
LIBRARIES = {'plain': {}, 'avx2': {
    'ONEDNN_MAX_CPU_ISA': 'AVX2', 'MKL_ENABLE_INSTRUCTIONS': 'AVX2',
    'ATEN_CPU_CAPABILITY': 'avx2'}}
# The whole of what this package uses of torch that is private, or may be built without.
FUSED = ('_convolution_pointwise', '_convolution_pointwise_', '_reorder_convolution_weight')
TORCHSCRIPT = ('torch._C._jit_llga_enabled', 'torch.jit.enable_onednn_fusion', 'torch.jit.trace',
               'torch.jit.freeze', 'torch.jit.last_executed_optimized_graph')
REFUSAL = ('mkldnn_reorder_conv2d_weight: bf16 path needs the cpu support avx_ne_convert or '
           'avx512bw, avx512vl and avx512dq')


def asked_by_us():
    """Whether who asks for an operator is this package: torch's own compiler may go on."""
    return sys._getframe(2).f_globals.get('__name__', '').startswith('depthclip_ros.')


def pretend(kind, setattr=setattr, delattr=delattr,  # noqa: A002 (monkeypatch's, for a test)
            missing=FUSED, torchscript=TORCHSCRIPT[:2]):
    """Let this process's torch be one of the kinds; 'plain' without these names."""
    import torch
    operators = torch.ops.mkldnn

    class Plain(type(operators)):
        def __getattribute__(self, name):  # what has been looked up before
            if name in missing and asked_by_us():
                raise AttributeError(name)
            return super().__getattribute__(name)

        def __getattr__(self, name):
            if name in missing and asked_by_us():
                raise AttributeError(f"'_OpNamespace' 'mkldnn' object has no attribute '{name}'")
            return super().__getattr__(name)

    class WithoutBfloat16(type(operators)):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if name != '_reorder_convolution_weight' or not asked_by_us():
                return found

            def reorder(weight, *rest):
                if weight.dtype == torch.bfloat16:
                    raise RuntimeError(REFUSAL)
                return found(weight, *rest)
            return reorder

    if kind == 'plain':
        setattr(operators, '__class__', Plain)
        for name in torchscript:
            where, _, what = name.removeprefix('torch.').partition('.')
            delattr(getattr(torch, where), what)
    else:
        setattr(operators, '__class__', WithoutBfloat16)
        for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
            setattr(torch.cpu, name, lambda: False)


def pretend_everywhere(kind):
    """Let this process, which has no torch yet, and all that it starts be one of the kinds."""
    if os.environ.get(VARIABLE) == kind:
        return  # started by one that does
    os.environ[VARIABLE] = kind
    os.environ.update(LIBRARIES[kind])
    # What torch.compile has kept for the whole processor is wrong for a part of it.
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(
        Path(tempfile.gettempdir()) / f'torchinductor_{os.getuid()}_{kind}')
    os.environ['PYTHONPATH'] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])])
    assert 'torch' not in sys.modules
    sys.meta_path.insert(0, AfterTorch(kind))


class AfterTorch(MetaPathFinder):
    """Pretends as soon as torch has been imported, and not before somebody wants it."""

    def __init__(self, kind):
        self.kind = kind

    def find_spec(self, name, path=None, target=None):
        if name != 'torch':
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec('torch')
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                pretend(self.kind)
            spec.loader.exec_module = exec_module
        return spec
