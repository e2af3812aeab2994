# SPDX-License-Identifier: Apache-2.0
"""What every key on /diagnostics means, and in which unit its value is.

The reference among the documents is made of this. `…` stands for what is filled in.
"""

from __future__ import annotations

# Key to unit ('' for text) and meaning. Numbers without a unit are counts since the node was
# configured, unless their meaning says something else.
Keys = dict[str, tuple[str, str]]

FRAMES: Keys = {
    'rate in [Hz]': ('Hz', 'images that arrive, over the last six reports'),
    'rate out [Hz]': ('Hz', 'images that are answered with depth, likewise'),
    'age at publish p50 [ms]': ('ms', (
        'from the stamp of an image to the publication of its depth, median of the last 512; a '
        "sentence instead where the stamps are not of the node's clock")),
    'age at publish p99 [ms]': ('ms', 'likewise, the 99th percentile'),
    'network p50 [ms]': ('ms', (
        'from the RGB of a batch to its depth, all of it: resizing, network, words, anchor; '
        'median of the last 512 batches')),
    'network p99 [ms]': ('ms', 'likewise, the 99th percentile'),
    'node overhead p50 [ms]': ('ms', (
        'all the rest of a batch, divided by its images: decoding and publication; median')),
    'node overhead p99 [ms]': ('ms', 'likewise, the 99th percentile'),
    '… p50 [ms]': ('ms', 'median of one stage, for one image; the stages stand below'),
    'received': ('images', (
        'that arrived; at any time received = published + dropped + rejected + idle + pending')),
    'published': ('images', 'answered with depth/image'),
    'dropped': ('images', 'replaced by a newer one before their turn came'),
    'rejected': ('images', 'that could not be used, of all causes'),
    'idle': ('images', 'left alone, since nobody subscribed to any output'),
    'pending': ('images', 'waiting or in work now: two at most'),
    'rejected: …': ('images', 'likewise, by cause'),
    'no cloud: …': ('images', (
        'with depth, but without points and depth/camera_info, by cause; `absent`: no camera_info '
        'has come')),
    'no pictures: …': ('images', (
        'with depth, but without depth/image_color, depth/spread, depth/stddev or depth/words, by '
        'cause')),
    'last error': ('', 'what an image failed of last; empty: none did'),
    'focal ratio': ('', (
        'by what depth is multiplied for the focal length of the camera, or why it does not '
        'count')),
    'jumps of the focal ratio': ('times', (
        'that this factor changed from one depth image to the next')),
    'NaN share [%]': ('%', 'of the pixels of depth/image, mean of the last 5 s'),
    'stddev median [m]': ('m', (
        'standard deviation of depth, the median of an image, mean of the last 5 s; empty without '
        'a calibration')),
    'beyond max_stddev [%]': ('%', (
        'of the patches that are not sure enough, and so NaN, mean of the last 5 s')),
    'pixels beyond 16UC1': ('pixels', (
        'farther than 65.535 m, which depth_encoding: 16UC1 cannot hold: invalid in depth/image')),
    'stretched to another aspect ratio': ('images', (
        "that the network saw distorted, since input_fit: stretch and their shape is not the "
        "network's")),
    'stamps that went back': ('images', 'with an older stamp than the one before'),
    'stamps that jumped ahead': ('images', (
        'whose stamp gained more than 5 s on the time that passed')),
    'lost by the middleware': ('images', 'that it says were sent and never arrived'),
    'image topic': ('', 'that is subscribed to, resolved'),
    'camera_info topic': ('', 'likewise'),
}

ANCHOR: Keys = {
    'anchor': ('', 'the parameter anchor'),
    'anchored': ('', 'True while the scale rests on the sensor'),
    'anchor scale': ('1', 'by what depth is multiplied'),
    'anchor log variance': ('1', 'variance of the logarithm of the scale'),
    'anchor inlier share [%]': ('%', "of the last message's points in the image that agree"),
    'anchor points': ('points', 'in the image, of the last message'),
    'anchor inflation of stddev': ('1', (
        'by what the standard deviation of depth is multiplied besides, where the scale is '
        'unsure')),
    'not anchored: …': ('images', 'whose points could not be followed, by cause'),
    'anchor refused: …': ('messages', 'of the sensor or of tf that could not be read, by cause'),
}

SCENE: Keys = {
    'scene': ('', 'the most probable one, or "uncertain"'),
    'scene: plain bins [%]': ('%', 'part that bins have, since the scene is uncertain'),
    'scene: … [%]': ('%', 'probability of each scene'),
}

CLICKS: Keys = {
    'clicks': ('clicks', (
        'whose point is in the image; only those are heard that come while somebody subscribes to '
        'depth/words')),
    'unusable clicks: …': ('clicks', 'that show nothing, by cause'),
}

MODEL: Keys = {
    'lifecycle state': ('', 'unconfigured, loading, inactive, active or reloading'),
    'memory [MiB]': ('MiB', 'resident, of the whole process'),
    'configuration sha256': ('', (
        'of all settings: two nodes with the same one compute and publish the same')),
    'reloads': ('times', 'that the model was loaded anew after it failed, or that was tried'),
    'last error': ('', 'what it failed of last; empty: it never did'),
    'device': ('', 'on which the network runs'),
    'GPU memory [MiB]': ('MiB', 'that tensors hold; only on a GPU, as the next three'),
    'GPU memory reserved [MiB]': ('MiB', 'that torch holds'),
    'GPU memory free [MiB]': ('MiB', 'of the device, whoever else uses it'),
    'GPU memory total [MiB]': ('MiB', 'of the device'),
    'precision': ('', 'number format of the network, as it was chosen'),
    'precision because': ('', 'why it was chosen; empty: it is what was asked for'),
    'threads wait by': ('', (
        "settings of how OpenMP's threads wait, which matters on a busy machine; empty: its own")),
    'engine': ('', 'how the network runs, as it was chosen'),
    'quantised on': ('', 'images on which the network in 8 bits was calibrated; empty: not int8'),
    'weights': ('', 'their name or file'),
    'weights sha256': ('', 'of their file'),
    'trained': ('', 'False: the numbers are random, and depth is meaningless'),
    'calibration': ('', 'on what depth is calibrated; empty: on nothing'),
    'calibration sha256': ('', 'of its file'),
    'text cache hit': ('', 'True: the features of the words came from the cache'),
    'backbone': ('', "the parameter's"),
    'features': ('', "the parameter's"),
    'batch size p50': ('images', 'that went through the network at once, median of the last 512'),
    'batch size max': ('images', 'likewise, the most'),
    'input': ('px', "width x height of the network's input"),
}

# Stages of an image that are timed, in order.
STAGES = {
    'decode': 'from the message to RGB',
    'anchor': "finding and reading the anchor's message, and projecting its points",
    'anchor filter': 'following the scale that they say',
    'publish depth': 'depth/image',
    'publish points': 'depth/camera_info and points',
    'publish pictures': 'depth/image_color, depth/spread, depth/stddev and scene',
    'publish words': 'depth/words: drawing it, and finding what was clicked',
}

# Of each status: what its table is headed, and its keys.
STATUSES = {
    'frames': (('Status "…: frames", one for each camera', FRAMES), ('With an anchor', ANCHOR),
               ('With scenes', SCENE), ('Of depth/words', CLICKS)),
    'model': (('Status "…: model"', MODEL),),
}
