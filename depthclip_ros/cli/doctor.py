# SPDX-License-Identifier: Apache-2.0
"""`depthclip doctor`: what is wrong with this machine, and the exact command that repairs it.

Imports the standard library only. Every other package is tried in a process of its own, because
some of the faults looked for (a cv_bridge built for another NumPy) crash the interpreter.
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

from depthclip_ros import __version__
from depthclip_ros.executables import waiting

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

OK, WARN, FAIL = 'OK', 'WARN', 'FAIL'
PROBE_SECONDS = 180  # the first import of torch from a cold disk
IS_MANAGED = sys.prefix == sys.base_prefix and Path(
    sysconfig.get_path('stdlib'), 'EXTERNALLY-MANAGED').exists()
PIP = (f'{sys.executable} -m venv --system-site-packages .venv && .venv/bin/python -m pip install'
       if IS_MANAGED else f'{sys.executable} -m pip install')
# What is lost without them.
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
INT8 = ('onnxruntime', 'onnx')  # only precision: int8 needs them
DISCOVERY = ('ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_STATIC_PEERS',
             'ROS_LOCALHOST_ONLY', 'FASTDDS_BUILTIN_TRANSPORTS', 'ROS_DISCOVERY_SERVER')
PROFILES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')


class Check(NamedTuple):
    """One line of the report: what, how it is, and how to repair it where it is not OK."""

    name: str
    status: str
    detail: str
    fix: str = ''


class Probe(NamedTuple):
    """What a short program in another process printed, and how it ended."""

    code: int
    output: str
    error: str

    @property
    def reason(self) -> str:
        """Why it failed, in a line."""
        if self.code < 0:
            return f'the interpreter crashed with signal {-self.code}'
        lines = [line for line in self.error.strip().splitlines() if line.strip()]
        return lines[-1] if lines else f'exit code {self.code}'

    @property
    def found(self) -> Any:
        """The JSON that is the last line of the output."""
        return json.loads(self.output.strip().splitlines()[-1])


def examine(options: argparse.Namespace) -> int:
    """Run every check and print the report; returns 1 if anything fails, else 0."""
    checks = []
    for check in (result for find in CHECKS for result in find()):
        checks.append(check)
        if not options.json:
            fix = f'\n     fix: {check.fix}' if check.fix else ''
            print(f'{check.status:5}{check.name}: {check.detail}{fix}', flush=True)
    failed = [check.name for check in checks if check.status == FAIL]
    if options.json:
        print(json.dumps({'ok': not failed, 'version': __version__,
                          'checks': [check._asdict() for check in checks]}, indent=2))
    else:
        warned = sum(check.status == WARN for check in checks)
        print(f'\n{len(checks)} checks: {len(failed)} failed, {warned} warnings.'
              + (f' Repair first: {failed[0]}.' if failed else ''))
    return 1 if failed else 0


def run_probe(code: str) -> Probe:
    """Run Python code with this interpreter in a process of its own; it leaves JSON in `found`."""
    try:
        done = subprocess.run(
            [sys.executable, *(['-S'] if sys.flags.no_site else []), '-c',
             f'{code}\nimport json; print(json.dumps(found))'],
            capture_output=True, text=True, errors='replace', timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return Probe(1, '', f'no answer within {PROBE_SECONDS} s')
    return Probe(done.returncode, done.stdout, done.stderr)


def check_interpreter() -> Iterator[Check]:
    """Python's version and where it is."""
    kind = 'virtual environment' if sys.prefix != sys.base_prefix else 'system interpreter'
    detail = f'{platform.python_version()}, {kind} {sys.executable}'
    if sys.version_info < (3, 10):  # noqa: UP036 (a source tree runs without its installer)
        yield Check('python', FAIL, detail, 'Use Python 3.10 or newer.')
    else:
        yield Check('python', OK, detail)


