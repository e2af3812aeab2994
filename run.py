#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Set everything up in .venv, then run it: needs Python 3.10 or newer and nothing else.

    python3 run.py demo [OPTIONS]       run the node on images and leave pictures to look at
    python3 run.py test [PYTEST ARGS]   check style and types, and run all tests
    python3 run.py doctor | predict …   any other command of `depthclip`
    python3 run.py depth_node | offline_eval | …   any other executable: one file each in scripts/

The packages go into the folder .venv beside this file; nothing else on the machine is changed.
Where a ROS 2 environment is sourced, its rclpy is used, and its NumPy stays (the virtual
environment sees the system's packages); elsewhere ROS 2 comes as wheels, which are for x86-64 and
Python 3.10 to 3.13 only. pip's own settings
(mirror, proxy, find-links, constraints) apply. A second run begins at once: .venv is set up again
only when setup.py, setup.cfg, this file, the interpreter, or the folder's place has changed.
"""

# Old interpreters must get as far as the message in check_python: nothing newer than Python 3.6.

import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / '.venv'
STAMP = VENV / 'depthclip_ros-setup.json'
LOG = VENV / 'pip.log'
MINIMUM = (3, 10)
# For what the wheels of ROS 2 are built, which a machine without ROS needs.
WHEELS_MACHINES = ('x86_64', 'AMD64')
WHEELS_NEWEST = (3, 13)
# What a full set-up on Linux takes: 7.9 for .venv, most of it PyTorch's CUDA libraries, and twice
# 3.1 for what pip downloads, in its cache and in temporary files; a CPU build takes less.
FULL_GIGABYTES = 14
LEAST_GIGABYTES = 2
# Test files run beside each other; what measures time runs alone (see test/conftest.py).
WORKERS = ('-n', '2', '--dist', 'loadfile', '--no-loadscope-reorder')
# A test that takes so many seconds hangs, maybe in C, where no exception reaches it. Its process
# shows the stacks of all threads and ends, and the test has failed; a new process takes the rest.
HANGS = ('-o', 'faulthandler_timeout=600', '-o', 'faulthandler_exit_on_timeout=true',
         '--max-worker-restart', '1')
TYPED = ('depthclip_ros', 'offline_eval', 'launch')
SETUP_FILES = ('setup.py', 'setup.cfg', 'pyproject.toml', 'run.py')


class SetupError(Exception):
    """What is wrong and what to do, for the user."""


def main(arguments: list) -> int:
    if not arguments or arguments[0] in ('-h', '--help'):
        print(__doc__.strip())
        return 0 if arguments else 2
    try:
        check_python()
        check_arguments(arguments)
        python = set_up()
    except SetupError as error:
        print('run.py: {}'.format(error), file=sys.stderr)  # noqa: UP032
        return 1
    if arguments[0] == 'test':
        return run_tests(python, arguments[1:])
    command = command_of(python, arguments)
    # `depthclip` is not on PATH: what it suggests begins as the user began.
    os.environ['DEPTHCLIP_COMMAND'] = own_command()
    # One process from here on, so that signals and the exit code are the command's own.
    sys.stdout.flush()
    os.execv(str(python), command)
    return 0


def command_of(python: Path, arguments: list) -> list:
    """An executable of this package by its name, else a command of `depthclip`."""
    if is_executable(arguments[0]):
        return [str(python), str(python.parent / arguments[0]), *arguments[1:]]
    return [str(python), '-m', 'depthclip_ros.cli.main', *arguments]


def is_executable(name: str) -> bool:
    return '/' not in name and (ROOT / 'scripts' / name).is_file()


def check_arguments(arguments: list) -> None:
    """End with usage what `depthclip` will not understand, before minutes of set-up."""
    if arguments[0] == 'test' or is_executable(arguments[0]):
        return
    sys.path.insert(0, str(ROOT))
    from depthclip_ros.cli.main import _parser  # which needs the standard library only
    try:
        _parser().parse_args(arguments)
    except SystemExit as end:
        if end.code:
            print(f'run.py: all that there is: {own_command()} --help', file=sys.stderr)
        raise


def own_command() -> str:
    """How this file was called, for a shell in the same folder."""
    name = Path(sys.executable).name
    found = shutil.which(name)
    same = found and Path(found).samefile(sys.executable)
    return shlex.join([name if same else sys.executable, sys.argv[0]])


def check_python() -> None:
    if sys.version_info < MINIMUM:
        raise SetupError(
            f'Python {platform.python_version()} ({sys.executable}) is too old; 3.10 or newer is '
            'needed. Run this file with another one, such as: python3.12 run.py')


def set_up() -> Path:
    """Make .venv complete; returns its interpreter."""
    python = VENV / 'bin' / 'python'
    with _locked():
        ros = sourced_ros()
        wanted = fingerprint(ros)
        if read_stamp() == wanted and python.exists():
            return python
        say(f'setting up {VENV}' + (f' on ROS {ros}' if ros else ', with ROS 2 as wheels')
            + ' (a few minutes the first time)')
        check_wheels(ros)
        check_disk()
        if STAMP.exists():
            STAMP.unlink()
        make_venv(python, ros, wanted['python'])
        install(python, ros)
        STAMP.write_text(json.dumps(wanted, indent=2), encoding='utf-8')
        say('set-up complete')
        say(how_to_go_on())
    return python


def how_to_go_on() -> str:
    """What to type after the set-up, with and without activating .venv."""
    names = sorted(path.name for path in (ROOT / 'scripts').glob('*') if path.is_file())
    activate = shlex.quote(os.path.relpath(str(VENV / 'bin' / 'activate')))
    return (f'from now on: {own_command()} COMMAND …, or once in a shell\n'
            f'      source {activate}\n  and then by name: {", ".join(names)}')


def check_wheels(ros: str) -> None:
    """Refuse early what pip would refuse late: ROS's wheels are not for every machine."""
    if ros:
        return
    reason = ''
    if platform.machine() not in WHEELS_MACHINES:
        reason = f'for x86-64 only, and this machine is {platform.machine()}'
    elif sys.version_info[:2] > WHEELS_NEWEST:
        reason = 'for Python 3.10 to {}.{} only, and this is {}'.format(
            *WHEELS_NEWEST, platform.python_version())
    if reason:
        raise SetupError(
            'no ROS 2 is sourced, and the wheels of ROS 2 that would stand in for it are '
            f'{reason}. Install ROS 2 (Humble, Jazzy or Lyrical), source its setup.bash, and run '
            "this file with the system's /usr/bin/python3. More, also of Jetson and Raspberry Pi: "
            'docs/install.md')


def sourced_ros() -> str:
    """Name of the ROS distribution whose rclpy this interpreter can use, or ''."""
    distro = os.environ.get('ROS_DISTRO', '')
    if not distro:
        return ''
    probe = subprocess.run(
        [sys.executable, '-c', 'import rclpy, sensor_msgs.msg'], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, check=False)
    if probe.returncode == 0:
        return distro
    reason = (probe.stderr.strip().splitlines() or ['no reason given'])[-1]
    raise SetupError(
        f'ROS {distro} is sourced, but {sys.executable} (Python {platform.python_version()}) '
        f'cannot import its rclpy: {reason}\nUse the interpreter that ROS was built for '
        '(/usr/bin/python3 run.py …), or begin in a terminal where no ROS is sourced.')


def fingerprint(ros: str) -> dict:
    """Everything that makes another set-up necessary."""
    digest = hashlib.sha256()
    for name in SETUP_FILES:
        path = ROOT / name
        digest.update(path.read_bytes() if path.is_file() else b'')
    return {'files': digest.hexdigest(), 'python': f'{sys.executable} {platform.python_version()}',
            'folder': str(ROOT), 'ros': ros}


def read_stamp() -> dict:
    """What the last complete set-up was for; {} where there was none."""
    try:
        loaded = json.loads(STAMP.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def check_disk() -> None:
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < LEAST_GIGABYTES:
        raise SetupError(disk_message())
    if free < FULL_GIGABYTES and not STAMP.exists():
        say(f'only {free:.1f} GB free in {ROOT}; a full set-up takes up to {FULL_GIGABYTES} GB')


def disk_message() -> str:
    places = (str(ROOT), tempfile.gettempdir())
    free = ' and '.join(f'{shutil.disk_usage(place).free / 1e9:.1f} GB in {place}'
                        for place in places)
    return (f'the disk is full: {free} are free. A full set-up takes up to {FULL_GIGABYTES} GB, '
            'in part for temporary files. Make room, or set TMPDIR to a folder on another disk.')


def make_venv(python: Path, ros: str, version: str) -> None:
    """Create .venv, or keep the one that is there if it works and is of this Python."""
    if VENV.exists() and not (VENV / 'pyvenv.cfg').is_file() and any(VENV.iterdir()):
        raise SetupError(f'{VENV} is there, but is no virtual environment. Move it away.')
    if is_usable(python, ros):
        return
    if VENV.exists():
        say(f'{VENV} is incomplete or of another Python; making it anew')
        shutil.rmtree(str(VENV))
    command = [sys.executable, '-m', 'venv', *(['--system-site-packages'] if ros else [])]
    made = subprocess.run(
        [*command, str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False)
    if made.returncode == 0 and is_usable(python, ros):
        return
    if 'No space left' in made.stdout:
        raise SetupError(disk_message())
    # Debian and Ubuntu split ensurepip off; a pip of the system can stand in for it.
    shutil.rmtree(str(VENV), ignore_errors=True)
    steps = ([*command, '--without-pip', str(VENV)],
             [sys.executable, '-m', 'pip', '--python', str(python), 'install', '-q', 'pip'])
    if all(subprocess.run(step, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          check=False).returncode == 0 for step in steps):
        return
    shutil.rmtree(str(VENV), ignore_errors=True)
    short = '{}.{}'.format(*sys.version_info[:2])
    raise SetupError(
        f'this Python ({version}) cannot make a virtual environment:\n{made.stdout.strip()}\n'
        f'On Debian and Ubuntu: sudo apt install python{short}-venv')


def is_usable(python: Path, ros: str) -> bool:
    """Whether .venv has a working interpreter of this version, with pip."""
    if not python.exists():
        return False
    code = 'import pip, sys; print(sys.version_info[:3] == {!r})'.format(  # noqa: UP032
        tuple(sys.version_info[:3]))
    try:
        probe = subprocess.run(
            [str(python), '-c', code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, check=False)
    except OSError:
        return False
    settings = (VENV / 'pyvenv.cfg').read_text(encoding='utf-8')
    sees_system = 'include-system-site-packages = true' in settings
    return probe.stdout.strip() == 'True' and sees_system == bool(ros)


def install(python: Path, ros: str) -> None:
    """Install this folder, editable, with what it needs."""
    extras = 'docs,test' if ros else 'docs,ros,test'
    command = [str(python), '-m', 'pip', '--disable-pip-version-check', 'install',
               '--no-compile', '--progress-bar', 'off', '-e', f'{ROOT}[{extras}]']
    if ros and system_numpy_major() == '1':
        # The messages and cv_bridge of this ROS are built for NumPy 1.
        command.append('numpy<2')
    tail = []
    with LOG.open('w', encoding='utf-8') as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
            cwd=str(ROOT), errors='replace')
        try:
            for line in process.stdout:
                log.write(line)
                tail = [*tail[-29:], line]
                show(line.strip())
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
    if process.returncode != 0:
        raise SetupError(explain(''.join(tail)))
    # pip would do it, on one core. A few files are of another Python, and need not compile.
    subprocess.run([str(python), '-m', 'compileall', '-q', '-j', '0', str(VENV / 'lib')],
                   stdout=subprocess.DEVNULL, check=False)


def show(line: str) -> None:
    """Of pip's many lines, those that take long."""
    if line.startswith('Downloading ') and 'MB)' in line:
        print('  ' + line, flush=True)
    elif line.startswith('Installing collected packages'):
        print(f'  Installing {line.count(",") + 1} packages', flush=True)


def system_numpy_major() -> str:
    probe = subprocess.run(
        [sys.executable, '-c', 'import numpy; print(numpy.__version__)'], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, check=False)
    return probe.stdout.split('.')[0]


def explain(output: str) -> str:
    """Why pip failed, in words."""
    network = ('Temporary failure in name resolution', 'Failed to establish a new connection',
               'Network is unreachable', 'Connection refused', 'ConnectTimeout',
               'Name or service not known', 'Max retries exceeded', 'ReadTimeout',
               'Cannot connect to proxy', 'NewConnectionError', 'NameResolutionError')
    if 'No space left' in output or 'Errno 28' in output or 'Disk quota exceeded' in output:
        return disk_message()
    if any(sign in output for sign in network):
        return (f'{output}\npip cannot reach its package index. Check the network; behind a proxy '
                'set https_proxy, with a mirror or a folder of wheels set index-url or find-links '
                f'(pip config set …), then run this again. (log: {LOG})')
    if 'from versions: none' in output:
        return (f'{output}\npip found no such package: its index cannot be reached, or has no '
                f'wheel for Python {platform.python_version()} on {platform.machine()}. Check the '
                f'network and pip config list, or try another Python. (log: {LOG})')
    return f'{output}\npip could not install the packages, see above. (log: {LOG})'


def run_tests(python: Path, arguments: list) -> int:
    """Style, types, then all tests; everything runs, and the first failure counts."""
    typed = [name for name in TYPED if (ROOT / name).is_dir()]
    steps = (
        ('ruff', ['ruff', 'check', '.']),
        ('mypy', ['mypy', '--strict', *typed]),
        ('pytest', ['pytest', *WORKERS, *HANGS, *arguments]),
    )
    failed = []
    for name, command in steps:
        say(' '.join(command))
        code = subprocess.run(
            [str(python), '-m', *command], cwd=str(ROOT), check=False).returncode
        if code != 0:
            failed.append(f'{name} (exit code {code})')
    if failed:
        print('run.py: failed: ' + ', '.join(failed), file=sys.stderr)
        return 1
    return 0


class _locked:  # noqa: N801 (used as a function)
    """Only one set-up at a time in this folder; the lock ends with the process."""

    def __enter__(self) -> None:
        self._handle = os.open(str(ROOT), os.O_RDONLY)
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another run.py is setting up this folder; waiting for it')
            fcntl.flock(self._handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


def say(text: str) -> None:
    print('run.py: ' + text, flush=True)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == '__main__':
    # Ends pip, too, which would go on alone otherwise.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print('\nrun.py: interrupted; the next run goes on from here', file=sys.stderr)
        sys.exit(130)
