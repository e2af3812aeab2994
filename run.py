#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Set everything up in .venv, then run it: needs Python 3.10 or newer and nothing else.

    python3 run.py demo [OPTIONS]       run the node on images and leave pictures to look at
    python3 run.py test [PYTEST ARGS]   check style and types, and run the tests
    python3 run.py test --gpu           what needs a GPU, and its benchmark; 77 where there is none
    python3 run.py test --all           with those for a night; what they need is installed, too
    python3 run.py doctor | predict …   any other command of `depthclip`
    python3 run.py depth_node | offline_eval | …   any other executable: one file each in scripts/
    python3 run.py … --kilted           the same on ROS 2 Kilted; of the tests those of the node

The packages go into the folder .venv beside this file; nothing else on the machine is changed.
Where a ROS 2 environment is sourced, its rclpy and its NumPy are used, and pip installs the rest;
elsewhere ROS 2 comes as wheels, which are for x86-64 and Python 3.10 to 3.13 only, and uv installs
them: PyTorch without CUDA where there is no NVIDIA GPU. A second run begins at once. These are
Jazzy's; --kilted puts Kilted's into .venv/kilted, which has all else from .venv.
"""

# Old interpreters must get as far as the message in check_machine: nothing newer than Python 3.6.

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / 'depthclip_ros-setup.json'
KILTED = VENV / 'kilted'
SETUP_FILES = ('setup.py', 'setup.cfg', 'pyproject.toml', 'run.py')
TESTS = ('test',)
NIGHTLY = ('test', 'docs', 'nightly', 'ray', 'rerun')
MINIMUM = (3, 10)
LEAST_GIGABYTES = 2


class SetupError(Exception):
    """What is wrong and what to do, for the user."""


def main(arguments: list) -> int:
    if not arguments or arguments[0] in ('-h', '--help'):
        print(__doc__.strip())
        return 0 if arguments else 2
    name, *others = [word for word in arguments if word != '--kilted']
    is_kilted, python, extras = '--kilted' in arguments, PYTHON, ()
    try:
        if name == 'test':
            extras = NIGHTLY if '--all' in others else TESTS
            command = [str(ROOT / 'tools/run_tests.py'), *['--kilted'] * is_kilted]
        elif '/' not in name and (ROOT / 'scripts' / name).is_file():
            command = [str(PYTHON.parent / name)]
        else:
            check_arguments([name, *others])
            command = ['-m', 'depthclip_ros.cli.main', name]
        set_up(extras)
        if is_kilted:
            python = set_up_kilted()
    except SetupError as error:
        print(f'run.py: {error}', file=sys.stderr)
        return 1
    if name != 'test':  # `depthclip` is not on PATH: what it suggests begins as the user began
        os.environ['DEPTHCLIP_COMMAND'] = 'python3 ' + sys.argv[0]
    # One process from here on, so that signals and the exit code are the command's own.
    sys.stdout.flush()
    os.execv(str(python), [str(python), *command, *others])
    return 0


def check_arguments(arguments: list) -> None:
    """End with usage what `depthclip` will not understand, before minutes of set-up."""
    check_python()
    sys.path.insert(0, str(ROOT))
    from depthclip_ros.cli.main import _parser  # which needs the standard library only
    _parser().parse_args(arguments)


def set_up(extras: tuple) -> None:
    """Have .venv hold this package, editable, with these extras and those that it has."""
    check_python()
    ros = sourced_ros()
    files = b''.join((ROOT / name).read_bytes() for name in SETUP_FILES)
    wanted = {'python': sys.executable + ' ' + platform.python_version(), 'folder': str(ROOT),
              'ros': ros, 'files': hashlib.sha256(files).hexdigest()}
    lock = os.open(str(ROOT), os.O_RDONLY)  # one set-up at a time in this folder
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_stamp()
        there = found.pop('extras', [])
        needed = {*extras, *(() if ros else ('ros',))}
        if found == wanted and needed <= {*there} and PYTHON.exists():
            return
        check_machine(ros)
        say(f'setting up {VENV} ' + (f'on ROS {ros}' if ros else 'with ROS 2 as wheels')
            + ' (a few minutes the first time)')
        if not PYTHON.exists() or any(found.get(key) != wanted[key]
                                      for key in ('python', 'folder', 'ros')):
            make_venv(VENV, *(['--system-site-packages'] if ros else []))
            there = []
        if STAMP.exists():
            STAMP.unlink()
        complete = sorted({*there, *needed})
        install(['-e', '{}[{}]'.format(ROOT, ','.join(complete))], ros)
        STAMP.write_text(json.dumps({**wanted, 'extras': complete}), encoding='utf-8')
    finally:
        os.close(lock)
    say(f'set-up complete. Begin so each time, or type once: source {VENV}/bin/activate')


def set_up_kilted() -> Path:
    """Have .venv/kilted hold Kilted's packages before those of .venv; gives its Python."""
    if sourced_ros():
        raise SetupError('--kilted is for terminals in which no ROS is sourced: in others the '
                         'sourced one is used.')
    # NumPy as beside: torch and OpenCV have been built for that one.
    code, output = output_of(str(PYTHON), '-c', (
        'from importlib.metadata import requires, version; print("numpy==" + version("numpy"), '
        '*(r.partition(";")[0] for r in requires("depthclip_ros") if "kilted" in r))'))
    if code:
        raise SetupError(output)
    python, stamp = KILTED / 'bin' / 'python', KILTED / 'requirements.txt'
    if not stamp.exists() or stamp.read_text(encoding='utf-8') != output:
        say(f'setting up {KILTED}')
        make_venv(KILTED)
        install(output.split(), '', python)
        packages, = KILTED.glob('lib/python*/site-packages')
        beside, = VENV.glob('lib/python*/site-packages')
        (packages / 'beside.pth').write_text(f'{ROOT}\n{beside}\n', encoding='utf-8')
        stamp.write_text(output, encoding='utf-8')
    return python