def check_ros() -> Iterator[Check]:
    """ROS distribution, rclpy, middleware."""
    distro = os.environ.get('ROS_DISTRO', '')
    probe = run_probe('import rclpy\n'
                      'from sensor_msgs.msg import Image\n'
                      'from diagnostic_msgs.msg import DiagnosticArray\n'
                      'found = rclpy.__file__, rclpy.get_rmw_implementation_identifier()')
    if probe.code:
        fix = (f"{PIP} 'ros-rclpy[fastrtps]' ros-common-interfaces   (or install ROS 2 and source "
               'its setup.bash)')
        installed = sorted(path.parent.name for path in Path('/opt/ros').glob('*/setup.bash'))
        if distro and 'rclpy._rclpy_pybind11' in probe.error:
            fix = (f'ROS {distro} was built for another Python than {platform.python_version()}. '
                   'Make the virtual environment with the system interpreter: '
                   '/usr/bin/python3 -m venv --system-site-packages .venv')
        elif installed and not distro:
            fix = f'source /opt/ros/{installed[-1]}/setup.bash'
        yield Check('ros', FAIL, f'{distro or "no ROS_DISTRO"}; rclpy: {probe.reason}', fix)
        return
    file, middleware = probe.found
    source = f'ROS {distro}' if distro else 'wheels (no ROS environment sourced)'
    yield Check('ros', OK, f'{source}, rclpy {_version("ros-rclpy", "rclpy")} at '
                f'{Path(file).parent}')
    wanted = os.environ.get('RMW_IMPLEMENTATION')
    if wanted and wanted != middleware:
        yield Check('middleware', WARN, f'{middleware}, although RMW_IMPLEMENTATION is {wanted}',
                    f'sudo apt install ros-{distro or "$ROS_DISTRO"}-{wanted.replace("_", "-")}, '
                    'or unset RMW_IMPLEMENTATION')
    else:
        yield Check('middleware', OK, middleware)


def check_discovery() -> Iterator[Check]:
    """Settings that decide which machines and processes see each other."""
    detail = ', '.join(f'{name}={os.environ[name]}' for name in DISCOVERY if os.environ.get(name)
                       ) or 'defaults: domain 0, every machine of the subnet'
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'
    if not domain.isdecimal() or int(domain) > 232:
        yield Check('discovery', FAIL, detail, 'export ROS_DOMAIN_ID=0   (0 to 232; best up to '
                    '101)')
    elif int(domain) > 101:
        yield Check('discovery', WARN, f'{detail}: the ports of domains above 101 collide with '
                    'those of other programs', 'export ROS_DOMAIN_ID=42   (0 to 101)')
    elif os.environ.get('ROS_LOCALHOST_ONLY') and os.environ.get('ROS_DISTRO') != 'humble':
        yield Check('discovery', WARN, f'{detail}: ROS_LOCALHOST_ONLY overrides the newer '
                    'ROS_AUTOMATIC_DISCOVERY_RANGE', 'unset ROS_LOCALHOST_ONLY; export '
                    'ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST')
    else:
        yield Check('discovery', OK, detail)
    for name in PROFILES:
        path = os.environ.get(name)
        if path and not Path(path).is_file():
            yield Check('discovery', FAIL, f'{name}={path}: no such file',
                        f'unset {name}, or correct the path')


def check_numpy() -> Iterator[Check]:
    """NumPy, and whether a cv_bridge beside it survives it."""
    probe = run_probe('import numpy; found = numpy.__version__')
    if probe.code:
        yield Check('numpy', FAIL, probe.reason, f"{PIP} 'numpy>=1.21'")
        return
    yield Check('numpy', OK, probe.found)
    bridge = run_probe(
        'import importlib.util\n'
        'found = "not installed; not needed"\n'
        'if importlib.util.find_spec("cv_bridge"):\n'
        '    import numpy\n'
        '    from cv_bridge import CvBridge\n'
        '    picture = numpy.zeros((4, 4, 3), numpy.uint8)\n'
        '    CvBridge().imgmsg_to_cv2(CvBridge().cv2_to_imgmsg(picture, "rgb8"), "bgr8")\n'
        '    found = "works"')
    if bridge.code:
        fix = 'The node does not need cv_bridge and goes on without it.'
        if not probe.found.startswith('1.'):
            fix += f" To use cv_bridge of Humble or Jazzy elsewhere: {PIP} 'numpy<2'"
        yield Check('cv_bridge', WARN, f'unusable with NumPy {probe.found}: {bridge.reason}', fix)
    else:
        yield Check('cv_bridge', OK, bridge.found)


def check_opencv() -> Iterator[Check]:
    """OpenCV, and whether several wheels of it overwrite each other."""
    probe = run_probe('import cv2; found = cv2.__version__')
    wheels = [name for name in (
        'opencv-python', 'opencv-python-headless', 'opencv-contrib-python',
        'opencv-contrib-python-headless') if _version(name) != '?']
    if probe.code:
        needs_system = any(f'lib{name}' in probe.error for name in ('GL', 'gthread', 'glib'))
        yield Check('opencv', FAIL, probe.reason, (
            'sudo apt install libgl1 libglib2.0-0   (or: pip install opencv-python-headless)'
            if needs_system else f"{PIP} 'opencv-python>=4.5'"))
    elif len(wheels) > 1:
        yield Check('opencv', WARN, f'{", ".join(wheels)} overwrite each other',
                    f'{sys.executable} -m pip uninstall -y {" ".join(wheels)} && {PIP} '
                    f'{wheels[0]}')
    else:
        yield Check('opencv', OK, probe.found)


