# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's Node, of which this is one, is typed in part only)
"""The lifecycle node: images in, depth out.

For each name in `cameras` once, under that name if it is not '' (front/image, front/depth/image):

Subscribers (depth 1; reliable if every publisher of the topic is, else best effort):
    image (sensor_msgs/Image): any common encoding; with `image_transport: compressed` instead
        image/compressed (sensor_msgs/CompressedImage).
    camera_info (sensor_msgs/CameraInfo): the latest one counts; it must be of the image's size.

Publishers (reliable, keep last 5), each with the image's header:
    depth/image (sensor_msgs/Image): depth along the optical axis; 32FC1 in metres with NaN where
        there is none, or 16UC1 in millimetres with 0 (REP-118).
    depth/camera_info (sensor_msgs/CameraInfo): of depth/image, whenever camera_info is usable.
    points (sensor_msgs/PointCloud2): organised x y z rgb in metres, one point a patch; only while
        subscribed and camera_info is usable.
    depth/image_color (sensor_msgs/Image): bgr8, red at the first bin to blue at the last; only
        while subscribed.
    depth/spread (sensor_msgs/Image): 32FC1, standard deviation of the bins in metres, one pixel a
        patch; only while subscribed.

And for all cameras together:
    /diagnostics (diagnostic_msgs/DiagnosticArray): at 1 Hz, in every lifecycle state.

Parameters:
    Every field of `DepthConfig` and `NodeConfig` (`depthclip_ros/core/config.py`) under its own
    name, with unit, range and choices in its descriptor. temperature, bins (metres), flip_average
    and upsampling take effect from the next image on; all others need cleanup and configure.
    qos_overrides.TOPIC.{publisher,subscription}.{history,depth,reliability} on all topics but
    /diagnostics; TOPIC is the resolved name (/image, /front/image).

The newest image wins: while the network is busy an image of each camera waits, and a newer one
replaces it. When the network is free, all that wait go through it as one batch. While nobody
subscribes to any output of a camera, its images are counted as idle and never reach the network.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from ..color import UNTRAINED
from ..core.errors import ConfigError, DepthClipError
from .camera import Camera, input_topics, output_topics
from .diagnostics import CameraReport, crash_status, diagnostic_array, model_status
from .outputs import OUTPUTS
from .parameters import Parameters, check_qos_overrides
from .pipeline import Pipeline
from .process import Stopped, StopSignals, explain_arguments, keep_freed_memory
from .statistics import Throttle, Window
from .watchdog import check_inputs
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator
    from .config import NodeConfig

    Transition = Callable[['DepthNode', LifecycleState], TransitionCallbackReturn]

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

def _reporting_bugs(transition: Transition) -> Transition:
    """Log what a transition raises: rclpy only turns it into ERROR, and says nothing."""
    @functools.wraps(transition)
    def wrapper(self: DepthNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception:
            self.get_logger().fatal(traceback.format_exc())
            raise
    return wrapper


class DepthNode(LifecycleNode):
    """DepthCLIP as a managed node."""

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters.

        Args:
            kwargs: for `rclpy.node.Node`.

        Raises:
            ConfigError: a parameter is unknown or wrong.

        """
        super().__init__(
            'depth_node', automatically_declare_parameters_from_overrides=True, **kwargs)
        self.crash: BaseException | None = None
        self._estimator: DepthEstimator | None = None
        self._pipeline: Pipeline | None = None
        self._worker: Worker | None = None
        self._cameras: list[Camera] = []
        self._reports: list[CameraReport] = []
        self._ready = threading.Condition()
        self._throttle = Throttle()
        self._settings = Parameters(
            self, is_configured=lambda: self._estimator is not None, apply=self._use)
        self.autostart = self._settings.read()[1].autostart
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Steady time: the watchdog must run when simulated time stands still.
        self._tick_timer = self.create_timer(
            1.0, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # Lifecycle -----------------------------------------------------------------------------

    @_reporting_bugs
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model; FAILURE, with the reason in the log, if that is not possible."""
        config, node_config = self._settings.read()
        try:
            self._check_topics(node_config)
            estimator = self._load(config, node_config)
        except DepthClipError as error:
            self.get_logger().error(f'Cannot configure: {error}')
            return FAILURE
        start = time.perf_counter()
        estimator.warm_up(largest_batch=len(node_config.cameras))
        self.get_logger().info(
            f'Configured: weights {estimator.weights.name} on {estimator.device} in '
            f'{estimator.precision}, engine {estimator.engine}, input '
            f'{config.input_width}x{config.input_height}, text '
            f'features {"from the cache" if estimator.text_cache_hit else "encoded"}, warm-up '
            f'{time.perf_counter() - start:.2f} s.')
        self._estimator = estimator
        self._cameras = [
            Camera(self, node_config, name, self._ready) for name in node_config.cameras]
        self._warn_if_untrained()
        return super().on_configure(state)

    @_reporting_bugs
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to listen and to answer."""
        result = super().on_activate(state)
        self._pipeline = Pipeline(self, self._loaded())
        self._use(self._settings.read()[0])
        for camera in self._cameras:
            camera.subscribe()
            depth_topic, *_ = output_topics(self, camera.name)
            self.get_logger().info(f'Active: {camera.image_topic} and {camera.info_topic} in, '
                                   f'{depth_topic} out.')
        self._reports = [CameraReport(camera, self._pipeline.times) for camera in self._cameras]
        self._worker = Worker(
            self._cameras, self._ready, self._pipeline.answer, self._on_crash)
        return result

    @_reporting_bugs
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening; the images in work are still answered."""
        self._stop()
        return super().on_deactivate(state)

    @_reporting_bugs
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model."""
        self._release()
        return super().on_cleanup(state)

    @_reporting_bugs
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release from any state."""
        self._release()
        return super().on_shutdown(state)

    @_reporting_bugs
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured with nothing left over."""
        self._release()
        return super().on_error(state)

    def close(self) -> None:
        """Shut down and release everything, whatever the state."""
        try:
            self.trigger_shutdown()
        except RuntimeError:  # shut down already, or interrupted in a transition
            self._release()

    def _check_topics(self, config: NodeConfig) -> None:
        """Refuse names, remappings and overrides that cannot be meant."""
        inputs = [topic for name in config.cameras for topic in input_topics(self, config, name)]
        outputs = [topic for name in config.cameras for topic in output_topics(self, name)]
        for topic in outputs:
            if topic in inputs or outputs.count(topic) > 1:
                raise ConfigError(
                    f'cameras: {list(config.cameras)} and the remappings make {topic} an output '
                    f'and {"an input" if topic in inputs else "another output"} at once; choose '
                    'other names.')
        if '' not in config.cameras:
            self._check_remappings(config.cameras)
        check_qos_overrides(self, publishers=outputs, subscriptions=inputs)

    def _check_remappings(self, cameras: Sequence[str]) -> None:
        """Refuse to remap topics that only a camera without a name would have."""
        for topic in ('image', 'camera_info', *OUTPUTS):
            resolved = self.resolve_topic_name(topic)
            if resolved != self.resolve_topic_name(topic, only_expand=True):
                raise ConfigError(
                    f'{topic} is remapped to {resolved}, but no camera has that topic (cameras: '
                    f'{list(cameras)}); remap {cameras[0]}/{topic} instead.')

    def _load(self, config: DepthConfig, node_config: NodeConfig) -> DepthEstimator:
        try:  # late: torch takes seconds to import, and may be missing
            from ..core.estimator import DepthEstimator
        except ImportError as error:
            raise ConfigError(
                f'{error}, in the Python of {sys.executable}. Run `depthclip doctor` with it for '
                'the fix.') from error
        return DepthEstimator(
            config, node_config.weights, node_config.device, cache_dir=node_config.cache_dir,
            offline=node_config.offline, num_threads=node_config.num_threads, log=self._log)

    def _loaded(self) -> DepthEstimator:
        if self._estimator is None:
            raise RuntimeError('no model is loaded')
        return self._estimator

    def _stop(self) -> None:
        for camera in self._cameras:
            camera.unsubscribe()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
            for camera in self._cameras:
                self.get_logger().info(f'Stopped: {camera.label}{camera.counters()}.')

    def _release(self) -> None:
        self._stop()
        for camera in self._cameras:
            camera.destroy()
        self._cameras, self._reports, self._pipeline = [], [], None
        if self._estimator is None:
            return
        on_gpu = self._estimator.device.type == 'cuda'
        self._estimator = None
        gc.collect()
        if on_gpu:
            import torch
            torch.cuda.empty_cache()

    def _on_crash(self, error: BaseException) -> None:
        """Take note that the worker has ended; `main` ends the process."""
        self.get_logger().fatal(''.join(traceback.format_exception(error)))
        self.crash = error

    # Once a second -------------------------------------------------------------------------

    def _tick(self) -> None:
        """Watch the inputs, publish diagnostics, log a summary now and then."""
        name = self.get_fully_qualified_name().lstrip('/')
        active = self._worker is not None
        batch_sizes = Window() if self._pipeline is None else self._pipeline.batch_sizes
        statuses = [model_status(
            f'{name}: model', self._estimator, self._state_label(), batch_sizes)]
        for report in self._reports:
            missing = ''
            if active:
                report.camera.follow_publishers()
                missing = check_inputs(self, report.camera)
            statuses.append(report.status(name, missing))
            summary = report.summary()
            if summary:
                self.get_logger().info(summary)
        if active:
            self._warn_if_untrained()
        if self.crash is not None:
            statuses.append(crash_status(f'{name}: worker', self.crash))
        self._diagnostics.publish(diagnostic_array(self, statuses))

    def _state_label(self) -> str:
        if self._worker is not None:
            return 'active'
        return 'unconfigured' if self._estimator is None else 'inactive'

    def _warn_if_untrained(self) -> None:
        estimator = self._estimator
        if estimator is not None and not estimator.weights.trained \
                and self._throttle.due('untrained'):
            self.get_logger().warning(
                f'{UNTRAINED}. The network holds random numbers; set the parameter weights.')

    # What others call ----------------------------------------------------------------------

    def _use(self, config: DepthConfig) -> None:
        """Take over settings that need no reload; the worker does it between two batches."""
        if self._pipeline is not None:
            self._pipeline.config = config

    def _log(self, text: str) -> None:
        """Log what the core tells."""
        if text.startswith('WARNING'):
            self.get_logger().warning(text.removeprefix('WARNING').lstrip(': '))
        else:
            self.get_logger().info(text)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        Exit status: 0 after a signal, 1 if the node could not start or its worker crashed.

    """
    arguments = list(sys.argv if args is None else args)
    signals = StopSignals()
    keep_freed_memory()
    node: DepthNode | None = None
    try:
        # Our own signal handlers: rclpy's would close the context under the last messages.
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = DepthNode()
        configured = node.autostart and node.trigger_configure() == SUCCESS
        # Only loading may be cut short. From here on threads are started, and must be ended.
        signals.interrupt = False
        if node.autostart and not (configured and node.trigger_activate() == SUCCESS):
            return 1
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not signals.received and node.crash is None:
            executor.spin_once(timeout_sec=0.2)
    except (Stopped, ExternalShutdownException):
        pass
    except (DepthClipError, RuntimeError, ValueError) as error:
        if node is not None:
            raise
        sys.stderr.write(f'depth_node: {explain_arguments(arguments, error)}\n')
        return 1
    finally:
        signals.interrupt = False
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0 if node is None or node.crash is None else 1


if __name__ == '__main__':
    sys.exit(main())