def read_stamp() -> dict:
    """What the last complete set-up was for; {} where there was none."""
    try:
        return dict(json.loads(STAMP.read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError):
        return {}


def check_python() -> None:
    if sys.version_info < MINIMUM:
        raise SetupError(
            f'Python {platform.python_version()} ({sys.executable}) is too old; 3.10 or newer is '
            'needed. Run this file with another one, such as: python3.12 run.py')


def sourced_ros() -> str:
    """Name of the ROS distribution whose rclpy this interpreter can use, or ''."""
    distro = os.environ.get('ROS_DISTRO', '')
    code, output = output_of(sys.executable, '-c', 'import rclpy, sensor_msgs.msg')
    if not distro or code == 0:
        return distro
    reason = (output.strip().splitlines() or ['no reason given'])[-1]
    raise SetupError(
        f'ROS {distro} is sourced, but {sys.executable} (Python {platform.python_version()}) '
        f'cannot import its rclpy: {reason}\nUse the interpreter that ROS was built for '
        '(/usr/bin/python3 run.py …), or begin in a terminal where no ROS is sourced.')


def check_machine(ros: str) -> None:
    """Refuse early, in words, what an installer would refuse late."""
    reason = ''
    if platform.machine() not in ('x86_64', 'AMD64'):
        reason = f'for x86-64 only, and this machine is {platform.machine()}'
    elif sys.version_info[:2] > (3, 13):
        reason = f'for Python 3.10 to 3.13 only, and this is {platform.python_version()}'
    if reason and not ros:
        raise SetupError(
            'no ROS 2 is sourced, and the wheels of ROS 2 that would stand in for it are '
            f'{reason}. Install ROS 2 (Humble, Jazzy or Lyrical), source its setup.bash, and run '
            "this file with the system's /usr/bin/python3. More, also of Jetson and Raspberry Pi: "
            'docs/install.md')
    if VENV.exists() and not (VENV / 'pyvenv.cfg').is_file() and any(VENV.iterdir()):
        raise SetupError(f'{VENV} is there, but is no virtual environment. Move it away.')
    check_disk()


def check_disk() -> None:
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < LEAST_GIGABYTES:
        raise SetupError(
            f'the disk is full: {free:.1f} GB are free in {ROOT}. A set-up takes up to 7 GB, '
            'and as much for downloads where UV_CACHE_DIR or PIP_CACHE_DIR is on another disk.')


def make_venv(folder: Path, *options: str) -> None:
    """Make an environment anew; with ROS it is to see the system's packages."""
    shutil.rmtree(str(folder), ignore_errors=True)
    code, output = output_of(sys.executable, '-m', 'venv', str(folder), *options)
    if code:
        shutil.rmtree(str(folder), ignore_errors=True)
        check_disk()
        raise SetupError(
            f'{sys.executable} cannot make a virtual environment:\n{output.strip()}\nOn Debian '
            'and Ubuntu: sudo apt install python{}.{}-venv'.format(*sys.version_info))


def install(packages: list, ros: str, python: Path = PYTHON) -> None:
    """Install packages for a Python: by uv of .venv, which is quicker, else by its own pip."""
    pip = [str(python), '-m', 'pip', '--disable-pip-version-check', 'install']
    # Compiled here once: where Python is told to write no bytecode, each start would do it anew.
    uv = [str(PYTHON), '-m', 'uv', 'pip', 'install', '--python', str(python),
          '--compile-bytecode', *packages]
    ways = [[*uv, '--torch-backend=auto'], uv, [*pip, *packages]]
    if ros:  # only pip sees the system's packages, whose messages and cv_bridge want their NumPy
        _, numpy = output_of(sys.executable, '-c', 'import numpy; print(numpy.__version__)')
        ways = [[*pip, *packages, *(['numpy<2'] if numpy.startswith('1.') else [])]]
    elif output_of(str(PYTHON), *pip[1:], 'uv')[0] != 0:
        del ways[:2]
    for number, way in enumerate(ways):
        say(('that failed; another way: ' if number else '') + ' '.join(way[2:]))
        if subprocess.run(way, cwd=str(ROOT), check=False).returncode == 0:
            return
        check_disk()
    raise SetupError(
        'the packages could not be installed, see above. Where no index was reached, check the '
        "network; behind a proxy set https_proxy; with a mirror or a folder of wheels set pip's "
        'index-url or find-links (pip config set …). Then run this again.')


def output_of(*command: str) -> tuple:
    """Exit code of a command, and what it prints, errors too."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    return done.returncode, done.stdout


def say(text: str) -> None:
    print('run.py: ' + text, flush=True)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, interrupt)  # ends the installer, too
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print('\nrun.py: interrupted; the next run goes on from here', file=sys.stderr)
        sys.exit(130)
