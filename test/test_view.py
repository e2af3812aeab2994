# SPDX-License-Identifier: Apache-2.0
"""`depthclip view`: what stands in files, in a recording of Rerun's, and behind a click."""

import re
import sys
from dataclasses import replace
from unittest import mock

import cv2
import numpy as np
import pytest
from calibrations import calibration_for
from drives import IMAGE_TOPIC, INFO_TOPIC, START, BagWriter
from untrained import tiny_untrained

from depthclip_ros.cli.main import main
from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator
from depthclip_ros.core.anchor import Adjustment
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.core.scenes import Scene as SeenScene
from depthclip_ros.drawing import overlay
from depthclip_ros.drawing.color import UNTRAINED, WARNING_HEIGHT
from depthclip_ros.messages.node_config import with_demo_settings
from depthclip_ros.sim import SimCamera
from depthclip_ros.sim.datasets import NANOSECONDS

CAMERA = SimCamera(160, 120, 260.0, 260.0, 79.5, 59.5)  # twice as long as NYU's
# Of what is shown with two decimals: the commands may compute with another number of threads than
# the tests, and what lies between two hundredths may be rounded to either.
ROUNDED = {'abs': 0.0051, 'rel': 1e-4}


@pytest.fixture
def bag(rgb, tmp_path):
    """A camera_info, an image, one whose encoding does not exist, and the first one mirrored."""
    writer = BagWriter(tmp_path / 'bag')
    with writer.writer:
        for number, image in enumerate((rgb, rgb, rgb[:, ::-1])):
            time = START * NANOSECONDS + number * NANOSECONDS // 2
            header = writer.messages.header(time, 'optical')
            writer.write(INFO_TOPIC, writer.messages.camera_info(header, CAMERA), time)
            writer.write(IMAGE_TOPIC, writer.messages.image(
                header, 'rgb8' if number != 1 else 'invisible8', np.ascontiguousarray(image)),
                time)
    return tmp_path / 'bag'


@pytest.fixture
def rerun():
    return pytest.importorskip('rerun.chunk', reason='rerun-sdk is not installed (extra rerun)')


def view(*arguments):
    return main(['view', *map(str, arguments)])


def recorded(path):
    """Rows of every entity of a recording in the order of the images."""
    from rerun.chunk import RrdReader
    rows = {}
    for chunk in RrdReader(path).stream().to_chunks():
        batch = chunk.to_record_batch()
        # Without times of day, whose nanoseconds Python has only with pandas.
        names = [f.name for f in batch.schema if not str(f.type).startswith('timestamp')]
        for row in batch.select(names).to_pylist():
            rows.setdefault(chunk.entity_path, []).append(
                {name.rpartition(':')[2]: value for name, value in row.items()})
    for entity in rows.values():
        entity.sort(key=lambda row: row.get('image') or 0)
    return rows


def pixels(row):
    """Numbers of a depth image."""
    form = row['format'][0]
    return np.asarray(row['buffer'][0], np.uint8).view(np.float32).reshape(
        form['height'], form['width'])


def test_view_says_what_the_patch_of_a_point_says(picture, rgb, demo_estimator, tmp_path, capsys):
    """Of the pixel's own patch; the focal length counts where it is told."""
    out = ['--weights', 'demo', '-o', tmp_path / 'out']
    assert view(picture, '--point', '130,100', '--point', '0,0', *out) == 0
    told = re.compile(r'([\d.]+) m \(spread ([\d.]+) m\): (.+?) (\d+)%, ')
    said = told.findall(capsys.readouterr().out)
    demo_estimator.reconfigure(with_demo_settings(DepthConfig(), 'demo')[0])
    prediction = demo_estimator.predict(rgb)
    rows, columns = prediction.patch_depth.shape
    for (x, y), (depth, spread, word, share) in zip(((130, 100), (0, 0)), said, strict=True):
        place = y * rows // 120, x * columns // 160
        weights = prediction.weights[:, place[0], place[1]]
        assert float(depth) == pytest.approx(prediction.patch_depth[place], **ROUNDED)
        assert float(spread) == pytest.approx(prediction.spread[place], **ROUNDED)
        assert word == demo_estimator.config.tokens[int(weights.argmax())]
        assert int(share) == pytest.approx(100 * weights.max(), abs=0.51)
    assert cv2.imread(str(tmp_path / 'out/001_room.png')).shape[0] > 300
    out[-1] = tmp_path / 'narrow'
    assert view(picture, '--point', '130,100', '--fov', '30', *out) == 0
    narrow, = told.findall(capsys.readouterr().out)
    assert float(narrow[0]) > 1.9 * float(said[0][0])


