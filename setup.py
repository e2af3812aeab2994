# SPDX-License-Identifier: Apache-2.0
"""Build of the ament_python package `depthclip_ros`, by colcon and by pip.

The metadata stand here and not in pyproject.toml, whose [project] the setuptools of Ubuntu 22.04
(Humble) does not know; settings of tools are there.
"""

from __future__ import annotations

import re
import sys
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'depthclip_ros'
# Read and not imported: the package's own imports may not be there yet.
VERSION = re.findall(r"^__version__ = '(.+)'$",
                     Path(PACKAGE, '__init__.py').read_text(encoding='utf-8'), re.MULTILINE)[0]

# One line per executable: `ros2 run depthclip_ros NAME`. Each also has a file in scripts/.
EXECUTABLES = {
    'depth_node': 'depthclip_ros.executables:depth_node',
    'depthclip': 'depthclip_ros.cli.main:main',
    'image_source': 'depthclip_ros.executables:image_source',
    'bag_player': 'depthclip_ros.executables:bag_player',
    'offline_eval': 'offline_eval.cli:main',
    'sim_camera': 'depthclip_ros.executables:sim_camera',
}

# pip always builds through pyproject.toml, and then runs this file with one of these commands.
# colcon runs `egg_info`, `install` or `develop` instead.
BUILT_BY_PIP = not {'sdist', 'dist_info', 'bdist_wheel', 'editable_wheel'}.isdisjoint(sys.argv)

DATA_FILES = [
    ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
    (f'share/{PACKAGE}', ['package.xml']),
    (f'share/{PACKAGE}/config', sorted(glob('config/*.yaml') + glob('config/*.xml'))),
    (f'share/{PACKAGE}/config/sros2', sorted(glob('config/sros2/*.xml'))),
    (f'share/{PACKAGE}/launch', sorted(glob('launch/*.launch.py'))),
    (f'share/{PACKAGE}/rviz', sorted(glob('rviz/*.rviz'))),
    (f'share/{PACKAGE}/foxglove', sorted(glob('foxglove/*.json'))),
]

# Under colcon the system's packages (python3-opencv and others) carry no pip metadata, and a
# requirement that is there but not under pip's name stops the executables as soon as anything
# imports pkg_resources. package.xml lists the dependencies for that case.
REQUIREMENTS = ['setuptools']

if BUILT_BY_PIP:
    # pip ignores `install_scripts` of setup.cfg and installs to bin/ only, where `ros2 run` and
    # `ros2 launch` never look. These files in lib/<package> hand over to bin/.
    DATA_FILES.append((f'lib/{PACKAGE}', [f'scripts/{name}' for name in EXECUTABLES]))
    REQUIREMENTS = [
        'h5py>=3.0',
        'jinja2>=3.0',
        'matplotlib>=3.5',
        'msgspec>=0.18.5',
        'mcap>=1.6',
        'numpy>=1.21',
        'openai-clip>=1.0.1',
        'opencv-python>=4.5',
        'packaging',
        'PyYAML>=5.4',
        'rosbags>=0.11',
        'safetensors>=0.4',
        'scipy>=1.8',
        'torch>=2.1',
        'torchvision>=0.16',
        'tqdm>=4.60',
    ]
else:
    # colcon installs every executable to lib/<package>. All remedies say `depthclip …`.
    DATA_FILES.append(('bin', ['scripts/colcon/depthclip']))

setup(
    name=PACKAGE,
    version=VERSION,
    description='Monocular depth from CLIP (DepthCLIP) as a ROS 2 node',
    maintainer='depthclip_ros maintainers',
    maintainer_email='nobody@depthclip-ros.invalid',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*', 'offline_eval', 'offline_eval.*']),
    package_data={PACKAGE: ['py.typed', 'models/*', 'report/templates/*',
                            'evaluation/datasets/*.json'],
                  'offline_eval': ['py.typed']},
    data_files=DATA_FILES,
    install_requires=REQUIREMENTS,
    extras_require={
        # ROS 2 Jazzy's rclpy and messages as wheels, for machines without a ROS installation.
        'ros': ['ros-rclpy[fastrtps]==7.1.6', 'ros-common-interfaces==5.3.6'],
        # The same of Kilted; one of the two.
        'kilted': ['ros-rclpy[fastrtps]==9.1.2', 'ros-common-interfaces==5.5.1'],
        # Many bags on several cores, GPUs or machines.
        'ray': ['ray>=2.60'],
        # precision: int8.
        'int8': ['onnx>=1.14', 'onnxruntime>=1.16'],
        # backbone: open_clip:…; transformers has SigLIP's tokenizers.
        'open_clip': ['open_clip_torch>=3.0', 'transformers>=4.40'],
        # depthclip view --rerun and --save.
        'rerun': ['rerun-sdk>=0.41'],
        # mkdocs.yml: the documents as a site.
        'docs': ['mkdocs-material>=9.5'],
        # python3 run.py test, and with --all.
        'test': ['hypothesis', 'mypy', 'onnx>=1.14', 'onnxruntime>=1.16', 'open_clip_torch>=3.0',
                 'proselint>=0.16', 'pytest>=8', 'pytest-randomly', 'pytest-xdist>=3.7',
                 'rosbags-image', 'ruff', 'types-PyYAML'],
        'nightly': ['colcon-core', 'colcon-ros', 'pylatexenc', 'pytest-cov>=7'],
    },
    zip_safe=False,
    entry_points={
        'console_scripts': [f'{name} = {target}' for name, target in EXECUTABLES.items()],
    },
)
