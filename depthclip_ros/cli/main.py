# SPDX-License-Identifier: Apache-2.0
"""Command line `depthclip`: one function of the library per sub-command.

This file imports the standard library only, and every sub-command imports what it needs when it
runs: `depthclip doctor` must work where nothing else does.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING

from depthclip_ros import __version__
from depthclip_ros.arguments import (
    count,
    not_negative,
    numbers,
    point,
    positive,
    to_a_kilometre,
    whole,
)
from depthclip_ros.executables import missing_package, wait_shortly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    _Commands: TypeAlias = 'argparse._SubParsersAction[argparse.ArgumentParser]'  # noqa: SLF001

DEFAULT_OUTPUT = 'demo_output'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `depthclip`; returns its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    wait_shortly()
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print('depthclip: interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as: depthclip fetch | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ImportError as error:
        reason = missing_package(error)
        if not reason:
            raise
        print(f'depthclip {options.command}: {reason}', file=sys.stderr)
        return 1
    except _library_errors() as error:
        print(f'depthclip {options.command}: {error}', file=sys.stderr)
        return 1


def _library_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is complete; none occurs where the core cannot be imported."""
    try:
        from depthclip_ros.core.errors import DepthClipError
    except ImportError:
        return ()
    return (DepthClipError,)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='depthclip', description='Depth from a plain camera by language (DepthCLIP).')
    parser.add_argument('--version', action='version', version=f'depthclip_ros {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    _add_demo(commands)
    _add_predict(commands)
    _add_calibrate(commands)
    _add_compare(commands)
    _add_words(commands)
    _add_view(commands)
    _add_bag(commands)
    _add_bags(commands)
    _add_doctor(commands)
    _add_fetch(commands)
    _add_encode_text(commands)
    _add_quantize(commands)
    _add_stats(commands)
    return parser


def _add_demo(commands: _Commands) -> None:
    parser = commands.add_parser(
        'demo', help='run the node on a real ROS graph and leave pictures to look at',
        description='Start depth_node and a source of images as separate processes on a ROS graph '
        'of this machine only, record what comes out, and leave depth, pictures and clouds.')
    source = parser.add_argument_group('source of images (default: rendered rooms)')
    one = source.add_mutually_exclusive_group()
    one.add_argument('--images', nargs='+', metavar='FILE_OR_FOLDER',
                     help='each picture is answered once')
    one.add_argument('--video', metavar='FILE')
    one.add_argument('--webcam', type=whole, metavar='N', help='/dev/videoN')
    one.add_argument('--bag', metavar='PATH', help='rosbag2 bag, replayed once')
    source.add_argument('--image-topic', default='', metavar='TOPIC',
                        help='with --bag: which camera, where it has several')
    source.add_argument('--rate', type=positive, metavar='HZ',
                        help='images a second (default 10; with --images: as fast as answered); '
                        'with --bag: speed, 1 = as recorded')
    source.add_argument('--fov', type=positive, metavar='DEGREES',
                        help='horizontal field of view of the camera')
    source.add_argument('--camera-info', metavar='YAML', help='calibration of the camera')
    _add_model_options(parser)
    parser.add_argument('--frames', type=count, metavar='N',
                        help='stop after N depth images (default 50; --images and --bag: all)')
    parser.add_argument('--seconds', type=positive, metavar='S',
                        help='stop S seconds after the first depth image (default 60; --images '
                        'and --bag: no limit)')
    parser.add_argument('--pictures', type=count, metavar='N',
                        help='how many frames to leave as pictures (default 10; --images: all)')
    parser.add_argument('--timeout', type=positive, default=120.0, metavar='SECONDS',
                        help='fail when no depth arrives for this long (default %(default)g)')
    parser.add_argument('-o', '--output', default=DEFAULT_OUTPUT, metavar='FOLDER',
                        help='default %(default)s/')
    parser.set_defaults(run=_run('demo.run_demo'))


def _add_predict(commands: _Commands) -> None:
    parser = commands.add_parser(
        'predict', help='depth of image files, without ROS',
        description='Write NAME_depth.png (16-bit millimetres, 0 = none), NAME_color.png, '
        'NAME_patches.npy (metres) and NAME_patches.png for every image.')
    parser.add_argument('paths', nargs='+', metavar='IMAGE', help='files or folders')
    _add_camera_options(parser)
    _add_model_options(parser)
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER')
    parser.set_defaults(run=_run('predict.predict_files', 'paths', 'output', 'config', 'weights',
                                 'device', 'fov', 'camera_info'))


def _add_camera_options(parser: argparse.ArgumentParser) -> None:
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument('--fov', type=positive, metavar='DEGREES',
                        help='horizontal field of view of the camera: depth counts it as '
                        'reference_focal says (without it and --camera-info: it does not)')
    camera.add_argument('--camera-info', metavar='YAML',
                        help='calibration of the camera, as the ROS tool camera_calibration '
                        'writes it')


def _add_calibrate(commands: _Commands) -> None:
    parser = commands.add_parser(
        'calibrate', help="settings for one's own robot from a minute of its own recording",
        description='Correct depth by words for one camera, from a rosbag2 bag (image, '
        'camera_info and a depth image, a cloud or a scan), a folder with rgb/, depth/ and '
        "camera.yaml, or a data set's training split. Writes a parameter file, the calibration "
        'it names, and a report (.html, .md) beside it. Exit code 1 if the recording is refused.')
    parser.add_argument('source', metavar='SOURCE', help='bag, folder, or data set')
    parser.add_argument('-o', '--output', required=True, metavar='YAML',
                        help='parameter file to write; nothing is overwritten')
    _add_model_options(parser)
    _add_recording_options(parser, 200)
    parser.add_argument('--anyway', action='store_true',
                        help='calibrate from a recording that should be refused; the report says '
                        'why it should')
    parser.add_argument('--variant', default='auto',
                        choices=('auto', 'full', 'scale', 'none'),
                        help='what to fit (default: what held-out blocks show to be worth it)')
    parser.set_defaults(run=_run('calibrate.calibrate'))


def _add_compare(commands: _Commands) -> None:
    parser = commands.add_parser(
        'compare', help="how good depth is on one's own robot",
        description='Compare depth with what a sensor measured beside it: in a rosbag2 bag with '
        'image, camera_info and a depth image, a cloud or a scan (projected through tf), or a '
        'folder with rgb/, depth/ and camera.yaml. A bag that `depthclip bag` has written is '
        'compared as it is, without a network. Prints metrics, with the best constant and the '
        'best scale beside them, and the error by distance.')
    parser.add_argument('sources', nargs='+', metavar='RECORDING',
                        help='bags or folders; several are pooled, too')
    parser.add_argument('-o', '--output', default='', metavar='FOLDER',
                        help='write comparison.json, .md, .html and .png there; nothing is '
                        'overwritten')
    parser.add_argument('--figures', action='store_true',
                        help="with -o: the paper's Figures 3 to 5 of these recordings, too")
    parser.add_argument('--said', default='', metavar='TOPIC',
                        help="depth image in the bag to compare, instead of the network's answer "
                        '(default: what `depthclip bag` has written, where there is such)')
    _add_model_options(parser)
    _add_recording_options(parser, 300)
    parser.add_argument('--max-depth', type=to_a_kilometre, default=0.0, metavar='METRES',
                        help='what is measured from here on does not count, at most 1000 '
                        '(default: 200)')
    _add_ray_options(parser)
    parser.set_defaults(run=_run('compare.compare'))


def _add_words(commands: _Commands) -> None:
    parser = commands.add_parser(
        'words', help='words as an experiment: how alike, and what they say of a picture',
        description='Show how alike words are to the model, how much each answers in every patch '
        'of pictures, and the depth that follows; of a second set of words beside it with '
        '--against. Prints tables; with -o also figures, on a page to open in a browser.')
    parser.add_argument('words', metavar='WORDS',
                        help='with commas between them, from near to far: "giant, close, far"')
    parser.add_argument('--against', default='', metavar='WORDS', help='another set of words')
    parser.add_argument('--bins', type=numbers, metavar='METRES',
                        help="a depth for each word, such as 1,2,3 (default: the settings', where "
                        'there are as many; else evenly spaced over their span)')
    parser.add_argument('--image', nargs='+', default=[], metavar='PATH',
                        help='files, folders and rosbag2 bags (default: the words alone)')
    parser.add_argument('--topic', default='', metavar='TOPIC',
                        help='of the images, of a bag with several cameras')
    parser.add_argument('--max-images', type=count, default=50, metavar='N',
                        help='of each PATH, evenly spread (default %(default)d)')
    _add_model_options(parser)
    parser.add_argument('-o', '--output', default='', metavar='FOLDER',
                        help='write words.html, words.md and figures/ there; no page is '
                        'overwritten')
    parser.set_defaults(run=_run('words.words'))


def _add_view(commands: _Commands) -> None:
    parser = commands.add_parser(
        'view', help='how much each word answers, on pictures or live',
        description='Show every image with its depth, and how much each word answers: in a grid '
        'of patches, or as bars at the points that are given or clicked, with depth, its standard '
        'deviation (with a calibration) and scene (with scenes). In a window of OpenCV (a click '
        'asks a patch, q ends), unless --rerun, --save or -o say otherwise.')
    parser.add_argument('images', nargs='+', metavar='PATH',
                        help='files, folders, rosbag2 bags, or the number of a webcam, such as 0')
    parser.add_argument('--point', type=point, action='append', metavar='X,Y',
                        help='pixel to look at; up to four')
    rerun = parser.add_mutually_exclusive_group()
    rerun.add_argument('--rerun', action='store_true',
                       help="open Rerun's viewer: image, depth, cloud and bars in one window; "
                       'needs the extra [rerun]')
    rerun.add_argument('--save', default='', metavar='FILE.rrd',
                       help='write the same as a recording to share; nothing is overwritten')
    parser.add_argument('--topic', default='', metavar='TOPIC',
                        help='of the images, of a bag with several cameras')
    parser.add_argument('--max-images', type=count, default=0, metavar='N',
                        help='of each PATH, evenly spread; of a webcam the first N (default 50; '
                        'of a webcam in a window without end)')
    _add_camera_options(parser)
    _add_model_options(parser)
    parser.add_argument('-o', '--output', default='', metavar='FOLDER',
                        help='write pictures there')
    parser.set_defaults(run=_run('view.view'))


def _add_bag(commands: _Commands) -> None:
    parser = commands.add_parser(
        'bag', help='depth of all images of a bag, in a new bag, without ROS',
        description='Write a bag that holds all of a rosbag2 bag and, for every image of its '
        'camera, depth/image, depth/camera_info and points, the same as the node publishes. '
        'Exit code 1 if no image has depth.')
    parser.add_argument('bag', metavar='BAG', help='folder, or a lone .mcap or .db3 file')
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER',
                        help='new bag; nothing is overwritten')
    parser.add_argument('--resume', action='store_true',
                        help='leave a bag that is done, and make an unfinished one again')
    _add_model_options(parser)
    add_bag_options(parser)
    parser.set_defaults(run=_run('bag.convert_bag'))


