# SPDX-License-Identifier: Apache-2.0
"""`depthclip doctor`: check this machine, and print the exact command that repairs each fault.

Imports the standard library only. Every other package is tested in a separate process, because
some faults (a cv_bridge built for another NumPy) crash the interpreter.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from depthclip_ros.executables import openmp_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

OK, WARN, FAIL = 'OK', 'WARN', 'FAIL'
PROBE_SECONDS = 180  # the first import of torch from a cold disk
IS_MANAGED = sys.prefix == sys.base_prefix and Path(
    sysconfig.get_path('stdlib'), 'EXTERNALLY-MANAGED').exists()
PIP = (f'{sys.executable} -m venv --system-site-packages .venv && .venv/bin/python -m pip install'
       if IS_MANAGED else f'{sys.executable} -m pip install')
# Optional packages, and the loss without each.
OPTIONAL = {
    'rosbags': 'bags are replayed by `ros2 bag` only',
    'msgspec': 'nothing runs: calibrations and records are read with it',
    'safetensors': 'calibrations can be neither read nor written',
    'mcap': '`depthclip bag` cannot read and write bags',
    'h5py': 'offline_eval cannot read .mat files',
    'scipy': 'offline_eval cannot read splits.mat',
    'matplotlib': 'offline_eval, compare and words do not start',
    'jinja2': 'offline_eval writes no reports, numbers only',
}
DISCOVERY = ('ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_STATIC_PEERS',
             'ROS_LOCALHOST_ONLY', 'RMW_IMPLEMENTATION', 'FASTDDS_BUILTIN_TRANSPORTS',
             'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE',
             'ROS_DISCOVERY_SERVER')


class Check(NamedTuple):
    """One line of the report: subject, status, detail, and the repair unless it is OK."""

    name: str
    status: str
    detail: str
    fix: str = ''


def examine(_: argparse.Namespace) -> int:
    """Run every check and print the report; returns 1 if anything fails, else 0."""
    checks = []
    for check in (result for run in CHECKS for result in run()):
        checks.append(check)
        fix = f'\n     fix: {check.fix}' if check.fix else ''
        print(f'{check.status:5}{check.name}: {check.detail}{fix}', flush=True)
    failed = [check.name for check in checks if check.status == FAIL]
    warned = sum(check.status == WARN for check in checks)
    print(f'\n{len(checks)} checks: {len(failed)} failed, {warned} warnings.'
          + (f' Repair first: {failed[0]}.' if failed else ''))
    return 1 if failed else 0


def run_probe(code: str) -> tuple[Any, str]:
    """Run Python code in a separate process; return its `result`, and the error or ''."""
    try:
        process = subprocess.run(
            [sys.executable, *(['-S'] if sys.flags.no_site else []), '-c',
             f'{code}\nimport json; print(json.dumps(result))'],
            capture_output=True, text=True, errors='replace', timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return None, f'no answer within {PROBE_SECONDS} s'
    if process.returncode < 0:
        return None, f'the interpreter crashed with signal {-process.returncode}'
    if process.returncode:
        return None, (process.stderr.strip() or f'exit code {process.returncode}').splitlines()[-1]
    return json.loads(process.stdout.strip().splitlines()[-1]), ''


def check_ros() -> Iterator[Check]:
    """Check Python, the ROS distribution, rclpy and its middleware."""
    yield Check('python', OK, f'{platform.python_version()} at {sys.executable}')
    distro = os.environ.get('ROS_DISTRO', '')
    result, reason = run_probe(
        'import rclpy\n'
        'from sensor_msgs.msg import Image\n'
        'from diagnostic_msgs.msg import DiagnosticArray\n'
        'result = rclpy.__file__, rclpy.get_rmw_implementation_identifier()')
    if not reason:
        yield Check('ros', OK, (f'ROS {distro}' if distro else 'wheels (no ROS sourced)')
                    + f', rclpy at {Path(result[0]).parent}, {result[1]}')
        return
    fix = 'Install ROS 2, and source its setup.bash.'
    if platform.machine() in ('x86_64', 'AMD64') and (3, 10) <= sys.version_info[:2] <= (3, 13):
        fix = (f"{PIP} 'ros-rclpy[fastrtps]' ros-common-interfaces   (or install ROS 2 and source "
               'its setup.bash)')
    installed = sorted(path.parent.name for path in Path('/opt/ros').glob('*/setup.bash'))
    if distro and 'rclpy._rclpy_pybind11' in reason:
        fix = (f'ROS {distro} was built for another Python than {platform.python_version()}. '
               'Make the virtual environment with the system interpreter: '
               '/usr/bin/python3 -m venv --system-site-packages .venv')
    elif installed and not distro:
        fix = f'source /opt/ros/{installed[-1]}/setup.bash'
    yield Check('ros', FAIL, f'{distro or "no ROS_DISTRO"}; rclpy: {reason}', fix)


def check_discovery() -> Iterator[Check]:
    """Check the settings by which machines and processes discover each other."""
    variables = {name: os.environ[name] for name in DISCOVERY if os.environ.get(name)}
    domain = variables.get('ROS_DOMAIN_ID', '')
    missing = [name for name in variables
               if name.endswith('PROFILES_FILE') and not Path(variables[name]).is_file()]
    number = int(domain or '0') if (domain or '0').isdecimal() else 1000
    status, fix = OK, ''
    if number > 101:  # the ports of higher domains collide with those of other programs
        status, fix = FAIL if number > 232 else WARN, 'export ROS_DOMAIN_ID=42   (0 to 101)'
    elif missing:
        status, fix = FAIL, f'unset {missing[0]}, or name a file that is there'
    elif 'ROS_LOCALHOST_ONLY' in variables and os.environ.get('ROS_DISTRO') != 'humble':
        status, fix = WARN, ('unset ROS_LOCALHOST_ONLY, which overrides the newer export '
                             'ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST')
    yield Check('discovery', status, ', '.join(map('='.join, variables.items()))
                or 'defaults: domain 0, every machine of the subnet', fix)


def check_tools() -> Iterator[Check]:
    """Check whether the ROS command line, if installed, finds this package."""
    marker = Path('share/ament_index/resource_index/packages/depthclip_ros')
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    if shutil.which('ros2') is None:
        yield Check('ros2 command', OK, 'not installed; depth_node and depthclip run without')
    elif any((Path(prefix) / marker).is_file() for prefix in prefixes if prefix):
        yield Check('ros2 command', OK, 'finds depthclip_ros')
    else:
        yield Check('ros2 command', WARN, 'does not find depthclip_ros', (
            f'export AMENT_PREFIX_PATH={sys.prefix}:$AMENT_PREFIX_PATH'
            if (Path(sys.prefix) / marker).is_file() else
            'source install/setup.bash of the workspace, or install with pip (not -e)'))


def check_torch() -> Iterator[Check]:
    """Check PyTorch, torchvision and the GPU."""
    result, reason = run_probe(
        'import torch, torchvision\n'
        'result = {"torch": torch.__version__, "torchvision": torchvision.__version__,\n'
        '          "version": torch.version.cuda or torch.version.hip, "error": "", "gpus": [],\n'
        '          "threads": torch.get_num_threads()}\n'
        'try:\n'
        '    torch.zeros(1, device="cuda").add_(1).item()\n'
        '    result["gpus"] = [torch.cuda.get_device_name(i)\n'
        '                      for i in range(torch.cuda.device_count())]\n'
        'except Exception as error:\n'
        '    result["error"] = (str(error).strip() or type(error).__name__).splitlines()[0]')
    if reason:
        yield Check('torch', FAIL, reason, f'{PIP} torch torchvision')
        return
    yield Check('torch', OK, f'{result["torch"]}, torchvision {result["torchvision"]}, '
                f'{result["threads"]} threads on a CPU, '
                f'{openmp_settings() or "which wait as ever"}')
    if result['gpus']:
        yield Check('gpu', OK, f'{", ".join(result["gpus"])} (CUDA {result["version"]})')
    elif shutil.which('nvidia-smi') is None and not Path('/dev/nvidia0').exists():
        yield Check('gpu', OK, 'none on this machine: the network runs on the CPU')
    elif not result['version']:
        yield Check('gpu', WARN, 'there is one, but this PyTorch is built for CPUs only',
                    f'{PIP} --force-reinstall torch torchvision   (a build for CUDA)')
    else:
        yield Check('gpu', WARN, f'there is one, but: {result["error"]}',
                    'Run nvidia-smi. The driver must be at least as new as CUDA '
                    f'{result["version"]}; in a container start with --gpus all.')


def check_arrays() -> Iterator[Check]:
    """Check NumPy and OpenCV, and whether a cv_bridge works with them."""
    for name, module, fix in (
            ('numpy', 'numpy', f"{PIP} 'numpy>=1.21'"),
            ('opencv', 'cv2', (f"{PIP} 'opencv-python>=4.5'   (for libGL or libgthread: sudo "
             'apt install libgl1 libglib2.0-0)'))):
        version, reason = run_probe(f'import {module}; result = {module}.__version__')
        yield Check(name, FAIL, reason, fix) if reason else Check(name, OK, version)
    _, reason = run_probe(
        'import importlib.util\n'
        'result = ""\n'
        'if importlib.util.find_spec("cv_bridge"):\n'
        '    import numpy\n'
        '    from cv_bridge import CvBridge\n'
        '    picture = numpy.zeros((4, 4, 3), numpy.uint8)\n'
        '    CvBridge().imgmsg_to_cv2(CvBridge().cv2_to_imgmsg(picture, "rgb8"), "bgr8")')
    if reason:
        yield Check('cv_bridge', WARN, f'unusable: {reason}', 'The node does not need it. For '
                    f"programs that do, on Humble or Jazzy: {PIP} 'numpy<2'")


def check_clip() -> Iterator[Check]:
    """Check that the package clip is OpenAI's, as others share its name."""
    folder, reason = run_probe(
        'from depthclip_ros.core.openai_clip import import_clip, tokenizer_digest\n'
        'clip = import_clip(); clip.model, clip.tokenizer, tokenizer_digest()\n'
        'result = str(clip.folder)')
    if not reason:
        yield Check('clip', OK, folder)
    elif 'clip' in metadata.packages_distributions().get('clip', []):
        yield Check('clip', FAIL, "the package 'clip' is not OpenAI's",
                    f'{sys.executable} -m pip uninstall -y clip && {PIP} openai-clip')
    else:
        yield Check('clip', FAIL, reason.partition(': ')[2] or reason, f'{PIP} openai-clip')


