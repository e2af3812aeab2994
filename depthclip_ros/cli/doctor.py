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
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthclip_ros import __version__
from depthclip_ros.executables import waiting

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

OK, WARN, FAIL = 'OK', 'WARN', 'FAIL'
PROBE_SECONDS = 180  # the first import of torch from a cold disk


def _pip() -> str:
    """Install command that works for this interpreter, also where the system forbids it."""
    managed = Path(sysconfig.get_path('stdlib')) / 'EXTERNALLY-MANAGED'
    if sys.prefix == sys.base_prefix and managed.exists():
        return (f'{sys.executable} -m venv --system-site-packages .venv && '
                '.venv/bin/python -m pip install')
    return f'{sys.executable} -m pip install'


PIP = _pip()
# What is lost without them.
OPTIONAL = {
    'rosbags': 'bags are replayed by `ros2 bag` only',
    'msgspec': 'nothing runs: calibrations and records are read with it',
    'safetensors': 'calibrations can be neither read nor written',
    'mcap': '`depthclip bag` cannot read and write bags',
    'h5py': 'offline_eval cannot read .mat files',
    'scipy': 'offline_eval cannot read splits.mat',
    'matplotlib': 'reports of offline_eval have no figures',
    'jinja2': 'offline_eval writes no reports, numbers only',
}


# Only precision: int8 needs them.
INT8 = ('onnxruntime', 'onnx')


@dataclass(frozen=True)
class Check:
    """One line of the report: what, how it is, and how to repair it where it is not OK."""

    name: str
    status: str
    detail: str
    fix: str = ''


@dataclass(frozen=True)
class Probe:
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

    def values(self) -> dict[str, str]:
        """The JSON object that is the last line of the output."""
        loaded: dict[str, str] = json.loads(self.output.strip().splitlines()[-1])
        return loaded


def examine(options: argparse.Namespace) -> int:
    """Run every check and print the report; returns 1 if anything fails, else 0."""
    checks: list[Check] = []
    for check in CHECKS:
        for result in check():
            checks.append(result)
            if not options.json:
                _print(result)
    failed = [check.name for check in checks if check.status == FAIL]
    if options.json:
        print(json.dumps({'ok': not failed, 'version': __version__,
                          'checks': [asdict(check) for check in checks]}, indent=2))
    else:
        warned = sum(check.status == WARN for check in checks)
        print(f'\n{len(checks)} checks: {len(failed)} failed, {warned} warnings.'
              + (f' Repair first: {failed[0]}.' if failed else ''))
    return 1 if failed else 0


def run_probe(code: str) -> Probe:
    """Run Python code with this interpreter, in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, *(['-S'] if sys.flags.no_site else []), '-c', code],
            capture_output=True, text=True, errors='replace', timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return Probe(1, '', f'no answer within {PROBE_SECONDS} s')
    return Probe(done.returncode, done.stdout, done.stderr)


def check_interpreter() -> list[Check]:
    """Python's version and where it is."""
    version = platform.python_version()
    kind = 'virtual environment' if sys.prefix != sys.base_prefix else 'system interpreter'
    detail = f'{version}, {kind} {sys.executable}'
    if sys.version_info < (3, 10):  # noqa: UP036 (a source tree runs without its installer)
        return [Check('python', FAIL, detail, 'Use Python 3.10 or newer.')]
    return [Check('python', OK, detail)]


def check_ros() -> list[Check]:
    """ROS distribution, rclpy, middleware."""
    distro = os.environ.get('ROS_DISTRO', '')
    probe = run_probe(
        'import json, rclpy\n'
        'from sensor_msgs.msg import Image\n'
        'from diagnostic_msgs.msg import DiagnosticArray\n'
        'print(json.dumps({"file": rclpy.__file__, '
        '"rmw": rclpy.get_rmw_implementation_identifier()}))')
    if probe.code != 0:
        return [Check('ros', FAIL, f'{distro or "no ROS_DISTRO"}; rclpy: {probe.reason}',
                      _ros_fix(distro, probe))]
    values = probe.values()
    version = _version('ros-rclpy', 'rclpy')
    source = f'ROS {distro}' if distro else 'wheels (no ROS environment sourced)'
    checks = [Check('ros', OK, f'{source}, rclpy {version} at {Path(values["file"]).parent}')]
    wanted = os.environ.get('RMW_IMPLEMENTATION')
    if wanted and wanted != values['rmw']:
        checks.append(Check('middleware', WARN, f'{values["rmw"]}, although RMW_IMPLEMENTATION is '
                            f'{wanted}', f'sudo apt install ros-{distro or "$ROS_DISTRO"}-'
                            f'{wanted.replace("_", "-")}, or unset RMW_IMPLEMENTATION'))
    else:
        checks.append(Check('middleware', OK, values['rmw']))
    return checks