def add_bag_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how bags are converted."""
    cameras = parser.add_argument_group('topics (default: found as depth.launch.py does)')
    cameras.add_argument('--image', default='', metavar='TOPIC[,TOPIC]',
                         help='of the images, with or without /compressed')
    cameras.add_argument('--camera-info', default='', metavar='TOPIC[,TOPIC]')
    cameras.add_argument('--cameras', default='', metavar='NAME,NAME',
                         help='names of several cameras, each the namespace of its new topics')
    cameras.add_argument('--anchor-topic', default='', metavar='TOPIC',
                         help='what the anchor of the parameter file listens to')
    cameras.add_argument('--namespace', default='', metavar='NAME', help='of the new topics')
    outputs = parser.add_argument_group('what is written')
    outputs.add_argument('--image-color', action='store_true', help='depth/image_color, too')
    outputs.add_argument('--words', action='store_true', help='depth/words, too')
    outputs.add_argument('--spread', action='store_true', help='depth/spread, too')
    outputs.add_argument('--stddev', action='store_true',
                         help='depth/stddev, too; needs a calibration')
    outputs.add_argument('--depth-encoding', default='', choices=('32FC1', '16UC1', '16UC1-png'),
                         help="of depth (default: the parameter file's); 16UC1 are whole "
                         'millimetres up to 65.535 m, -png compressed on '
                         'depth/image/compressedDepth')
    outputs.add_argument('--rate', type=positive, default=0.0, metavar='HZ',
                         help='depth of at most so many images a second')
    outputs.add_argument('--every', type=count, default=1, metavar='N',
                         help='depth of every Nth image')
    outputs.add_argument('--start', type=not_negative, default=0.0, metavar='SECONDS',
                         help='leave out so much of the bag')
    outputs.add_argument('--end', type=positive, metavar='SECONDS', help='and all from there on')
    outputs.add_argument('--storage', default='', choices=('mcap', 'sqlite3'),
                         help='default: as the bag')
    outputs.add_argument('--compression', default='',
                         choices=('none', 'zstd', 'message', 'file'),
                         help="zstd: of an mcap's chunks; message, file: zstd of each "
                         '(default: as the bag)')


def _add_bags(commands: _Commands) -> None:
    parser = commands.add_parser(
        'bags', help='many bags with depth, also on a cluster',
        description='Convert every bag of a folder, or of a list of paths, as `depthclip bag` '
        'does; one that fails stops no other. OUTPUT/manifest.jsonl says what became of each. '
        'Exit code 1 if any failed.')
    parser.add_argument('source', metavar='FOLDER_OR_LIST',
                        help='folder with bags, or text file with the path of one on every line')
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER',
                        help='for the new bags and the manifest; new or empty')
    parser.add_argument('--resume', action='store_true',
                        help='leave bags that are done in OUTPUT, and make the others')
    _add_model_options(parser)
    add_bag_options(parser)
    _add_ray_options(parser)
    parser.set_defaults(run=_run('bags.convert_bags'))


def _add_ray_options(parser: argparse.ArgumentParser) -> None:
    ray = parser.add_argument_group('Ray (needs the Python package ray)')
    ray.add_argument('--ray', nargs='?', const='auto', metavar='ADDRESS',
                     help='share the work out; auto (default): on the cluster that this machine '
                     'belongs to, else here; local: here; or the address of a cluster')
    ray.add_argument('--workers', type=count, metavar='N',
                     help='default: as many as CPUs or GPUs are enough for')
    ray.add_argument('--cpus', type=count, metavar='N',
                     help='of each worker, and its threads (default 1)')
    ray.add_argument('--gpus', type=positive, metavar='N',
                     help='of each worker; 0.5 puts two on one (default 0)')
    ray.add_argument('--retries', type=count, metavar='N',
                     help='how often a task is repeated whose worker died (default 2)')


def _add_doctor(commands: _Commands) -> None:
    parser = commands.add_parser(
        'doctor', help='check this machine, and say how to repair it',
        description='Check interpreter, ROS, PyTorch, CLIP, weights and caches. Exit code 1 if '
        'anything fails.')
    parser.add_argument('--json', action='store_true', dest='as_json', help='machine-readable')
    parser.set_defaults(run=_run('doctor.examine', 'as_json'))


def _add_fetch(commands: _Commands) -> None:
    parser = commands.add_parser(
        'fetch', help='download CLIP weights ahead of time',
        description='Download official CLIP weights into the cache and verify their SHA-256. '
        'Without a name: list the names, and which of them are here.')
    parser.add_argument('name', nargs='?', help="such as RN50, or 'ViT-B/32'")
    parser.add_argument('--cache-dir', metavar='FOLDER',
                        help='default: $DEPTHCLIP_CACHE, else ~/.cache/depthclip_ros')
    parser.set_defaults(run=_run('weights.fetch_weights', 'name', 'cache_dir'))


def _add_encode_text(commands: _Commands) -> None:
    parser = commands.add_parser(
        'encode-text', help='fill the cache of text features',
        description='Encode the tokens of a parameter file and keep the result in the cache, so '
        'that a robot never runs the text encoder.')
    parser.add_argument('config', metavar='CONFIG', help='parameter file (YAML)')
    parser.add_argument('--weights', default='', metavar='NAME_OR_FILE')
    parser.set_defaults(run=_run('weights.encode_text', 'config', 'weights'))


def _add_quantize(commands: _Commands) -> None:
    parser = commands.add_parser(
        'quantize', help='make the network in 8 bits for precision: int8',
        description='Quantise the network of a parameter file and keep the result in the cache, '
        "where precision: int8 looks for it; say how far depth is then from float32's. Needs the "
        'extra [int8].')
    parser.add_argument('--images', dest='paths', nargs='+', metavar='FILE_OR_FOLDER',
                        help="the camera's own pictures to calibrate on, at least 8, of more than "
                        '64 evenly chosen ones (default: rendered rooms)')
    _add_model_options(parser)
    parser.set_defaults(run=_run('quantize.quantize', 'paths', 'config', 'weights', 'device'))


def _add_stats(commands: _Commands) -> None:
    parser = commands.add_parser(
        'stats', help='health of running nodes, live',
        description='Show what depth nodes tell on /diagnostics, as a table that is refreshed in '
        'place; as plain lines where the output is no terminal. Exit code 1 if nothing is told.')
    parser.add_argument('node', nargs='?', default='', metavar='NODE',
                        help='such as /front/depth_node (default: all)')
    parser.add_argument('--once', action='store_true', help='print once and end')
    parser.add_argument('--json', action='store_true', dest='as_json',
                        help='one JSON object a line')
    parser.add_argument('--timeout', type=positive, default=5.0, metavar='SECONDS',
                        help='give up when nothing is told for this long (default %(default)g)')
    parser.set_defaults(run=_run('stats.show_stats', 'node', 'once', 'as_json', 'timeout'))


def _add_recording_options(parser: argparse.ArgumentParser, most: int) -> None:
    recording = parser.add_argument_group('recording')
    recording.add_argument('--image', default='', metavar='TOPIC',
                           help='of a bag with several cameras')
    recording.add_argument('--depth', default='', metavar='TOPIC',
                           help='depth image, PointCloud2 or LaserScan (default: what is there)')
    recording.add_argument('--camera-info', metavar='YAML',
                           help="calibration of the camera, instead of the recording's own")
    recording.add_argument('--depth-unit', type=positive, default=0.0, metavar='METRES',
                           help='what a stored unit of depth is (default: millimetres in 16 bits, '
                           'metres in 32)')
    recording.add_argument('--tolerance', type=positive, default=0.05, metavar='SECONDS',
                           help="between an image's and its depth's stamp (default %(default)g)")
    recording.add_argument('--protocol', default='', choices=('depthclip', 'bts', 'kitti'),
                           help="of a data set: see what offline_eval's protocol crops (default: "
                           'the whole image)')
    recording.add_argument('--every', type=count, default=1, metavar='N',
                           help='use every Nth frame (default %(default)d)')
    recording.add_argument('--max-frames', type=count, default=most, metavar='N',
                           help='use at most N, evenly spread (default %(default)d)')


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--config', metavar='YAML', help='ROS parameter file (default: built in)')
    parser.add_argument('--weights', default='', metavar='NAME_OR_FILE',
                        help="official name, file, or 'untrained' (meaningless depth)")
    parser.add_argument('--device', default='', metavar='DEVICE',
                        help='auto, cpu, cuda or cuda:N')


def _run(function: str, *names: str) -> Callable[[argparse.Namespace], int]:
    """What runs a command: a function of a module here, which is imported only then.

    It is given the options of these names, or all options as they are.
    """
    def run(options: argparse.Namespace) -> int:
        module, _, name = function.partition('.')
        call = getattr(importlib.import_module(f'.{module}', __package__), name)
        return int(call(**{n: getattr(options, n) for n in names}) if names else call(options))
    return run


if __name__ == '__main__':
    sys.exit(main())
