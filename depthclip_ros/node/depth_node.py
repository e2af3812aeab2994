# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's Node, of which this is one, is typed in part only)
"""The lifecycle node: images in, depth out.

For each name in `cameras` once, under that name if it is not '' (front/image, front/depth/image):

Subscribers (keep last 10; reliable unless a publisher of the topic is best effort):
    image (sensor_msgs/Image): any common encoding; with `image_transport: compressed` instead
        image/compressed (sensor_msgs/CompressedImage).
    camera_info (sensor_msgs/CameraInfo): the latest one counts; it must be of the image's size.
        Transient local unless a publisher is volatile: one that was sent before counts too.

And for all cameras together, the parameter `anchor` decides which, if any:
    scan (sensor_msgs/LaserScan): with `anchor: scan`, points that fix the scale of depth.
    anchor/points (sensor_msgs/PointCloud2): with `anchor: points`, x y z in metres.
    range (sensor_msgs/Range): with `anchor: range`, one point in the middle of the beam.
    anchor/depth (sensor_msgs/Image): with `anchor: depth`, a sparse depth image on the image's
        pixels.
    /tf (tf2_msgs/TFMessage): where the sensor is; with `anchor: ground` where the floor is.
    /tf_static (tf2_msgs/TFMessage): likewise, what never moves.

Publishers (reliable, keep last 5), each with the image's header:
    depth/image (sensor_msgs/Image): depth along the optical axis; 32FC1 in metres with NaN where
        there is none (and -Inf or +Inf out of range, if `out_of_range` says so: REP-117), or
        16UC1 in millimetres with 0 for all of these (REP-118).
    depth/camera_info (sensor_msgs/CameraInfo): of depth/image, whenever camera_info is usable.
    points (sensor_msgs/PointCloud2): organised x y z rgb in metres, one point a patch; with a
        calibration also stddev, the standard deviation of z in metres; only while subscribed and
        camera_info is usable.
    depth/image_color (sensor_msgs/Image): bgr8, red at the first bin to blue at the last; only
        while subscribed.
    depth/words (sensor_msgs/Image): bgr8, how much each word answers, painted on the image for a
        grid of patches, with depth and its standard deviation in metres, and the scene; only while
        subscribed.
    depth/spread (sensor_msgs/Image): 32FC1, standard deviation of the bins in metres, one pixel a
        patch: how undecided the words are, no error bar; only while subscribed.
    depth/stddev (sensor_msgs/Image): 32FC1, standard deviation of depth in metres, whatever the
        encoding of depth/image, and of its size; large = unsure, NaN where depth is not finite;
        only with a calibration and while subscribed.
    scene (diagnostic_msgs/DiagnosticArray): one status, whose message is the scene ('' while it
        is uncertain) and whose values are the probabilities of all; only with `scenes` and while
        subscribed.
    depth/scale (geometry_msgs/Vector3Stamped): x the anchor's scale, by which depth is multiplied,
        y the variance of its logarithm, z the share of the anchor's points that agree (NaN before
        there were any); only with an anchor and while subscribed.

And for all cameras together:
    /diagnostics (diagnostic_msgs/DiagnosticArray): at 1 Hz, in every lifecycle state.

Parameters:
    Every field of `DepthConfig` and `NodeConfig` (`depthclip_ros/core/config.py`) under its own
    name, with unit, range and choices in its descriptor. tokens, bins (metres), templates,
    temperature, flip_average, read_out, smoothing, upsampling, range_min, range_max
    (metres), out_of_range, reference_focal, calibration, max_stddev (metres), scenes,
    scene_templates, scene_temperature, scene_bins (metres), scene_entropy and scene_memory take
    effect from the next image on, together or not at all; all others need cleanup and configure.
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
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, NoReturn

import rclpy
import rclpy.utilities
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from ..color import UNTRAINED
from ..core.errors import ConfigError, DepthClipError, quoted
from ..executables import wait_shortly
from . import messages
from .anchors import SENSORS, Sensors, needs_transforms
from .camera import Camera, input_topics, output_topics
from .diagnostics import ERROR, NodeHealth
from .health import CameraHealth, ClockWatch, Finding
from .inputs import ALWAYS, Input
from .model import Model, describe
from .outputs import OUTPUTS
from .parameters import Parameters, help_text
from .pipeline import Pipeline
from .process import (
    StopSignals,
    end_process,
    explain_arguments,
    ignored_files,
    keep_freed_memory,
)
from .statistics import Say, Window
from .tf import TF, TF_STATIC
from .worker import Ticker, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from ..core.config import DepthConfig
    from ..core.estimator import DepthEstimator
    from .config import NodeConfig

    Transition = Callable[['DepthNode', LifecycleState], TransitionCallbackReturn]

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

TF_DEPTH = 100  # as tf2's own listeners
PATIENCE = 10.0  # seconds for the images in work, when the node is to stop
LAST_PATIENCE = 1.0  # likewise, when the process is to end
MOST_FAILURES = 100  # of callbacks in a row, after which the process ends


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


def _answer_refusals(node: LifecycleNode) -> None:
    """Answer requests for transitions that the state does not allow, or that there are not.

    rclpy raises where it should answer, and whoever asked waits for ever.
    """
    service = node._service_change_state  # noqa: SLF001 (nothing public leads to it)
    change = service.callback

    def answer(request: Any, response: Any) -> Any:
        try:
            return change(request, response)
        except RuntimeError:
            node.get_logger().warning(
                f'change_state: transition {request.transition.id} is not possible now. '
                f'ros2 lifecycle list {node.get_fully_qualified_name()} shows which are.')
            response.success = False
            return response
    service.callback = answer


class DepthNode(LifecycleNode):
    """DepthCLIP as a managed node.

    Attributes:
        crash: what the worker ended of; None while it is well.

    """

    def __init__(self, ending: threading.Event | None = None, **kwargs: Any) -> None:
        """Declare the parameters.

        Args:
            ending: set when the process is to end; loading is then given up.
            kwargs: for `rclpy.node.Node`.

        Raises:
            ConfigError: a parameter is unknown or wrong.

        """
        super().__init__('depth_node', automatically_declare_parameters_from_overrides=True,
                         start_parameter_services=False, **kwargs)  # `Parameters` has its own
        self.crash: BaseException | None = None
        self._ending = ending or threading.Event()
        self._say = Say(self)
        self._model: Model | None = None
        self._pipeline: Pipeline | None = None
        self._worker: Worker | None = None
        self._active = self._left_behind = False
        self._cameras: list[Camera] = []
        self._sensors: Sensors | None = None
        self._sensor_inputs: list[Input] = []
        self._health: list[CameraHealth] = []
        self._settings = Parameters(
            self, is_configured=lambda: self._model is not None,
            estimator=lambda: None if self._model is None else self._model.estimator,
            apply=self._use)
        self._node_config = self._settings.read()[1]
        self.autostart = self._node_config.autostart
        self._clock_watch = ClockWatch(self)
        self._jump = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1)),
            post_callback=self._on_jump)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Not where callbacks run: it tells of the node also while one of them takes long.
        self._ticker = Ticker(1.0, self._tick)
        _answer_refusals(self)

    def destroy_node(self) -> None:
        """Destroy the node, which leaves the graph, and end the thread that reports."""
        self._ticker.stop()
        self._jump.unregister()
        super().destroy_node()
        # It holds the node: in the graph all would stay, 20 s longer than the process.
        self._state_machine.destroy_when_not_in_use()

    # Lifecycle -----------------------------------------------------------------------------

    @_reporting_bugs
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model; FAILURE, with the reason in the log, if that is not possible."""
        config, self._node_config = self._settings.read()
        try:
            self._check_topics(self._node_config)
            loaded = self._begin_to_load(config, self._node_config)
            # Beside it, which takes seconds: who subscribes has then found the topics before.
            self._sensors = self._make_sensors(self._node_config)
            for name in self._node_config.cameras:
                self._cameras.append(Camera(self, self._node_config, name, self._sensors))
            estimator = self._wait_for(loaded)
        except DepthClipError as error:
            if self._ending.is_set():
                self.get_logger().info(f'Not configured: {error}')
            else:
                self.get_logger().error(f'Cannot configure: {error}')
            self._release()
            return FAILURE
        except Exception:
            self._release()
            raise
        self._warn_if_untrained()
        if estimator.calibration is not None:
            self._say.info(f'Depth is {estimator.calibration.label} ({config.calibration}).')
        return super().on_configure(state)

    @_reporting_bugs
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to listen and to answer."""
        result = super().on_activate(state)
        if self._worker is None or self._pipeline is None:
            raise RuntimeError('no model is loaded')
        try:
            self._sensor_inputs = self._listen_to_sensors()
            for camera in self._cameras:
                camera.subscribe(self._worker)
        except ConfigError as error:
            self.get_logger().error(f'Cannot activate: {error}')
            self._stop()
            return FAILURE
        self._health = [CameraHealth(self, camera, self._pipeline.times)
                        for camera in self._cameras]
        # A player begins when it finds the subscriptions: until now time had no reason to go on.
        self._clock_watch = ClockWatch(self)
        self._active = True
        for camera in self._cameras:
            depth_topic, *_ = output_topics(self, camera.name)
            self._say.info(f'Active: {camera.image_topic} and {camera.info_topic} in, '
                           f'{depth_topic} out.')
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
        self._ending.set()
        try:
            self.trigger_shutdown()
        except RuntimeError:  # shut down already, or in the middle of a transition
            self._release()

    def status(self) -> int:
        """Exit status of the process: 0 if the node is well, else 1."""
        return int(self.crash is not None or self._left_behind or bool(self._stuck()))

    def _check_topics(self, config: NodeConfig) -> None:
        """Refuse names and remappings that cannot be meant."""
        inputs = [topic for name in config.cameras for topic in input_topics(self, config, name)]
        outputs = [topic for name in config.cameras for topic in output_topics(self, name)]
        for topic in outputs:
            if topic in inputs or outputs.count(topic) > 1:
                raise ConfigError(
                    f'cameras: {list(config.cameras)} and the remappings make {topic} an output '
                    f'and {"an input" if topic in inputs else "another output"} at once; choose '
                    'other names.')
        for topic in ('image', 'camera_info', *OUTPUTS) if '' not in config.cameras else ():
            resolved = self.resolve_topic_name(topic)
            if resolved != self.resolve_topic_name(topic, only_expand=True):
                raise ConfigError(
                    f'{topic} is remapped to {resolved}, but no camera has that topic (cameras: '
                    f'{list(config.cameras)}); remap {config.cameras[0]}/{topic} instead.')

    def _begin_to_load(
        self, config: DepthConfig, node_config: NodeConfig,
    ) -> Future[DepthEstimator]:
        """Load the model on the thread that will run it."""
        model = self._model = Model()
        pipeline = self._pipeline = Pipeline(self, model, config)
        self._worker = Worker(pipeline.answer, self._on_crash)

        def load() -> DepthEstimator:
            model.estimator = estimator = self._load(config, node_config)
            return estimator
        return self._worker.submit(load)

    def _wait_for(self, loaded: Future[DepthEstimator]) -> DepthEstimator:
        while not wait([loaded], timeout=0.1).done:
            if self._ending.is_set():
                raise ConfigError('the process is to end.')
        return loaded.result()

    def _load(self, config: DepthConfig, node_config: NodeConfig) -> DepthEstimator:
        """Give an estimator that has run once for every size of a batch."""
        is_first = 'torch' not in sys.modules
        gc.disable()
        try:  # late: torch takes seconds to import, and may be missing
            from ..core.estimator import DepthEstimator
        except ImportError as error:
            raise ConfigError(
                f'{error}, in the Python of {sys.executable}. Run `depthclip doctor` with it for '
                'the fix.') from error
        finally:
            if is_first:
                # Half a million objects came with torch: to look through them for garbage takes
                # a tenth of a second every time.
                gc.freeze()
            gc.enable()
        estimator = DepthEstimator(
            config, node_config.weights, node_config.device, cache_dir=node_config.cache_dir,
            offline=node_config.offline, num_threads=node_config.num_threads, log=self._log)
        start = time.perf_counter()
        estimator.warm_up(largest_batch=len(node_config.cameras))
        self._say.info(
            f'Configured: weights {estimator.weights.name} on {estimator.device} in '
            f'{estimator.precision}, engine {estimator.engine}, input '
            f'{config.input_width}x{config.input_height}, text '
            f'features {"from the cache" if estimator.text_cache_hit else "encoded"}, warm-up '
            f'{time.perf_counter() - start:.2f} s.')
        return estimator

    def _stop(self) -> bool:
        """Answer no more images, and wait for those in work with patience; give whether idle."""
        for source in self._sensor_inputs:
            source.destroy()
        for camera in self._cameras:
            camera.unsubscribe()
        self._sensor_inputs = []
        if self._worker is None:
            return True
        for camera in self._worker.clear():
            camera.count('dropped')
        idle = self._patiently(self._worker.submit(bool))
        if self._active:
            if not idle:
                self.get_logger().error(
                    f'The images in work since {self._worker.busy_seconds():.1f} s are not done.')
            for camera in self._cameras:
                self._say.info(f'Stopped: {camera.label}{camera.counters()}.')
        self._active = False
        return idle

    def _release(self) -> None:
        idle = self._stop()
        worker, model = self._worker, self._model
        self._worker = self._pipeline = self._model = None
        if worker is not None and model is not None:
            if idle:
                model.release()
            # What never comes back keeps its thread and its model; the node goes on without.
            self._left_behind |= worker.busy_seconds() > 0
            worker.end(wait=idle)
        for camera in self._cameras:
            camera.destroy()
        self._cameras, self._health, self._sensors = [], [], None

    def _patiently(self, done: Future[Any]) -> bool:
        """Wait for a job of the worker; give whether it was done before patience ended."""
        start = time.monotonic()
        while not wait([done], timeout=0.1).done:
            if time.monotonic() - start > (LAST_PATIENCE if self._ending.is_set() else PATIENCE):
                return False
        return True

    def _on_crash(self, worker: Worker, error: BaseException) -> None:
        """Take note that the worker cannot go on; `main` ends the process."""
        if worker is self._worker:  # and not one that was left behind
            self.get_logger().fatal(''.join(traceback.format_exception(error)))
            self.crash = error

    # What all cameras have in common -------------------------------------------------------

    def _make_sensors(self, config: NodeConfig) -> Sensors | None:
        if not config.anchor:
            return None
        topic = SENSORS[config.anchor][1] if config.anchor in SENSORS else ''
        return Sensors(config, self.resolve_topic_name(topic) if topic else '', messages.read)

    def _listen_to_sensors(self) -> list[Input]:
        """Subscribe to what the anchor rests on."""
        sensors, config = self._sensors, self._node_config
        if sensors is None:
            return []
        sensors.begin()
        inputs = []
        if sensors.topic:
            inputs.append(Input(self, SENSORS[config.anchor][0], sensors.topic,
                                sensors.on_message))
        if needs_transforms(config):
            try:
                messages.message_class(messages.TF)
            except ImportError:
                self._say.once('tf', (
                    'tf2_msgs is not installed here, so that tf says nothing: the anchor needs it '
                    '(ros-$ROS_DISTRO-tf2-msgs), or anchor_pose, or camera_height.'))
                return inputs
            inputs += [
                Input(self, messages.TF, TF, sensors.on_transforms, depth=TF_DEPTH),
                # As tf2 itself: whoever is volatile there is not heard.
                Input(self, messages.TF, TF_STATIC, sensors.on_static, depth=TF_DEPTH,
                      latched=ALWAYS)]
        return inputs

    def _on_jump(self, _jump: Any) -> None:
        """Transforms of a time that has not come yet hold no more."""
        if self._sensors is not None:
            self._sensors.clear_transforms()

    # Once a second -------------------------------------------------------------------------

    def _tick(self) -> None:
        """Report; nothing that fails here may end it."""
        try:
            self._report()
        except Exception as error:  # noqa: BLE001
            # InvalidHandle: a topic was destroyed while it was looked at.
            if type(error).__name__ != 'InvalidHandle' and self.context.ok():
                self._say.error('report', f'Diagnostics failed: {traceback.format_exc()}')

    def _report(self) -> None:
        """Watch the inputs, publish diagnostics, log a summary now and then."""
        pipeline, model = self._pipeline, self._model
        config = self._settings.read()[0] if pipeline is None else pipeline.config
        findings = self._worker_findings()
        if self._active:
            findings += self._clock_watch.look(self._node_config.input_timeout)
            self._warn_if_untrained()
        if model is not None:
            model.look_at_memory()
        for finding in findings:
            finding.tell(self._say)
        statuses = [NodeHealth(
            self, model, self._state_label(), Window() if pipeline is None else
            pipeline.batch_sizes, (config, self._node_config), findings).status()]
        for health in self._health:
            statuses.append(health.look(findings, active=self._active))
            summary = health.summary()
            if summary:
                health.camera.say.info(summary)
        message = DiagnosticArray(status=statuses)
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _stuck(self) -> float:
        """For how long the worker has been at one batch, if that is too long; else 0."""
        seconds = 0.0 if self._worker is None else self._worker.busy_seconds()
        return seconds if seconds > self._node_config.worker_timeout else 0.0

    def _worker_findings(self) -> list[Finding]:
        """Why no camera is answered at all."""
        if self.crash is not None:
            words = f'stopped by {describe(self.crash)}'
            return [Finding('worker crash', ERROR, words, f'The worker is {words}.')]
        seconds = self._stuck()
        if not seconds:
            return []
        words = f'worker stuck for {seconds:.0f} s'
        return [Finding('worker stuck', ERROR, words, (
            f'{words}: one batch takes longer than worker_timeout '
            f'({self._node_config.worker_timeout:g} s). If it does not come back, end the process '
            'and start it anew; if the network is that slow here, make its input smaller.'))]

    def _state_label(self) -> str:
        if self._model is None:
            return 'unconfigured'
        if self._active:
            return 'active'
        return 'loading' if self._model.estimator is None else 'inactive'

    def _warn_if_untrained(self) -> None:
        estimator = None if self._model is None else self._model.estimator
        if estimator is not None and not estimator.weights.trained:
            self._say.once('untrained', (
                f'{UNTRAINED}. The network holds random numbers; set the parameter weights.'))

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
        Exit status: 0 after a signal and after --help, 1 if the node could not start or was not
        well at the end, 2 if it does not know an argument.

    """
    signals = StopSignals()
    try:
        return _run(list(sys.argv if args is None else args), signals.received)
    finally:
        signals.close()


