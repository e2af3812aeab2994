# SPDX-License-Identifier: Apache-2.0
"""The node with faults in its way, for processes of tests: `python test/faulty_node.py ...`.

An image all of whose pixels have the same value, a mark, brings the fault of that mark; all
others are answered as usual. By the environment: with FAULT_AT_LOAD the loading of the model
never returns; with FAULT_SLOW every batch takes so many seconds longer: then images come faster
than they are answered on any machine; with FAULT_SLOW_WORDS the encoding of new words does.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depthclip_ros.core import CameraImage, estimator
from depthclip_ros.node import depth_node, parameters

RAISES, DEVICE_FAILS, LOOPS, SLEEPS, GIVES_NAN, OUT_OF_MEMORY = 7, 8, 9, 10, 11, 12
ENCODES = 'encodes words'
HANGS = 'hangs at a parameter'  # what it prints when it does


def _endless_loop():
    while True:
        pass


def _nan(predictions):
    for prediction in predictions:
        prediction.depth[:] = float('nan')
    return predictions


def _mark(picture):
    value = int(picture.flat[0])
    return value if (picture == value).all() else 0


class FaultyEstimator(estimator.DepthEstimator):
    """Fails on marked images."""

    was_short = False  # of memory

    def __init__(self, *args, **kwargs):
        if os.environ.get('FAULT_AT_LOAD'):
            _endless_loop()
        super().__init__(*args, **kwargs)

    def prepare(self, config):
        if 'FAULT_SLOW_WORDS' in os.environ and hasattr(self, '_settings') \
                and config.tokens != self.config.tokens:
            print(ENCODES, flush=True)
            time.sleep(float(os.environ['FAULT_SLOW_WORDS']))
        return super().prepare(config)

    def predict(self, images, *args, **kwargs):
        marks = {_mark(one.rgb) for one in images if isinstance(one, CameraImage)} \
            if isinstance(images, list) else set()
        if RAISES in marks:
            raise ZeroDivisionError('on purpose')
        if OUT_OF_MEMORY in marks and not self.was_short:
            self.was_short = True
            raise RuntimeError('CUDA out of memory, on purpose')
        if DEVICE_FAILS in marks:
            raise RuntimeError('CUDA error: an illegal memory access, on purpose')
        if LOOPS in marks:
            _endless_loop()
        if SLEEPS in marks:
            time.sleep(3600)  # in C code
        time.sleep(float(os.environ.get('FAULT_SLOW', '0')))
        predictions = super().predict(images, *args, **kwargs)
        return _nan(predictions) if GIVES_NAN in marks else predictions


def _hang_at_a_parameter(self, parameters_, on_set=parameters.Parameters._on_set):
    if any(p.name == 'temperature' and p.value == 7.0 for p in parameters_):
        print(HANGS, flush=True)
        time.sleep(3600)
    return on_set(self, parameters_)


if __name__ == '__main__':
    estimator.DepthEstimator = FaultyEstimator
    parameters.Parameters._on_set = _hang_at_a_parameter
    depth_node.run()
