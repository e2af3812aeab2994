# SPDX-License-Identifier: Apache-2.0
"""Command line `depthclip`: a table of commands; each runs one function of this folder.

This file imports the standard library only, and a command's module when it runs: `depthclip
doctor` must work without any other package, and run.py parses command lines before packages are
installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING, NamedTuple

from depthclip_ros import __version__
from depthclip_ros.arguments import (
    COLORMAPS,
    MODEL,
    PROTOCOLS,
    Group,
    add_options,
    check_command,
    count,
    interval,
    not_negative,
    numbers,
    option,
    point,
    positive,
    switch,
    text,
    to_a_kilometre,
    whole,
)
from depthclip_ros.executables import command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from depthclip_ros.arguments import Argument


class Command(NamedTuple):
    """A command of `depthclip`, and its arguments."""

    name: str
    run: str  # module.function
    help: str  # a line in the list of commands
    description: str  # a paragraph
    options: tuple[Argument | Group, ...]


CAMERA = Group('', (
    option('--fov', type=positive, metavar='DEGREES',
           help='horizontal field of view of the camera: depth counts it as reference_focal says '
           '(without it and --camera-info: it does not)'),
    option('--camera-info', metavar='YAML',
           help='calibration of the camera, as the ROS tool camera_calibration writes it'),
))
COLORS = Group('colours of depth, even in its logarithm', (
    option('--range', type=interval, metavar='NEAR,FAR',
           help='metres of the brightest and the darkest colour (default: nearly all depth of the '
           "run; view: the words')"),
    option('--colormap', default=COLORMAPS[0], choices=COLORMAPS,
           help='default %(default)s'),
))
RAY = Group('Ray (needs the Python package ray)', (
    option('--ray', nargs='?', const='auto', metavar='ADDRESS',
           help='share the work out; auto (default): on the cluster that this machine belongs to, '
           'else here; local: here; or the address of a cluster'),
    option('--cpus', type=count, default=1, metavar='N',
           help='of each worker, and its threads (default 1)'),
    option('--gpus', type=positive, default=0, metavar='N',
           help='of each worker; 0.5 puts two on one (default 0)'),
    option('--retries', type=count, default=2, metavar='N',
           help='how often a task is repeated whose worker died (default 2)'),
))
CONVERSION = (
    Group('topics (default: found as depth.launch.py does)', (
        text('--image', 'TOPIC[,TOPIC]', 'of the images, with or without /compressed'),
        text('--camera-info', 'TOPIC[,TOPIC]'),
        text('--cameras', 'NAME,NAME',
             'names of several cameras, each the namespace of its new topics'),
        text('--anchor-topic', 'TOPIC', 'what the anchor of the parameter file listens to'),
        text('--namespace', 'NAME', 'of the new topics'),
    )),
    Group('what is written', (
        switch('--image-color', 'depth/image_color, too'),
        switch('--words', 'depth/words, too'),
        switch('--spread', 'depth/spread, too'),
        switch('--stddev', 'depth/stddev, too; needs a calibration'),
        option('--depth-encoding', default='', choices=('32FC1', '16UC1', '16UC1-png'),
               help="of depth (default: the parameter file's); 16UC1 are whole millimetres up to "
               '65.534 m, -png compressed on depth/image/compressedDepth'),
        option('--rate', type=positive, default=0.0, metavar='HZ',
               help='depth of at most so many images a second'),
        option('--every', type=count, default=1, metavar='N', help='depth of every Nth image'),
        option('--start', type=not_negative, default=0.0, metavar='SECONDS',
               help='leave out so much of the bag'),
        option('--end', type=positive, metavar='SECONDS', help='and all from there on'),
    )),
)


def recording(limit: int) -> Group:
    """Return the arguments of a recording with measured depth; `limit` is of --max-frames."""
    return Group('recording', (
        text('--image', 'TOPIC', 'of a bag with several cameras'),
        text('--depth', 'TOPIC', 'depth image, PointCloud2 or LaserScan (default: what is there)'),
        option('--camera-info', metavar='YAML',
               help="calibration of the camera, instead of the recording's own"),
        option('--depth-camera', metavar='YAML',
               help='calibration of the camera that measured depth, where it is another one '
               '(default: depth_camera.yaml of a folder, camera_info of a bag)'),
        option('--depth-rectified', choices=('auto', 'yes', 'no'), default='auto',
               help="whether a bag's depth images are rectified, so that P of their camera_info "
               'counts, not K and D (auto: where the topic says rect)'),
        option('--depth-unit', type=positive, default=0.0, metavar='METRES',
               help='what a stored unit of depth is (default: millimetres in 16 bits, metres in '
               '32)'),
        option('--tolerance', type=positive, default=0.05, metavar='SECONDS',
               help="between an image's and its depth's stamp (default %(default)g)"),
        option('--protocol', default='', choices=PROTOCOLS,
               help="of a data set: see what offline_eval's protocol crops (default: the whole "
               'image)'),
        option('--every', type=count, default=1, metavar='N',
               help='use every Nth frame (default %(default)d)'),
        option('--max-frames', type=count, default=limit, metavar='N',
               help='use at most N, evenly spread (default %(default)d)'),
    ))


COMMANDS = (
    Command(
        'demo', 'demo.run_demo', 'run the node on a real ROS graph and leave pictures to look at',
        'Start depth_node and a source of images as separate processes on a ROS graph of this '
        'machine only, record what comes out, and leave depth, pictures and clouds.', (
            Group('source of images (default: rendered rooms)', (
                Group('', (
                    option('--images', nargs='+', metavar='FILE_OR_FOLDER',
                           help='each picture is answered once'),
                    option('--video', metavar='FILE'),
                    option('--webcam', type=whole, metavar='N', help='/dev/videoN'),
                    option('--bag', metavar='PATH', help='rosbag2 bag, replayed once'),
                )),
                text('--image-topic', 'TOPIC', 'with --bag: which camera, where it has several'),
                option('--rate', type=positive, metavar='HZ',
                       help='images a second (default 10; with --images: as fast as answered); '
                       'with --bag: speed, 1 = as recorded'),
                option('--fov', type=positive, metavar='DEGREES',
                       help='horizontal field of view of the camera'),
                option('--camera-info', metavar='YAML', help='calibration of the camera'),
            )),
            *MODEL,
            option('--frames', type=count, metavar='N',
                   help='stop after N depth images (default 50; --images and --bag: all)'),
            COLORS,
            option('-o --output', default='demo_output', metavar='FOLDER',
                   help='default %(default)s/; beside an earlier demo a folder with a number'),
        )),
    Command(
        'predict', 'predict.predict_files', 'depth of image files, without ROS',
        'Write NAME_depth.png (16-bit millimetres, 0 = none) and NAME_patches.npy (metres) for '
        'every image, and when all are done, in the same colours, NAME_color.png and '
        'NAME_patches.png.', (
            option('paths', nargs='+', metavar='IMAGE', help='files or folders'),
            COLORS,
            CAMERA,
            *MODEL,
            option('-o --output', required=True, metavar='FOLDER',
                   help='nothing is overwritten'),
        )),
    Command(
        'calibrate', 'calibrate.calibrate',
        "settings for one's own robot from a minute of its own recording",
        'Correct depth by words for one camera, from a rosbag2 bag (image, camera_info and a '
        'depth image, a cloud or a scan), a folder with rgb/, depth/ and camera.yaml, or a data '
        "set's training split. Writes a parameter file, the calibration it names, and a report "
        '(.html, .md) beside it. Exit code 1 if the recording is refused.', (
            option('source', metavar='SOURCE', help='bag, folder, or data set'),
            option('-o --output', required=True, metavar='YAML',
                   help='parameter file to write; nothing is overwritten'),
            *MODEL,
            recording(200),
            COLORS,
            switch('--anyway', 'calibrate from a recording that should be refused; the report '
                   'says why it should'),
            option('--variant', default='auto', choices=('auto', 'full', 'scale', 'none'),
                   help='what to fit (default: what held-out blocks show to be worth it)'),
        )),
    Command(
        'compare', 'compare.compare', "how good depth is on one's own robot",
        'Compare depth with what a sensor measured beside it: in a rosbag2 bag with image, '
        'camera_info and a depth image, a cloud or a scan (projected through tf), or a folder '
        'with rgb/, depth/ and camera.yaml. A bag that `depthclip bag` has written is compared as '
        'it is, without a network. Prints metrics, with the best constant and the best scale '
        'beside them, and the error by distance.', (
            option('sources', nargs='+', metavar='RECORDING',
                   help='bags or folders; several are pooled, too'),
            text('-o --output', 'FOLDER',
                 'write comparison.html, .md, .json and figures/ there; nothing is overwritten'),
            text('--said', 'TOPIC', "depth image in the bag to compare, instead of the network's "
                 'answer (default: what `depthclip bag` has written, where there is such)'),
            *MODEL,
            recording(300),
            option('--max-depth', type=to_a_kilometre, default=0.0, metavar='METRES',
                   help='what is measured from here on does not count, at most 1000 (default: '
                   '200)'),
        )),
    Command(
        'words', 'words.words',
        'words as an experiment: how alike, and what they say of a picture',
        'Show how alike words are to the model, how much each answers in every patch of pictures, '
        'and the depth that follows; of a second set of words beside it with --against. Prints '
        'tables; with -o also figures, on a page to open in a browser.', (
            option('words', metavar='WORDS',
                   help='with commas between them, from near to far: "giant, close, far"'),
            text('--against', 'WORDS', 'another set of words'),
            option('--bins', type=numbers, metavar='METRES',
                   help="a depth for each word, such as 1,2,3 (default: the settings', where "
                   'there are as many; else evenly spaced over their span)'),
            option('--image', nargs='+', default=[], metavar='PATH',
                   help='files, folders and rosbag2 bags (default: the words alone)'),
            text('--topic', 'TOPIC', 'of the images, of a bag with several cameras'),
            option('--max-images', type=count, default=50, metavar='N',
                   help='of each PATH, evenly spread (default %(default)d)'),
            *MODEL,
            text('-o --output', 'FOLDER',
                 'write words.html, words.md and figures/ there; no page is overwritten'),
        )),
    Command(
        'view', 'view.view', 'how much each word answers, on pictures or live',
        'Show every image with its depth, and how much each word answers: in a grid of patches, '
        'or as bars at the points that are given or clicked, with depth, its standard deviation '
        '(with a calibration) and scene (with scenes). In a window of OpenCV (a click asks a '
        'patch, q ends), unless --rerun, --save or -o say otherwise.', (
            option('images', nargs='+', metavar='PATH',
                   help='files, folders, rosbag2 bags, or the number of a webcam, such as 0'),
            option('--point', type=point, action='append', metavar='X,Y', dest='points',
                   default=[], help='pixel to look at; up to four'),
            Group('', (
                switch('--rerun', "open Rerun's viewer: image, depth, cloud and bars in one "
                       'window; needs the extra [rerun]'),
                text('--save', 'FILE.rrd',
                     'write the same as a recording to share; nothing is overwritten'),
            )),
            text('--topic', 'TOPIC', 'of the images, of a bag with several cameras'),
            option('--max-images', type=count, default=0, metavar='N',
                   help='of each PATH, evenly spread; of a webcam the first N (default 50; of a '
                   'webcam in a window without end)'),
            COLORS,
            CAMERA,
            *MODEL,
            text('-o --output', 'FOLDER', 'write pictures there; nothing is overwritten'),
        )),
    Command(
        'bag', 'bag.convert_bag', 'depth of all images of a bag, in a new bag, without ROS',
        'Write a bag that holds all of a rosbag2 bag and, for every image of its camera, '
        'depth/image, depth/camera_info and points, the same as the node publishes. Exit code 1 '
        'if no image has depth.', (
            option('bag', metavar='BAG', help='folder, or a lone .mcap or .db3 file'),
            option('-o --output', required=True, metavar='FOLDER',
                   help='new bag; nothing is overwritten'),
            switch('--resume', 'leave a bag that is done, and make an unfinished one again'),
            *MODEL,
            *CONVERSION,
        )),
    Command(
        'bags', 'bag.convert_bags', 'many bags with depth, also on a cluster',
        'Convert every bag of a folder, or of a list of paths, as `depthclip bag` does; one that '
        'fails stops no other. OUTPUT/manifest.jsonl says what became of each. Exit code 1 if any '
        'failed.', (
            option('source', metavar='FOLDER_OR_LIST',
                   help='folder with bags, or text file with the path of one on every line'),
            option('-o --output', required=True, metavar='FOLDER',
                   help='for the new bags and the manifest; new or empty'),
            switch('--resume', 'leave bags that are done in OUTPUT, and make the others'),
            *MODEL,
            *CONVERSION,
            RAY,
        )),
    Command(
        'doctor', 'doctor.examine', 'check this machine, and say how to repair it',
        'Check interpreter, ROS, PyTorch, CLIP, weights and caches. Exit code 1 if anything '
        'fails.', ()),
    Command(
        'fetch', 'weights.fetch_weights', 'download CLIP weights ahead of time',
        'Download official CLIP weights into the cache ($DEPTHCLIP_CACHE, else '
        '~/.cache/depthclip_ros) and verify their SHA-256. Without a name: list the names, and '
        'which of them are here.', (
            option('name', nargs='?', help="such as RN50, or 'ViT-B/32'"),
        )),
    Command(
        'encode-text', 'weights.encode_text', 'fill the cache of text features',
        'Encode the tokens of a parameter file and keep the result in the cache, so that a robot '
        'never runs the text encoder.', (
            option('config', metavar='CONFIG', help='parameter file (YAML)'),
            text('--weights', 'NAME_OR_FILE'),
        )),
    Command(
        'quantize', 'quantize.quantize', 'make the network in 8 bits for precision: int8',
        'Quantise the network of a parameter file and keep the result in the cache, where '
        "precision: int8 looks for it; say how far depth is then from float32's. Needs the extra "
        '[int8].', (
            option('--images', nargs='+', metavar='FILE_OR_FOLDER',
                   help="the camera's own pictures to calibrate on, at least 8, of more than 64 "
                   'evenly chosen ones (default: rendered rooms)'),
            *MODEL,
        )),
    Command(
        'stats', 'stats.show_stats', 'health of running nodes, live',
        'Show the reports of depth nodes on /diagnostics, as a table that is refreshed in place '
        'in a terminal. Exit code 1 if no report comes.', (
            option('node', nargs='?', default='', metavar='NODE',
                   help='such as /front/depth_node (default: all)'),
            switch('--once', 'print once and end'),
            option('--timeout', type=positive, default=5.0, metavar='SECONDS',
                   help='give up when no report comes for this long (default %(default)g)'),
        )),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `depthclip`; returns its exit code, see `executables.command`; 2: wrong usage."""
    return command('depthclip', _run, arguments)


def _run(arguments: list[str]) -> int:
    parser = _parser()
    check_command(parser, arguments, [command.name for command in COMMANDS])
    options = parser.parse_args(arguments)
    module, _, function = options.run.partition('.')
    return int(getattr(importlib.import_module(f'depthclip_ros.cli.{module}'), function)(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='depthclip', description='Depth from a plain camera by language (DepthCLIP).')
    parser.add_argument('--version', action='version', version=f'depthclip_ros {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for entry in COMMANDS:
        child = commands.add_parser(entry.name, help=entry.help, description=entry.description)
        child.set_defaults(run=entry.run)
        add_options(child, entry.options)
    return parser


if __name__ == '__main__':
    sys.exit(main())