def _ros_fix(distro: str, probe: Probe) -> str:
    if distro and 'rclpy._rclpy_pybind11' in probe.error:
        return (f'ROS {distro} was built for another Python than {platform.python_version()}. '
                'Make the virtual environment with the system interpreter: '
                '/usr/bin/python3 -m venv --system-site-packages .venv')
    installed = sorted(path.parent.name for path in Path('/opt/ros').glob('*/setup.bash'))
    if installed and not distro:
        return f'source /opt/ros/{installed[-1]}/setup.bash'
    return (f"{PIP} 'ros-rclpy[fastrtps]' ros-common-interfaces   (or install ROS 2 and source "
            'its setup.bash)')


def check_discovery() -> list[Check]:
    """Settings that decide which machines and processes see each other."""
    checks = []
    names = ('ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_STATIC_PEERS',
             'ROS_LOCALHOST_ONLY', 'FASTDDS_BUILTIN_TRANSPORTS', 'ROS_DISCOVERY_SERVER')
    found = [f'{name}={os.environ[name]}' for name in names if os.environ.get(name)]
    detail = ', '.join(found) or 'defaults: domain 0, every machine of the subnet'
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'
    if not domain.isdecimal() or int(domain) > 232:
        checks.append(Check('discovery', FAIL, detail, 'export ROS_DOMAIN_ID=0   (0 to 232; best '
                            'up to 101)'))
    elif int(domain) > 101:
        checks.append(Check('discovery', WARN, f'{detail}: the ports of domains above 101 collide '
                            'with those of other programs',
                            'export ROS_DOMAIN_ID=42   (0 to 101)'))
    elif os.environ.get('ROS_LOCALHOST_ONLY') and os.environ.get('ROS_DISTRO') != 'humble':
        checks.append(Check('discovery', WARN, f'{detail}: ROS_LOCALHOST_ONLY overrides the newer '
                            'ROS_AUTOMATIC_DISCOVERY_RANGE', 'unset ROS_LOCALHOST_ONLY; export '
                            'ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST'))
    else:
        checks.append(Check('discovery', OK, detail))
    for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        path = os.environ.get(name)
        if path and not Path(path).is_file():
            checks.append(Check('discovery', FAIL, f'{name}={path}: no such file',
                                f'unset {name}, or correct the path'))
    return checks


def check_numpy() -> list[Check]:
    """NumPy, and whether a cv_bridge beside it survives it."""
    probe = run_probe('import json, numpy; print(json.dumps({"version": numpy.__version__}))')
    if probe.code != 0:
        return [Check('numpy', FAIL, probe.reason, f"{PIP} 'numpy>=1.21'")]
    version = probe.values()['version']
    checks = [Check('numpy', OK, version)]
    bridge = run_probe(
        'import importlib.util, json, sys\n'
        'if importlib.util.find_spec("cv_bridge") is None:\n'
        '    print(json.dumps({"state": "absent"})); sys.exit()\n'
        'import numpy\n'
        'from cv_bridge import CvBridge\n'
        'bridge = CvBridge()\n'
        'picture = numpy.zeros((4, 4, 3), numpy.uint8)\n'
        'bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(picture, "rgb8"), "bgr8")\n'
        'print(json.dumps({"state": "works"}))')
    if bridge.code != 0:
        major = version.partition('.')[0]
        fix = 'The node does not need cv_bridge and goes on without it.'
        if major != '1':
            fix += f" To use cv_bridge of Humble or Jazzy elsewhere: {PIP} 'numpy<2'"
        checks.append(Check('cv_bridge', WARN, f'unusable with NumPy {version}: {bridge.reason}',
                            fix))
    else:
        state = bridge.values()['state']
        checks.append(Check('cv_bridge', OK, 'works' if state == 'works' else
                            'not installed; not needed'))
    return checks


def check_opencv() -> list[Check]:
    """OpenCV, and whether several wheels of it overwrite each other."""
    probe = run_probe('import json, cv2; print(json.dumps({"version": cv2.__version__, '
                      '"file": cv2.__file__}))')
    if probe.code != 0:
        fix = f"{PIP} 'opencv-python>=4.5'"
        if 'libGL' in probe.error or 'libgthread' in probe.error or 'libglib' in probe.error:
            fix = 'sudo apt install libgl1 libglib2.0-0   (or: pip install opencv-python-headless)'
        return [Check('opencv', FAIL, probe.reason, fix)]
    wheels = [name for name in (
        'opencv-python', 'opencv-python-headless', 'opencv-contrib-python',
        'opencv-contrib-python-headless') if _version(name) != '?']
    if len(wheels) > 1:
        return [Check('opencv', WARN, f'{", ".join(wheels)} overwrite each other',
                      f'{sys.executable} -m pip uninstall -y {" ".join(wheels)} && {PIP} '
                      f'{wheels[0]}')]
    return [Check('opencv', OK, probe.values()['version'])]