def check_torch() -> Iterator[Check]:
    """PyTorch, torchvision, and the GPU or why there is none."""
    probe = run_probe(
        'import torch, torchvision\n'
        'found = {"torch": torch.__version__, "torchvision": torchvision.__version__,\n'
        '         "version": torch.version.cuda or torch.version.hip, "why": "", "gpus": [],\n'
        '         "threads": torch.get_num_threads()}\n'
        'try:\n'
        '    torch.zeros(1, device="cuda").add_(1).item()\n'
        '    found["gpus"] = [torch.cuda.get_device_name(i)\n'
        '                     for i in range(torch.cuda.device_count())]\n'
        'except Exception as error:\n'
        '    found["why"] = (str(error).strip() or type(error).__name__).splitlines()[0]')
    if probe.code:
        yield Check('torch', FAIL, probe.reason, f'{PIP} torch torchvision')
        return
    found = probe.found
    yield Check('torch', OK, f'{found["torch"]}, torchvision {found["torchvision"]}')
    yield Check('threads', OK, f'{found["threads"]} for the network on a CPU; how they wait for '
                f"work: {waiting() or 'as their library does by default'}")
    if found['gpus']:
        yield Check('gpu', OK, f'{", ".join(found["gpus"])} (CUDA {found["version"]})')
    elif shutil.which('nvidia-smi') is None and not Path('/dev/nvidia0').exists():
        yield Check('gpu', OK, 'none on this machine: the network runs on the CPU')
    elif not found['version']:
        yield Check('gpu', WARN, 'there is one, but this PyTorch is built for CPUs only',
                    f'{PIP} --force-reinstall torch torchvision   (a build for CUDA)')
    else:
        yield Check('gpu', WARN, f'there is one, but: {found["why"]}',
                    'Run nvidia-smi. The driver must be at least as new as CUDA '
                    f'{found["version"]}; in a container start with --gpus all.')


def check_clip() -> Iterator[Check]:
    """OpenAI's clip package, which shares its name with others."""
    probe = run_probe(
        'from depthclip_ros.core.clip_package import import_clip, tokenizer_digest\n'
        'clip = import_clip(); clip.model, clip.tokenizer, tokenizer_digest()\n'
        'found = str(clip.folder)')
    if not probe.code:
        yield Check('clip', OK, f'{_version("openai-clip", "clip")} at {probe.found}')
    elif 'clip' in metadata.packages_distributions().get('clip', []):
        yield Check('clip', FAIL, "the package 'clip' is not OpenAI's",
                    f'{sys.executable} -m pip uninstall -y clip && {PIP} openai-clip')
    else:
        yield Check('clip', FAIL, probe.reason.partition(': ')[2] or probe.reason,
                    f'{PIP} openai-clip')


def check_network() -> Iterator[Check]:
    """Features of the demo model's network beside CLIP's own modules, and its time."""
    probe = run_probe('from depthclip_ros.cli.proof import prove\nfound = prove()')
    if probe.code:
        yield Check('network', FAIL, f'the demo model does not run: {probe.reason}',
                    f'{PIP} torch torchvision openai-clip')
        return
    first = probe.found[0]
    for way in probe.found:
        seen = (f'{way["precision"]} by {way["engine"]}, {1e3 * way["seconds"]:.0f} ms an image '
                f'of the demo model, features {way["difference"]:.1g} off those of CLIP\'s own '
                'modules')
        if not way['difference'] <= way['rounding']:
            yield Check('network', FAIL, f'{seen}, where rounding explains {way["rounding"]:g}',
                        f'Use another precision than {way["precision"]}, and please report it.')
        elif way['seconds'] > 1.2 * first['seconds']:
            yield Check('network', WARN, f'{seen}: slower than {first["precision"]}',
                        f'precision: {first["precision"]}')
        else:
            yield Check('network', OK, seen)


