# SPDX-License-Identifier: Apache-2.0
"""Images go in over DDS, depth comes out: two real processes."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')

import cv2
import numpy as np
from clip_standin import synthetic_rgb
from lifecycle_msgs.msg import State
from ros_harness import (
    FRAME,
    INPUT_HEIGHT,
    INPUT_WIDTH,
    OUTPUTS,
    TEMPERATURE,
    Peer,
    adds_up,
    camera_info,
    cloud_array,
    counters,
    depth_array,
    image,
    running,
    tiny_arguments,
    values_of,
)
from sensor_msgs.msg import CompressedImage, Image

from depthclip_ros.core import CameraImage, DepthConfig, DepthEstimator
from depthclip_ros.core.camera import CameraModel
from depthclip_ros.drawing.overlay import draw
from depthclip_ros.messages.image_io import to_rgb

HEIGHT, WIDTH = 120, 200
RGB = synthetic_rgb(5, HEIGHT, WIDTH)
DISTORTIONS = {
    'plumb_bob': ((-0.28, 0.09, 0.001, -0.0007, 0.0), 'plumb_bob'),
    'equidistant': ((0.05, -0.02, 0.004, -0.001), 'equidistant'),
}


@pytest.fixture(scope='module')
def node(domain, cache, tiny_weights):
    with running(tiny_arguments(tiny_weights), domain=domain, cache=cache) as node:
        yield node


@pytest.fixture(scope='module')
def peer(node, domain):
    with Peer(domain, listen=('depth/image', 'depth/camera_info', 'points'), node=node) as peer:
        peer.ready('depth/image', 'depth/camera_info', 'points')
        peer.ask(image(peer.header(), RGB, 'rgb8'))
        yield peer


@pytest.fixture
def anew_afterwards(peer):
    """Configure the node anew after a test, so that it knows no camera_info."""
    yield
    peer.bring(State.PRIMARY_STATE_UNCONFIGURED)
    peer.bring(State.PRIMARY_STATE_ACTIVE)
    peer.ask(image(peer.header(), RGB, 'rgb8'))


@pytest.mark.parametrize(('encoding', 'height', 'width'), [
    ('rgb8', HEIGHT, WIDTH), ('bgr8', 96, 128), ('mono16', 61, 47), ('bayer_rggb8', 240, 320),
    ('yuyv', 120, 200)])
def test_one_depth_per_image_and_it_is_the_estimators(peer, estimator, encoding, height, width):
    """Of any encoding, the size changing each time; what colours are is asked in other tests."""
    pixels = synthetic_rgb(height, 300, 400)[:height, :width]
    pixels = {'bgr8': pixels[..., ::-1], 'mono16': pixels[..., 1].astype(np.uint16) * 257,
              'bayer_rggb8': pixels[..., 1], 'yuyv': pixels[..., :2]}.get(encoding, pixels)
    message = image(peer.header(), pixels, encoding)
    peer.send(message)
    depth = peer.wait_stamp('depth/image', message.header.stamp)
    assert depth.header == message.header
    assert (depth.height, depth.width, depth.encoding) == (height, width, '32FC1')
    expected = estimator.predict(np.ascontiguousarray(to_rgb(message))).depth
    np.testing.assert_allclose(depth_array(depth), expected, atol=1e-5)
    assert expected.std() > 0.01, 'the test image has no depth to tell apart'
    _, values = peer.diagnostics('depth_node: frames', adds_up)
    assert len(peer.find('depth/image', message.header.stamp)) == 1
    assert counters(values)['dropped'] == 0


def turned(info):
    """The camera_info of the left one of a stereo pair: R turns it, and P is another than K."""
    info.r = cv2.Rodrigues(np.array([0.02, -0.1, 0.01]))[0].ravel()
    info.p[2] += 2.0
    info.p[6] -= 3.0
    return info


@pytest.mark.parametrize('distortion', DISTORTIONS)
def test_points_reproject_to_their_patch_centres(
        peer, estimator, distortion, anew_afterwards):
    d, model = DISTORTIONS[distortion]
    header = peer.header()
    info = turned(camera_info(header, WIDTH, HEIGHT, d=d, model=model))
    expected = estimator.predict(CameraImage(RGB, CameraModel.from_info(info))).patch_depth
    project = cv2.fisheye.projectPoints if model == 'equidistant' else cv2.projectPoints
    k = np.array(info.k).reshape(3, 3)

    def points_of_this_camera():
        """The cloud, once the node has this camera_info; the image may overtake it."""
        nonlocal header
        header = info.header = peer.header()
        peer.send(info)
        peer.ask(image(header, RGB, 'rgb8'))
        try:
            depth_info = peer.wait_stamp('depth/camera_info', header.stamp, timeout=2)
        except AssertionError:
            return None
        return list(depth_info.d) == list(info.d) and peer.wait_stamp('points', header.stamp)

    # The first may have been predicted before the camera_info came, if there was none at all.
    for _ in range(2):
        cloud = peer.wait(points_of_this_camera, 'points with the new camera_info')
    assert cloud.header == header
    of_depth, = peer.find('depth/camera_info', header.stamp)
    for part in 'dkrp':
        assert list(getattr(of_depth, part)) == list(getattr(info, part)), part
    points = cloud_array(cloud)
    h, w = estimator.grid
    assert points.shape == (h, w, 3)
    assert cloud.is_dense
    np.testing.assert_allclose(points[..., 2], expected, atol=1e-5)
    pixels, _ = project(points.reshape(-1, 1, 3).astype(float), np.zeros(3), np.zeros(3), k,
                        np.array(info.d))
    # Patch j of w covers the pixels from j*W/w to (j+1)*W/w; pixel centres are integers.
    u, v = np.meshgrid((np.arange(w) + 0.5) * WIDTH / w - 0.5,
                       (np.arange(h) + 0.5) * HEIGHT / h - 0.5)
    error = np.linalg.norm(pixels.reshape(h, w, 2) - np.dstack([u, v]), axis=2)
    assert error.max() < 0.5


def test_depth_and_points_are_within_range(peer, tiny_weights, cache, anew_afterwards):
    """With all that makes holes: they are the same in the image and in the cloud."""
    config = DepthConfig(backbone='auto', input_height=INPUT_HEIGHT, input_width=INPUT_WIDTH,
                         temperature=TEMPERATURE)
    height = 40
    rgb = RGB[:height]
    estimator = DepthEstimator(config, tiny_weights, 'cpu', cache_dir=cache, num_threads=1)
    info = camera_info(peer.header(), WIDTH, height, k=(150.0, 145.0, 0.5 * WIDTH, 20.0))
    seen = CameraModel.from_info(info)
    low, high = np.nanquantile(
        estimator.predict(CameraImage(rgb, seen)).patch_depth, (0.3, 0.7)).tolist()
    changes = {'range_min': low, 'range_max': high, 'out_of_range': 'inf'}
    estimator.reconfigure(config.replace(**changes))
    expected = estimator.predict(CameraImage(rgb, seen))
    assert abs(expected.focal_ratio - 1) > 0.05
    values = [expected.depth, expected.patch_depth]
    assert all(np.isposinf(v).any() and np.isneginf(v).any() for v in values)

    assert peer.put(together=True, **changes) == ''
    peer.send(info)
    peer.wait(lambda: peer.ask(image(peer.header(), rgb, 'rgb8'), 'depth/camera_info').height
              == height, 'camera_info of this size')
    message = image(peer.header(), rgb, 'rgb8')
    depth = depth_array(peer.ask(message))
    points = cloud_array(peer.wait_stamp('points', message.header.stamp))
    scaled = peer.wait_stamp('depth/camera_info', message.header.stamp)
    assert peer.put(together=True, **{name: getattr(config, name) for name in changes}) == ''
    np.testing.assert_allclose(depth, expected.depth, atol=1e-5)
    assert (scaled.width, scaled.height) == (WIDTH, height)
    np.testing.assert_allclose(scaled.k, info.k)
    holes = ~np.isfinite(expected.patch_depth)
    np.testing.assert_array_equal(np.isnan(points).any(axis=2), holes)
    np.testing.assert_allclose(points[..., 2][~holes], expected.patch_depth[~holes], atol=1e-5)
    # Every point lies behind its patch's centre, and the picture has its depth there.
    pixels = (points / points[..., 2:]) @ np.array(info.k).reshape(3, 3).T
    h, w = holes.shape
    v, u = np.mgrid[:h, :w]
    centres = np.dstack([(u + 0.5) * WIDTH / w - 0.5, (v + 0.5) * height / h - 0.5])
    np.testing.assert_allclose(pixels[~holes][:, :2], centres[~holes], atol=1e-2)
    column, row = centres[~holes].round().astype(int).T
    np.testing.assert_allclose(depth[row, column], expected.patch_depth[~holes], atol=0.01)


def test_the_focal_length_counts_as_soon_as_camera_info_fits(
        node, peer, estimator, anew_afterwards):
    """It begins, changes and ends in the log and in the diagnostics, and depth always comes."""
    height, width = 72, 96
    rgb = synthetic_rgb(9, height, width)
    plain = estimator.predict(rgb).depth
    peer.send(camera_info(peer.header(), WIDTH, HEIGHT))  # of another size

    def becomes(ratio, said, told):
        peer.wait(lambda: np.allclose(
            depth_array(peer.ask(image(peer.header(), rgb, 'rgb8'))), ratio * plain, atol=1e-5),
            f'depth times {ratio}')
        node.wait_for(said)
        peer.diagnostics('depth_node: frames', lambda values: values['focal ratio'] == told)

    becomes(1.0, r'not multiplied .*\(camera_info: size mismatch\)',
            'none: camera_info: size mismatch')
    for focal in (0.5, 0.25):
        f = focal * 0.811 * width
        peer.send(camera_info(peer.header(), width, height, k=(f, f, 47.5, 35.5)))
        becomes(focal, r'WARN.* depth is multiplied by 0\.500 .*; its scale is 0\.5 times',
                f'{focal:.3f}')
    assert peer.put(together=True, reference_focal=0.0) == ''
    becomes(1.0, r'not multiplied .*\(reference_focal is 0\); its scale is 4 times',
            'none: reference_focal is 0')
    assert peer.put(together=True, reference_focal=0.811) == ''


def test_a_principal_point_far_from_the_middle_is_a_warning(node, peer, anew_afterwards):
    """K of another image size; depth follows it all the same."""
    peer.send(camera_info(peer.header(), WIDTH, HEIGHT, k=(WIDTH, WIDTH, WIDTH / 4, HEIGHT / 4)))
    status = peer.status('depth_node: frames', lambda status: peer.ask(image(
        peer.header(), RGB, 'rgb8')) and 'principal point' in status.message)
    assert status.level == status.WARN
    assert values_of(status)['camera_info'] == 'principal point'
    node.wait_for(f'WARN.* /camera_info: .*images of {WIDTH}x{HEIGHT} pixels')


def test_pictures_come_while_someone_listens(peer, anew_afterwards):
    info = camera_info(peer.header(), WIDTH, HEIGHT)
    peer.send(info)
    for topic in ('depth/image_color', 'depth/spread'):
        peer.listen(topic, matched=True)
    header = image(peer.header(), RGB, 'rgb8')
    color = peer.ask(header, 'depth/image_color')
    spread = peer.wait_stamp('depth/spread', color.header.stamp)
    assert (color.height, color.width, color.encoding) == (HEIGHT, WIDTH, 'bgr8')
    assert color.header.frame_id == FRAME
    picture = np.frombuffer(color.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3
    assert spread.encoding == '32FC1'
    assert (spread.height, spread.width) == (INPUT_HEIGHT // 32, INPUT_WIDTH // 32)
    assert (depth_array(spread) >= 0).all()
    for topic in ('depth/image_color', 'depth/spread'):
        peer.forget(topic)


def test_nobody_listens_so_the_network_rests(peer, anew_afterwards):
    """Without any subscriber images are counted as idle, and not as anything else."""
    topics, frames = [topic for topic in peer._subscriptions if topic in OUTPUTS], \
        'depth_node: frames'
    for topic in topics:
        peer.forget(topic)
    message = image(peer.header(), RGB, 'rgb8')
    peer.status(frames, lambda s: peer.send(message) or counters(values_of(s))['idle'])
    before = counters(peer.quiet(frames)[frames])
    peer.send(message)
    status = peer.status(frames, lambda s: 'idle' in s.message and (
        counters(values_of(s))['idle'] == before['idle'] + 1))
    values = values_of(status)
    assert counters(values)['published'] == before['published']
    assert adds_up(values)
    for topic in topics:
        peer.listen(topic, matched=True)


def test_compressed_images_and_16uc1(domain, cache, tiny_weights, estimator):
    """The other choice of every option; and with simulated time that stands still."""
    arguments = tiny_arguments(
        tiny_weights, image_transport='compressed', depth_encoding='16UC1',
        rectified=True, use_sim_time=True, range_max=2.2,
        out_of_range='inf',
        **{'qos_overrides./cam/image/compressed.subscription.reliability': 'reliable',
           'qos_overrides./cam/depth/image.publisher.reliability': 'best_effort',
           'qos_overrides./cam/depth/image.publisher.depth': 1})
    arguments += ['-r', '__ns:=/cam', '-r', '__node:=eye']
    with running(arguments, domain=domain, cache=cache) as node, \
            Peer(domain, listen=(), node=node) as peer:
        peer.listen('/cam/depth/camera_info', OUTPUTS['depth/camera_info'], matched=True)
        depths = peer.messages['depths']
        peer.node.create_subscription(Image, '/cam/depth/image', depths.append, qos_best_effort())
        info = turned(camera_info(peer.header(), WIDTH, HEIGHT, d=(0.5, 0.1, 0, 0, 0)))
        ok, data = cv2.imencode('.jpg', RGB[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        assert ok
        message = CompressedImage(header=peer.header(), format='rgb8; jpeg compressed bgr8')
        message.data.frombytes(data.tobytes())

        # The depth itself is best effort, and may be lost.
        peer.wait(lambda: peer.ask(message, 'depth/camera_info', info=info, prefix='/cam/')
                  and depths, 'depth of the JPEG')
        depth = depths[-1]
        assert depth.header == message.header
        assert (depth.encoding, depth.height, depth.width) == ('16UC1', HEIGHT, WIDTH)
        unlimited = estimator.config
        estimator.reconfigure(unlimited.replace(range_max=2.2))
        expected = estimator.predict(to_rgb(message)).depth
        estimator.reconfigure(unlimited)
        assert 0.1 < np.isnan(expected).mean() < 0.9
        np.testing.assert_allclose(
            depth_array(depth), np.nan_to_num(1000 * expected), atol=0.51)

        of_depth = peer.messages['/cam/depth/camera_info'][-1]
        assert (of_depth.width, of_depth.height) == (WIDTH, HEIGHT)
        assert not any(of_depth.d), 'a rectified image has no distortion'
        assert of_depth.r.reshape(3, 3).tolist() == np.eye(3).tolist(), 'and is turned already'
        assert of_depth.p.tolist() == info.p.tolist()

        # Which node an endpoint belongs to is told on a topic of its own, maybe later.
        qos = peer.wait(lambda: {
            end.node_name: end.qos_profile.reliability.name for end in
            peer.node.get_subscriptions_info_by_topic('/cam/image/compressed')}.get('eye'),
            'the name of the subscribing node')
        assert qos == 'RELIABLE'
        qos = [end.qos_profile.reliability.name
               for end in peer.node.get_publishers_info_by_topic('/cam/depth/image')]
        assert qos == ['BEST_EFFORT']


def qos_best_effort():
    from rclpy.qos import QoSProfile, QoSReliabilityPolicy
    return QoSProfile(depth=10, reliability=QoSReliabilityPolicy.BEST_EFFORT)


def test_words_are_drawn_while_somebody_looks(peer, estimator, anew_afterwards):
    model = CameraModel.from_info(camera_info(peer.header(), WIDTH, HEIGHT))
    expected = draw(RGB, estimator.predict(CameraImage(RGB, model)), estimator.config)
    peer.listen('depth/words', matched=True)
    words = peer.ask(image(peer.header(), RGB, 'rgb8'), 'depth/words',
                     info=camera_info(peer.header(), WIDTH, HEIGHT))
    peer.forget('depth/words')
    assert (words.header.frame_id, words.encoding) == (FRAME, 'bgr8')
    picture = np.frombuffer(words.data, np.uint8).reshape(words.height, words.width, 3)
    assert picture.shape == expected.shape
    # Equal but for a bar that is rounded otherwise.
    assert (np.abs(picture.astype(int) - expected).max(axis=2) > 8).mean() < 0.01