def check_torch() -> list[Check]:
    """PyTorch, torchvision, and the GPU or why there is none."""
    probe = run_probe(
        'import json, torch, torchvision, warnings\n'
        'found = {"torch": torch.__version__, "torchvision": torchvision.__version__,\n'
        '         "cuda": torch.version.cuda or "", "hip": torch.version.hip or "",\n'
        '         "devices": "", "why": "",\n'
        '         "threads": str(torch.get_num_threads())}\n'
        'try:\n'
        '    torch.cuda.init()\n'
        '    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]\n'
        '    torch.zeros(1, device="cuda").add_(1).item()\n'
        '    found["devices"] = ", ".join(names)\n'
        'except Exception as error:\n'
        '    found["why"] = str(error).strip().splitlines()[0] if str(error).strip() else\\\n'
        '        type(error).__name__\n'
        'print(json.dumps(found))')
    if probe.code != 0:
        return [Check('torch', FAIL, probe.reason, f'{PIP} torch torchvision')]
    values = probe.values()
    checks = [
        Check('torch', OK, f'{values["torch"]}, torchvision {values["torchvision"]}'),
        Check('threads', OK, f'{values["threads"]} for the network on a CPU; how they wait for '
              f"work: {waiting() or 'as their library does by default'}")]
    if values['devices']:
        checks.append(Check('gpu', OK, f'{values["devices"]} (CUDA {values["cuda"]})'))
    elif shutil.which('nvidia-smi') is None and not Path('/dev/nvidia0').exists():
        checks.append(Check('gpu', OK, 'none on this machine: the network runs on the CPU'))
    elif not values['cuda'] and not values['hip']:
        checks.append(Check('gpu', WARN, 'there is one, but this PyTorch is built for CPUs only',
                            f'{PIP} --force-reinstall torch torchvision   (a build for CUDA)'))
    else:
        checks.append(Check('gpu', WARN, f'there is one, but: {values["why"]}',
                            'Run nvidia-smi. The driver must be at least as new as CUDA '
                            f'{values["cuda"]}; in a container start with --gpus all.'))
    return checks


def check_clip() -> list[Check]:
    """OpenAI's clip package, which shares its name with others."""
    probe = run_probe(
        'import json\n'
        'from depthclip_ros.core.clip_package import import_clip, tokenizer_digest\n'
        'clip = import_clip(); clip.model, clip.tokenizer, tokenizer_digest()\n'
        'print(json.dumps({"folder": str(clip.folder)}))')
    if probe.code != 0:
        reason = probe.reason.partition(': ')[2] or probe.reason
        owner = metadata.packages_distributions().get('clip', [])
        if 'clip' in owner:
            return [Check('clip', FAIL, "the package 'clip' is not OpenAI's",
                          f'{sys.executable} -m pip uninstall -y clip && {PIP} openai-clip')]
        return [Check('clip', FAIL, reason, f'{PIP} openai-clip')]
    version = _version('openai-clip', 'clip')
    return [Check('clip', OK, f'{version} at {probe.values()["folder"]}')]


def check_network() -> list[Check]:
    """Features of the demo model's network beside CLIP's own modules, and its time."""
    probe = run_probe('import json\n'
                      'from depthclip_ros.cli.proof import prove\n'
                      'print(json.dumps({"found": prove()}))')
    if probe.code != 0:
        return [Check('network', FAIL, f'the demo model does not run: {probe.reason}',
                      f'{PIP} torch torchvision openai-clip')]
    found: Any = probe.values()['found']
    checks = []
    for way in found:
        seen = (f'{way["precision"]} by {way["engine"]}, {1e3 * way["seconds"]:.0f} ms an image '
                f'of the demo model, features {way["difference"]:.1g} off those of CLIP\'s own '
                'modules')
        if not way['difference'] <= way['rounding']:
            checks.append(Check(
                'network', FAIL, f'{seen}, where rounding explains {way["rounding"]:g}',
                f'Use another precision than {way["precision"]}, and please report it.'))
        elif way['seconds'] > 1.2 * found[0]['seconds']:
            checks.append(Check('network', WARN, f'{seen}: slower than {found[0]["precision"]}',
                                f'precision: {found[0]["precision"]}'))
        else:
            checks.append(Check('network', OK, seen))
    return checks


