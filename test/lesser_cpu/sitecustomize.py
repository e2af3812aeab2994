# SPDX-License-Identifier: Apache-2.0
"""Found by Python itself in the processes of `pytest --cpu KIND`."""

import os
import sys

import lesser_cpu

if os.environ.get(lesser_cpu.VARIABLE):
    sys.meta_path.insert(0, lesser_cpu.AfterTorch(os.environ[lesser_cpu.VARIABLE]))