def test_view_names_what_it_cannot_use(picture, tmp_path, capsys):
    """What is broken stops nothing, and is counted."""
    out = ['--weights', 'demo', '-o', tmp_path / 'out']
    for points, words in ((['160,0'], 'outside of its 160 x 120 pixels'), (['1,1'] * 5, '5 poi')):
        given = [word for point in points for word in ('--point', point)]
        assert view(picture, *given, *out) == 1
        assert words in capsys.readouterr().err
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    (tmp_path / 'broken.mcap').write_bytes(b'no bag')
    assert view(tmp_path / 'missing.png', tmp_path / 'broken.mcap', tmp_path, '99', *out) == 1
    said = capsys.readouterr().err
    for text in ('no image or folder', 'broken.mcap is no file of a bag', 'broken.png',
                 'Webcam 99', '1 image shown, 4 not used'):
        assert text in said


def test_view_counts_the_scene(tmp_path, picture, rgb, demo_estimator, capsys):
    """The words' metres are those of the image's scene, and of its focal length."""
    config = DepthConfig(tokens=('a', 'b'), bins=(1.0, 2.0), scenes=('s', 't'),
                         scene_bins=(2.0, 4.0, 6.0, 8.0))
    seen = SeenScene(('s', 't'), np.array([0.25, 0.75], np.float32), 0.5, 't')
    prediction = replace(demo_estimator.predict(rgb), scene=seen)
    assert prediction.word_depths(config) == pytest.approx([3.0, 4.5])
    twice = replace(prediction, scene=None, focal_ratio=2.0, adjustment=Adjustment(3.0))
    assert twice.word_depths(config) == pytest.approx([6.0, 12.0])
    settings = tmp_path / 'depth.yaml'
    settings.write_text('/**: {ros__parameters: {scenes: [office, bathroom], weights: demo, '
                        'scene_templates: ["this room is a {}"]}}')
    assert view(picture, '--config', settings, '-o', tmp_path / 'o') == 0
    assert 'scene: ' in capsys.readouterr().out


def calibrated(folder):
    """An estimator with a calibration, and the parameter file that names it."""
    estimator = DepthEstimator(with_demo_settings(DepthConfig(), 'demo')[0], 'demo', 'cpu')
    written = calibration_for(estimator).save(folder, 'robot')
    estimator.reconfigure(estimator.config.replace(calibration=str(written)))
    settings = folder / 'robot.yaml'
    settings.write_text('/**:\n  ros__parameters:\n    weights: demo\n'
                        f'    calibration: {written}\n')
    return estimator, settings


@pytest.mark.parametrize('output', ['-o', '--save'])
def test_the_standard_deviation_of_a_calibration(
        output, request, picture, rgb, tmp_path, capsys):
    """As text, and in a recording whole."""
    if output == '--save':
        request.getfixturevalue('rerun')
    estimator, settings = calibrated(tmp_path)
    prediction = estimator.predict(rgb)
    assert view(picture, '--config', settings, '--point', '130,100',
                output, tmp_path / 'out.rrd') == 0
    text = capsys.readouterr().out
    if output == '--save':
        rows = recorded(tmp_path / 'out.rrd')
        np.testing.assert_allclose(pixels(rows['/stddev'][0]), prediction.stddev(), rtol=1e-4)
        text = rows['/said'][0]['text'][0]
        assert 'degrees wide' in text  # the camera is not known: another is assumed
    rows, columns = prediction.patch_depth.shape
    place = 100 * rows // 120, 130 * columns // 160
    said = re.search(r'([\d.]+) m ± ([\d.]+) m', text)
    assert [float(number) for number in said.groups()] == pytest.approx(
        [prediction.patch_depth[place], prediction.patch_stddev[place]], **ROUNDED)
    assert 'calibrated on a test, no longer zero-shot' in text