def check_optional() -> list[Check]:
    """Packages without which only a part of this one works."""
    checks = []
    for package, loss in OPTIONAL.items():
        version = _version(package)
        if version == '?':
            checks.append(Check(package, WARN, f'not installed: {loss}', f'{PIP} {package}'))
        else:
            checks.append(Check(package, OK, version))
    versions = {package: _version(package) for package in INT8}
    missing = [package for package, version in versions.items() if version == '?']
    checks.append(Check('int8', OK, (
        f'precision: int8 is not possible without {" and ".join(missing)}: '
        f'{PIP} {" ".join(missing)}' if missing else
        ', '.join(f'{package} {version}' for package, version in versions.items()))))
    return checks


def check_caches() -> list[Check]:
    """Weights and text features on this machine."""
    probe = run_probe(
        'import json\n'
        'from depthclip_ros.core import weights\n'
        'from depthclip_ros.core.errors import ConfigError, WeightsError\n'
        'found = {"folder": "", "here": "", "fault": "", "path": ""}\n'
        'try:\n'
        '    found["folder"] = str(weights.default_cache_dir())\n'
        '    for name in weights.RELEASES:\n'
        '        path = weights.find(name, weights.default_cache_dir())\n'
        '        if path is None: continue\n'
        '        found["path"] = str(path)\n'
        '        found["here"] += f", {name}"\n'
        '        if weights.file_digest(path) != weights.RELEASES[name].sha256:\n'
        '            found["fault"] = f"{path}: wrong SHA-256"\n'
        '            break\n'
        'except (ConfigError, WeightsError) as error:\n'
        '    found["fault"] = str(error)\n'
        'print(json.dumps(found))')
    if probe.code != 0:
        return [Check('weights', FAIL, f'the core cannot be imported: {probe.reason}',
                      f'{PIP} PyYAML typing_extensions')]
    values = probe.values()
    if not values['folder']:
        return [Check('cache', FAIL, values['fault'], 'export DEPTHCLIP_CACHE=/FOLDER')]
    folder = Path(values['folder'])
    checks = []
    if 'wrong SHA-256' in values['fault']:
        checks.append(Check('weights', FAIL, values['fault'],
                            f'rm {values["path"]}; depthclip fetch RN50'))
    elif values['fault']:
        checks.append(Check('weights', FAIL, values['fault'],
                            f'sudo chmod -R a+rX {folder}   (or DEPTHCLIP_CACHE=/FOLDER)'))
    elif values['here']:
        checks.append(Check('weights', OK, f'{values["here"][2:]}, checksums verified'))
    else:
        checks.append(Check('weights', WARN, f'none in {folder}: they are downloaded at the first '
                            'start', 'depthclip fetch RN50'))
    texts = len(list((folder / 'text').glob('*.npz')))
    quantized = len(list((folder / 'int8').glob('*.onnx')))
    # Unlike Path.exists, this takes what may not be looked into for absent.
    existing = next(p for p in (folder, *folder.parents) if os.path.exists(p))  # noqa: PTH110
    if not os.access(existing, os.W_OK | os.X_OK):
        checks.append(Check('cache', WARN, f'{folder} cannot be written: nothing is kept there',
                            'export DEPTHCLIP_CACHE=FOLDER   (one that can be written)'))
    elif shutil.disk_usage(existing).free < 1 << 30:
        checks.append(Check('cache', WARN, f'{folder}: less than 1 GB free', 'Make room, or '
                            'export DEPTHCLIP_CACHE=FOLDER on another disk.'))
    else:
        checks.append(Check('cache', OK, f'{folder}, text features for {texts} settings, '
                            f'{quantized} networks in 8 bits'))
    return checks


def check_tools() -> list[Check]:
    """Whether the ROS command line, where there is one, finds this package."""
    if shutil.which('ros2') is None:
        return [Check('ros2 command', OK, 'not installed; depth_node and depthclip run without')]
    prefixes = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    marker = Path('share/ament_index/resource_index/packages/depthclip_ros')
    if any((prefix / marker).is_file() for prefix in prefixes):
        return [Check('ros2 command', OK, 'finds depthclip_ros')]
    if (Path(sys.prefix) / marker).is_file():
        return [Check('ros2 command', WARN, 'does not find depthclip_ros: its prefix is not in '
                      'AMENT_PREFIX_PATH',
                      f'export AMENT_PREFIX_PATH={sys.prefix}:$AMENT_PREFIX_PATH')]
    return [Check('ros2 command', WARN, 'does not find depthclip_ros',
                  'source install/setup.bash of the workspace, or install with pip (not -e)')]


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    check_interpreter, check_ros, check_discovery, check_tools, check_torch, check_numpy,
    check_opencv, check_clip, check_network, check_optional, check_caches)


def _version(*distributions: str) -> str:
    """Version of the first of these that is installed."""
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return '?'


def _print(check: Check) -> None:
    print(f'{check.status:5}{check.name}: {check.detail}', flush=True)
    if check.fix:
        print(f'     fix: {check.fix}', flush=True)