def check_optional() -> Iterator[Check]:
    """Packages without which only a part of this one works."""
    for package, loss in OPTIONAL.items():
        version = _version(package)
        if version == '?':
            yield Check(package, WARN, f'not installed: {loss}', f'{PIP} {package}')
        else:
            yield Check(package, OK, version)
    missing = [package for package in INT8 if _version(package) == '?']
    yield Check('int8', OK, (
        f'precision: int8 is not possible without {" and ".join(missing)}: '
        f'{PIP} {" ".join(missing)}' if missing else
        ', '.join(f'{package} {_version(package)}' for package in INT8)))


def check_caches() -> Iterator[Check]:
    """Weights and text features on this machine."""
    probe = run_probe(
        'from depthclip_ros.core import weights\n'
        'from depthclip_ros.core.errors import ConfigError, WeightsError\n'
        'found = {"folder": "", "fault": "", "damaged": "", "here": []}\n'
        'try:\n'
        '    folder = weights.cache_folder()\n'
        '    found["folder"] = str(folder)\n'
        '    for name, release in weights.RELEASES.items():\n'
        '        path = weights.find(name, folder)\n'
        '        if path and weights.file_digest(path) != release.sha256:\n'
        '            found["damaged"] = str(path)\n'
        '        found["here"] += [name] if path else []\n'
        'except (ConfigError, WeightsError) as error:\n'
        '    found["fault"] = str(error)')
    if probe.code:
        yield Check('weights', FAIL, f'the core cannot be imported: {probe.reason}',
                    f'{PIP} PyYAML typing_extensions')
        return
    found = probe.found
    if not found['folder']:
        yield Check('cache', FAIL, found['fault'], 'export DEPTHCLIP_CACHE=/FOLDER')
        return
    folder = Path(found['folder'])
    if found['fault']:
        yield Check('weights', FAIL, found['fault'],
                    f'sudo chmod -R a+rX {folder}   (or DEPTHCLIP_CACHE=/FOLDER)')
    elif found['damaged']:
        yield Check('weights', FAIL, f'{found["damaged"]}: wrong SHA-256',
                    f'rm {found["damaged"]}; depthclip fetch RN50')
    elif found['here']:
        yield Check('weights', OK, f'{", ".join(found["here"])}, checksums verified')
    else:
        yield Check('weights', WARN, f'none in {folder}: they are downloaded at the first start',
                    'depthclip fetch RN50')
    # Unlike Path.exists, this takes what may not be looked into for absent.
    existing = next(p for p in (folder, *folder.parents) if os.path.exists(p))  # noqa: PTH110
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Check('cache', WARN, f'{folder} cannot be written: nothing is kept there',
                    'export DEPTHCLIP_CACHE=FOLDER   (one that can be written)')
    elif shutil.disk_usage(existing).free < 1 << 30:
        yield Check('cache', WARN, f'{folder}: less than 1 GB free',
                    'Make room, or export DEPTHCLIP_CACHE=FOLDER on another disk.')
    else:
        texts, networks = (len(list(folder.glob(files))) for files in (
            'text/*.npy', 'int8/*.onnx'))
        yield Check('cache', OK, f'{folder}, text features for {texts} settings, {networks} '
                    'networks in 8 bits')


def check_tools() -> Iterator[Check]:
    """Whether the ROS command line, where there is one, finds this package."""
    marker = Path('share/ament_index/resource_index/packages/depthclip_ros')
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    if shutil.which('ros2') is None:
        yield Check('ros2 command', OK, 'not installed; depth_node and depthclip run without')
    elif any((Path(prefix) / marker).is_file() for prefix in prefixes if prefix):
        yield Check('ros2 command', OK, 'finds depthclip_ros')
    elif (Path(sys.prefix) / marker).is_file():
        yield Check('ros2 command', WARN, 'does not find depthclip_ros: its prefix is not in '
                    'AMENT_PREFIX_PATH',
                    f'export AMENT_PREFIX_PATH={sys.prefix}:$AMENT_PREFIX_PATH')
    else:
        yield Check('ros2 command', WARN, 'does not find depthclip_ros',
                    'source install/setup.bash of the workspace, or install with pip (not -e)')


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    check_interpreter, check_ros, check_discovery, check_tools, check_torch, check_numpy,
    check_opencv, check_clip, check_network, check_optional, check_caches)


def _version(*distributions: str) -> str:
    """Version of the first of these that is installed; '?' if none is."""
    installed = {d.metadata['Name']: d.version for name in distributions
                 for d in metadata.distributions(name=name)}
    return next(iter(installed.values()), '?')