def run() -> NoReturn:
    """Run the node as the process's program, which ends with it."""
    end_process(main())


def _run(arguments: Sequence[str], ending: threading.Event) -> int:
    keep_freed_memory()
    node: DepthNode | None = None
    started = False
    try:
        others = rclpy.utilities.remove_ros_args(list(arguments))[1:]
        if not {'-h', '--help'}.isdisjoint(others):
            sys.stdout.write(help_text())
            return 0
        if others:
            sys.stderr.write(f'depth_node: {quoted(" ".join(others))} is no argument of it; '
                             'settings follow after --ros-args, see --help.\n')
            return 2
        # Our own signal handlers: rclpy's would close the context under the last messages.
        rclpy.init(args=list(arguments), signal_handler_options=SignalHandlerOptions.NO)
        node = DepthNode(ending)
        for reason in ignored_files(arguments, node.get_fully_qualified_name()):
            node.get_logger().warning(f'A parameter file has no effect: {reason}')
        started = not node.autostart or (
            node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS)
        if started:
            _spin(node, ending)
    except ExternalShutdownException:
        started = True
    except (DepthClipError, RuntimeError, ValueError) as error:
        if node is not None:
            raise
        sys.stderr.write(f'depth_node: {explain_arguments(arguments, error)}\n')
        return 1
    finally:
        stopped = ending.is_set()
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return node.status() if node is not None and (started or stopped) else 1


def _spin(node: DepthNode, ending: threading.Event) -> None:
    """Run callbacks until the process is to end; one that raises ends nothing."""
    # One thread: with several, rclpy loses most of a fast camera's images.
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    failures, say = 0, Say(node)
    while not ending.is_set() and node.crash is None:
        try:
            executor.spin_once(timeout_sec=0.2)
        except ExternalShutdownException:  # noqa: PERF203
            raise
        except Exception:
            failures += 1
            say.error('callback', f'A callback failed: {traceback.format_exc()}')
            if failures == MOST_FAILURES:
                raise
        else:
            failures = 0
    executor.shutdown(0.1)


if __name__ == '__main__':  # as the executable
    wait_shortly()
    run()