def check_network() -> Iterator[Check]:
    """Compare the features of the demo model's network with those of CLIP's modules; time it."""
    results, reason = run_probe('from depthclip_ros.cli.proof import prove\nresult = prove()')
    if reason:
        yield Check('network', FAIL, f'the demo model does not run: {reason}',
                    f'{PIP} torch torchvision openai-clip')
        return
    for result in results:
        detail = (f'{result["precision"]} by {result["engine"]}, {1e3 * result["seconds"]:.0f} ms '
                  f'an image of the demo model, features {result["difference"]:.1g} off those of '
                  "CLIP's own modules")
        if not result['difference'] <= result['rounding']:
            yield Check('network', FAIL, f'{detail}; rounding explains {result["rounding"]:g}',
                        f'Use another precision than {result["precision"]}, and please report it.')
        elif result['seconds'] > 1.2 * results[0]['seconds']:
            yield Check('network', WARN, f'{detail}: slower than {results[0]["precision"]}',
                        f'precision: {results[0]["precision"]}')
        else:
            yield Check('network', OK, detail)


def check_optional() -> Iterator[Check]:
    """Check optional packages."""
    versions = {name: next((d.version for d in metadata.distributions(name=name)), '')
                for name in (*OPTIONAL, 'onnxruntime', 'onnx')}
    for package, loss in OPTIONAL.items():
        if not versions[package]:
            yield Check(package, WARN, f'not installed: {loss}', f'{PIP} {package}')
    yield Check('packages', OK, ', '.join(f'{name} {version or "-"}'
                                          for name, version in versions.items()))