def test_a_recording_of_a_bag(rerun, bag, rgb, demo_estimator, tmp_path, capsys):
    """Every entity holds what the estimator says, with the bag's own camera_info."""
    path = tmp_path / 'out.rrd'
    assert view(bag, '--weights', 'demo', '--save', path) == 1
    said = capsys.readouterr().err
    assert 'invisible8' in said
    assert '2 images shown, 1 not used' in said
    recording = recorded(path)
    camera = CameraModel.pinhole(160, 120, 260.0)
    for number, image in enumerate((rgb, np.ascontiguousarray(rgb[:, ::-1]))):
        of = {entity: rows[number] for entity, rows in recording.items() if len(rows) == 2}
        prediction = demo_estimator.predict(CameraImage(image, camera))
        depth, weights = prediction.patch_depth, prediction.weights
        assert prediction.focal_ratio > 1.9
        for shown, expected in (
                (pixels(of['/depth']), prediction.depth),
                (of['/points']['positions'], (
                    camera.patch_rays(*depth.shape) * depth[..., None]).reshape(-1, 3)),
                (np.reshape(of['/camera']['image_from_camera'][0], (3, 3)).T, camera.K),
                (np.reshape(of['/words']['data'][0]['buffer'], weights.shape), weights)):
            np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-5)
        jpeg = cv2.imdecode(np.asarray(of['/camera/image']['blob'][0], np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(jpeg[..., ::-1].astype(float) - image).mean() < 12
        text = of['/said']['text'][0]
        for letter, which in (('A', 0), ('D', 3)):  # the nearest and the farthest
            u, v = of['/camera/patches']['centers'][which]
            place = int(v * depth.shape[0] / 120), int(u * depth.shape[1] / 160)
            np.testing.assert_allclose(of[f'/answers/{letter}']['values'][0]['buffer'],
                                       weights[:, place[0], place[1]], atol=1e-5)
            metres = re.search(rf'{letter}: ([\d.]+) m', text)[1]
            assert float(metres) == pytest.approx(depth[place], **ROUNDED)
        metres = re.search(rf'\| {demo_estimator.config.tokens[0]} \| ([\d.]+) \|', text)[1]
        assert float(metres) == pytest.approx(prediction.word_depths(
            demo_estimator.config)[0], **ROUNDED)
    assert view(bag, '--weights', 'demo', '--save', path) == 1
    assert 'not overwritten' in capsys.readouterr().err


@pytest.mark.parametrize('output', ['-o', '--save'])
def test_untrained_weights_say_so(
        output, request, picture, tmp_path, capsys, monkeypatch, tiny_weights):
    if output == '--save':
        request.getfixturevalue('rerun')
    settings = tiny_untrained(monkeypatch, tiny_weights, tmp_path)
    assert view(picture, '--config', settings, output, tmp_path / 'out.rrd') == 0
    out, err = capsys.readouterr()
    assert UNTRAINED in err
    if output == '--save':
        out = recorded(tmp_path / 'out.rrd')['/said'][0]['text'][0]
    else:
        stripe = cv2.imread(str(tmp_path / 'out.rrd/001_room.png'))[0, 5]  # above the charts
        assert (stripe == (40, 40, 200)).all()
    assert UNTRAINED in out


def test_a_recording_of_nothing_is_none(rerun, picture, tmp_path, capsys):
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    path = tmp_path / 'out.rrd'
    assert view(tmp_path / 'broken.png', '--weights', 'demo', '--save', path) == 1
    assert 'no image could be used' in capsys.readouterr().err
    assert not path.exists()
    assert view(picture, '--weights', 'demo', '--save', picture / 'out.rrd') == 1
    assert '--save' in capsys.readouterr().err


def test_a_webcam(rgb, tmp_path, capsys, monkeypatch):
    """A video stands in for its driver; it ends after so many images, or as it stops."""
    video = cv2.VideoWriter(str(tmp_path / 'video.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 10,
                            (160, 120))
    for _ in range(3):
        video.write(rgb[..., ::-1])
    video.release()
    capture, opened = cv2.VideoCapture, []
    monkeypatch.setattr(cv2, 'VideoCapture', lambda index: opened.append(index) or capture(
        str(tmp_path / 'video.avi')))
    out = ['--weights', 'demo', '-o', tmp_path / 'out']
    assert view('0', '--max-images', '2', *out) == 0
    assert len(list((tmp_path / 'out').iterdir())) == 2
    assert opened == [0]
    out[-1] = tmp_path / 'more'
    assert view('0', '--point', '500,500', *out) == 1
    assert capsys.readouterr().err.count('outside of its 160 x 120') == 1


class Screen:
    """What stands for OpenCV's window: it does what a user would, one thing a look at the keys."""

    def __init__(self, monkeypatch, *events):
        self.events, self.shown, self.open = list(events), [], False
        for name, stand_in in {
                'namedWindow': lambda *_: setattr(self, 'open', True),
                'setMouseCallback': lambda _, callback: setattr(self, 'callback', callback),
                'imshow': lambda _, picture: self.shown.append(picture.copy()),
                'waitKey': self.wait, 'getWindowProperty': lambda *_: float(self.open),
                'destroyAllWindows': lambda: setattr(self, 'open', False)}.items():
            monkeypatch.setattr(cv2, name, stand_in)
        monkeypatch.setenv('DISPLAY', ':0')

    def wait(self, _):
        event = self.events.pop(0)
        if isinstance(event, str):
            return ord(event)
        if event is None:
            self.open = False
        else:
            self.callback(*event, 0, None)
        return -1


def test_a_click_asks_its_patch(picture, rgb, demo_estimator, monkeypatch, capsys):
    """Which is said, framed and painted as the node's overlay is; a right click lets it go."""
    prediction = demo_estimator.predict(rgb)
    row, column = 4, 5  # of 6 x 8; the image is 768 x 576 pixels of the window
    inside = column * 96 + 3, row * 96 + 93
    screen = Screen(
        monkeypatch, (cv2.EVENT_LBUTTONDOWN, *inside), (cv2.EVENT_LBUTTONDOWN, 770, 5),
        (cv2.EVENT_MOUSEMOVE, 5, 5), (cv2.EVENT_RBUTTONDOWN, 0, 0), 'n')
    assert view(picture, '--weights', 'demo') == 0
    assert not screen.events
    assert not screen.open
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    metres = re.match(r'room\.png: ([\d.]+) m ', said[0])[1]
    assert float(metres) == pytest.approx(prediction.patch_depth[row, column], **ROUNDED)
    assert len(screen.shown) == 3  # a click beside the image changes nothing
    for shown, spot in zip(screen.shown, (None, (row, column), None), strict=True):
        drawn = overlay.draw(rgb, prediction, demo_estimator.config, spot, ['room.png'])
        # Of 256 levels, errors of float32 cross a border a few times in a million; the frame
        # around a patch alone is more than a thousandth of the picture.
        assert shown.shape == drawn.shape
        assert (shown != drawn).mean() < 1e-4


def test_a_click_below_the_warning(tiny_weights, picture, tmp_path, monkeypatch, capsys):
    """The same pixel of the image, which is lower in the window."""
    screen = Screen(monkeypatch, *((cv2.EVENT_LBUTTONDOWN, 10, y) for y in (
        20, 25, WARNING_HEIGHT + 575, WARNING_HEIGHT + 576)), 'n')
    assert view(picture, '--config', tiny_untrained(monkeypatch, tiny_weights, tmp_path)) == 0
    assert len(screen.shown) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(('events', 'shown'), [('q', 1), ([None], 1), ('nn', 2)])
def test_a_window_ends(picture, monkeypatch, tmp_path, capsys, events, shown):
    """By a key, or closed, or after the last image; a point outside of it is let go."""
    cv2.imwrite(str(tmp_path / 'zoom.png'), np.zeros((60, 80, 3), np.uint8))
    screen = Screen(monkeypatch, *events)
    assert view(tmp_path, '--point', '150,100', '--weights', 'demo') == 0
    assert len(screen.shown) == shown
    assert ('zoom.png: the point 150,100 is outside of its 80 x 60' in capsys.readouterr().err
            ) == (shown == 2)


def test_where_there_is_no_screen(picture, monkeypatch, capsys):
    """None that is known of, or an OpenCV that has no windows, or no Rerun."""
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    assert view(picture, '--weights', 'demo') == 1
    assert 'no display for a window. Give -o FOLDER' in capsys.readouterr().err
    assert view(picture, *(['--point', '1,1'] * 2), '--weights', 'demo') == 1
    assert 'one at a time' in capsys.readouterr().err
    Screen(monkeypatch)
    monkeypatch.setattr(cv2, 'namedWindow', mock.Mock(side_effect=cv2.error('not implemented')))
    assert view(picture, '--weights', 'demo') == 1
    assert 'opencv-python-headless' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'rerun', mock.Mock())
    monkeypatch.delenv('DISPLAY')
    assert view(picture, '--weights', 'demo', '--rerun') == 1
    assert 'no display. Give --save FILE.rrd' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'rerun', None)
    assert view(picture, '--weights', 'demo', '--rerun') == 1
    assert 'pip install rerun-sdk' in capsys.readouterr().err