def check_caches() -> Iterator[Check]:
    """Check weights and text features in the cache."""
    result, reason = run_probe(
        'from depthclip_ros.core import releases, weights\n'
        'from depthclip_ros.core.errors import ConfigError, WeightsError\n'
        'result = {"folder": "", "fault": "", "names": []}\n'
        'try:\n'
        '    folder = weights.cache_folder()\n'
        '    result["folder"] = str(folder)\n'
        '    for name, release in releases.RELEASES.items():\n'
        '        path = weights.find_release(name, folder)\n'
        '        if path:\n'
        '            releases.file_digest(path, release)\n'
        '            result["names"].append(name)\n'
        'except (ConfigError, WeightsError) as error:\n'
        '    result["fault"] = str(error)')
    if reason:
        yield Check('weights', FAIL, f'the core cannot be imported: {reason}',
                    f'{PIP} PyYAML typing_extensions')
        return
    if not result['folder']:
        yield Check('cache', FAIL, result['fault'], 'export DEPTHCLIP_CACHE=/FOLDER')
        return
    folder = Path(result['folder'])
    if result['fault']:
        yield Check('weights', FAIL, result['fault'],
                    f'sudo chmod -R a+rX {folder}   (what is damaged: delete it, and depthclip '
                    'fetch RN50)')
    elif result['names']:
        yield Check('weights', OK, f'{", ".join(result["names"])}, checksums verified')
    else:
        yield Check('weights', WARN, f'none in {folder}: they are downloaded at the first start',
                    'depthclip fetch RN50')
    # Unlike Path.exists, this takes folders without permission for absent.
    existing = next(p for p in (folder, *folder.parents) if os.path.exists(p))  # noqa: PTH110
    writable = os.access(existing, os.W_OK | os.X_OK)
    if not writable or shutil.disk_usage(existing).free < 1 << 30:
        yield Check('cache', WARN, f'{folder} ' + (
            'has less than 1 GB free' if writable else 'cannot be written: nothing is kept there'),
            'export DEPTHCLIP_CACHE=/FOLDER   (one that can be written, on a disk with room)')
    else:
        texts = len(list(folder.glob('text/*.npy')))
        yield Check('cache', OK, f'{folder}, text features for {texts} settings')


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    check_ros, check_discovery, check_tools, check_torch, check_arrays, check_clip, check_network,
    check_optional, check_caches)
