# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's Node, of which this is one, is typed in part only)
"""The lifecycle node: images in, depth out.

Its topics are listed in `messages.INPUTS`, `anchors.SENSORS` and `outputs.OUTPUTS`, its parameters
in `DepthConfig` and `NodeConfig` (docs/reference has all of them). Beside these are qos_overrides
of all topics but /diagnostics. Of every camera in `cameras` the topics exist once under its name.

The newest image wins: while the network is busy an image of each camera waits, and a newer one
replaces it. When the network is free, all that wait go through it as one batch. While nobody
subscribes to any output of a camera, its images are counted as idle and never reach the network.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, NoReturn

import rclpy
import rclpy.utilities
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from ..core.config import DepthConfig
from ..core.errors import ConfigError, DepthClipError, quoted
from ..executables import begin
from ..messages import types as messages
from ..messages.anchors import SENSORS, TF, TF_STATIC, Sensors, needs_transforms
from ..messages.config import NodeConfig
from ..messages.outputs import OUTPUTS
from .camera import Camera, Say, summary
from .health import CameraHealth, NodeHealth
from .inputs import OVERRIDES, Input, check_overrides
from .parameters import Parameters, help_text
from .pipeline import Pipeline, free_memory
from .process import StopSignals, check_files, end_process, explain, keep_freed_memory

Transition = Callable[['DepthNode', LifecycleState], TransitionCallbackReturn]

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

TF_DEPTH = 100  # as tf2's own listeners
PATIENCE = 10.0  # seconds at least for the images in work, when the node is to stop
LAST_PATIENCE = 1.0  # likewise, when the process is to end


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
        """Declare the parameters; `ending` is set when the process is to end.

        Raises:
            ConfigError: a parameter is unknown or wrong.

        """
        super().__init__('depth_node', automatically_declare_parameters_from_overrides=True,
                         **kwargs)
        self._overrides = tuple(self.get_parameters_by_prefix(OVERRIDES))
        self._pipeline: Pipeline | None = None
        try:
            self._settings = Parameters(self, lambda: self._pipeline)
        except ConfigError:  # what is half made is in the graph already
            super().destroy_node()
            self._state_machine.destroy_when_not_in_use()
            raise
        self.crash: BaseException | None = None
        self._ending = ending or threading.Event()
        self._say = Say(self)
        self._left_behind = False
        self._state = 'unconfigured'  # of the lifecycle, or 'loading'
        self._cameras: list[Camera] = []
        self._sensors: Sensors | None = None
        self._sensor_inputs: list[Input] = []
        self._health, self._cameras_health = NodeHealth(self), list[CameraHealth]()
        self.autostart = self._settings.node.autostart
        self._jump = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1)),
            post_callback=self._on_jump)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Not where callbacks run: it tells of the node also while one of them takes long.
        self._destroyed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name='ticker', daemon=True)
        self._ticker.start()
        _answer_refusals(self)

    def destroy_node(self) -> None:
        """Destroy the node, which leaves the graph, and end the thread that reports."""
        self._destroyed.set()
        self._ticker.join(1.0)
        self._jump.unregister()
        super().destroy_node()
        # It holds the node: in the graph all would stay, 20 s longer than the process.
        self._state_machine.destroy_when_not_in_use()

    # Lifecycle -----------------------------------------------------------------------------

    @_reporting_bugs
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model; FAILURE, with the reason in the log, if that is not possible."""
        self._state = 'loading'
        try:
            depth, config = self._settings.read()
            # Before loading, which takes seconds: who subscribes has then found the topics.
            for name in config.cameras:
                self._cameras.append(Camera(self, config, name))
            self._check_topics(config)
            pipeline = self._pipeline = Pipeline(self, depth, self._on_crash)
            loaded = pipeline.submit(lambda: self._load(pipeline, depth, config))
            if not _wait_for(loaded, until=self._ending.is_set):
                raise ConfigError('the process is to end.')
            loaded.result()
        except DepthClipError as error:
            if self._ending.is_set():
                self.get_logger().info(f'Not configured: {error}')
            else:
                self.get_logger().error(f'Cannot configure: {error}')
            self._release()
            self._state = 'unconfigured'
            return FAILURE
        except Exception:
            self._release()
            raise
        self._state = 'inactive'
        return super().on_configure(state)

    @_reporting_bugs
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to listen and to answer."""
        if self._pipeline is None:
            raise RuntimeError('no model is loaded')
        try:
            self._listen_to_sensors(self._settings.node)
            for camera in self._cameras:
                camera.subscribe(self._pipeline.put, self._sensors)
            check_overrides(self, self._overrides)
        except ConfigError as error:
            self.get_logger().error(f'Cannot activate: {error}')
            self._stop()
            return FAILURE
        self._cameras_health = [CameraHealth(self, camera, self._pipeline)
                                for camera in self._cameras]
        self._state = 'active'
        for camera in self._cameras:
            self._say.info(f'Active: {camera.image_topic} and {camera.info_topic} in, '
                           f'{camera.depth_topic} out.')
        return super().on_activate(state)

    @_reporting_bugs
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening; the images in work are still answered."""
        self._stop()
        return super().on_deactivate(state)

    @_reporting_bugs
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; also after an error."""
        self._release()
        self._state = 'unconfigured'
        return super().on_cleanup(state)

    on_error = on_cleanup  # type: ignore[assignment]  # (of rclpy's, typed in part)

    @_reporting_bugs
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, for good; from any state."""
        self._release()
        self._state = 'finalized'
        return super().on_shutdown(state)

    def close(self) -> None:
        """Shut down and release everything, whatever the state."""
        self._ending.set()
        try:
            self.trigger_shutdown()
        except RuntimeError:  # shut down already, or in the middle of a transition
            self._release()

    def status(self) -> int:
        """Exit status of the process: 0 if the node is well, else 1."""
        return int(self._left_behind or self.crash is not None)

    def _check_topics(self, config: NodeConfig) -> None:
        """Refuse remappings that no camera has."""
        for topic in ('image', 'camera_info', *OUTPUTS) if '' not in config.cameras else ():
            resolved = self.resolve_topic_name(topic)
            if resolved != self.resolve_topic_name(topic, only_expand=True):
                raise ConfigError(
                    f'{topic} is remapped to {resolved}, but no camera has that topic (cameras: '
                    f'{list(config.cameras)}); remap {config.cameras[0]}/{topic} instead.')

    def _load(self, pipeline: Pipeline, config: DepthConfig, node_config: NodeConfig) -> None:
        """Give the pipeline an estimator that has run once for every size of a batch."""
        try:  # late: torch takes seconds to import, and may be missing
            from ..core.estimator import DepthEstimator
        except ImportError as error:
            raise ConfigError(
                f'{error}, in the Python of {sys.executable}. Run `depthclip doctor` with it for '
                'the fix.') from error
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
        if estimator.calibration is not None:
            self._say.info(f'Depth is {estimator.calibration.label} ({config.calibration}).')
        pipeline.estimator = estimator

    def _log(self, text: str) -> None:
        """Log what the core tells."""
        log, words = self.get_logger(), text.removeprefix('WARNING')
        if words == text:
            log.info(text)
        else:
            log.warning(words.lstrip(': '))

    def _stop(self) -> bool:
        """Answer no more images, and wait for those in work with patience; give whether idle."""
        while self._sensor_inputs:
            self._sensor_inputs.pop().destroy()
        for camera in self._cameras:
            camera.unsubscribe()
        if self._pipeline is None:
            return True
        self._pipeline.clear()
        # A batch of many cameras may take long here, and the next one as long as any before.
        patience, start = max(PATIENCE, self._settings.node.worker_timeout,
                              2e-3 * self._pipeline.network.percentile(100)), time.monotonic()
        idle = _wait_for(self._pipeline.submit(bool), until=lambda: time.monotonic() - start
                         > (LAST_PATIENCE if self._ending.is_set() else patience))
        if self._state == 'active':
            self._state = 'inactive'
            if not idle:
                self.get_logger().error(
                    f'The images in work since {self._pipeline.busy_seconds():.1f} s are not '
                    'done.')
            for camera in self._cameras:
                self._say.info(f'Stopped: {camera.label}{summary(camera.counts())}.')
        return idle

    def _release(self) -> None:
        idle = self._stop()
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            # What never comes back keeps its thread and its model; the node goes on without.
            self._left_behind |= pipeline.busy_seconds() > 0
            pipeline.end(wait=idle)
            if idle and not self._ending.is_set():  # a process that ends gives all back at once
                free_memory()
        for camera in self._cameras:
            camera.destroy()
        self._cameras, self._cameras_health, self._sensors = [], [], None

    def _on_crash(self, pipeline: Pipeline, error: BaseException) -> None:
        """Take note that the worker cannot go on; `main` ends the process."""
        if pipeline is self._pipeline:  # and not one that was left behind
            self.get_logger().fatal(''.join(traceback.format_exception(error)))
            self.crash = error

    # What all cameras have in common -------------------------------------------------------

    def _listen_to_sensors(self, config: NodeConfig) -> None:
        """Subscribe to what the anchor rests on."""
        if not config.anchor:
            return
        kind, name = SENSORS.get(config.anchor, ('', ''))
        topic = self.resolve_topic_name(name) if name else ''
        sensors = self._sensors = Sensors(config, topic, messages.read)
        if name:
            self._sensor_inputs.append(Input(self, kind, name, sensors.on_message))
        if not needs_transforms(config):
            return
        try:
            messages.message_class(messages.TF)
        except ImportError:
            self._say.once('tf', (
                'tf2_msgs is not installed here, so that tf says nothing: the anchor needs it '
                '(ros-$ROS_DISTRO-tf2-msgs), or anchor_pose, or camera_height.'))
            return
        self._sensor_inputs += [
            Input(self, messages.TF, TF, sensors.on_transforms, depth=TF_DEPTH),
            # As tf2 itself: whoever is volatile there is not heard.
            Input(self, messages.TF, TF_STATIC, sensors.on_static, depth=TF_DEPTH,
                  latched=True, yields=False)]

    def _on_jump(self, _jump: Any) -> None:
        """Transforms of a time that has not come yet hold no more."""
        if self._sensors is not None:
            self._sensors.clear()

    # Once a second -------------------------------------------------------------------------

    def _tick(self) -> None:
        """Report; nothing that fails here may end it."""
        while not self._destroyed.wait(1.0):
            try:
                self._report()
            except Exception as error:  # noqa: BLE001, PERF203
                # InvalidHandle: a topic was destroyed while it was looked at.
                if type(error).__name__ != 'InvalidHandle' and self.context.ok():
                    self._say.once('report', f'Diagnostics failed: {traceback.format_exc()}',
                                   'error')

    def _report(self) -> None:
        """Watch the inputs, and publish diagnostics."""
        pipeline = self._pipeline
        depth = self._settings.depth if pipeline is None else pipeline.config
        config = self._settings.node
        status, wrong = self._health.look(
            pipeline, (depth, config), self.crash, self._state, self._settings.conflict)
        for finding in wrong:
            finding.tell(self._say)
        message = DiagnosticArray(status=[status, *(
            health.look(config, wrong, active=self._state == 'active')
            for health in self._cameras_health)])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def _wait_for(job: Future[Any], until: Callable[[], bool]) -> bool:
    """Wait for a job of the worker; give whether it was done before that is so."""
    while not wait([job], timeout=0.1).done:
        if until():
            return False
    return True


def run() -> NoReturn:
    """Run the node as the process's program, which ends with it."""
    end_process(main())


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        Exit status: 0 after a signal or --help, 1 if the node could not start or was not well at
        the end, 2 if it does not know an argument.

    """
    signals = StopSignals()
    arguments, ending = list(sys.argv if args is None else args), signals.received
    keep_freed_memory()
    node: DepthNode | None = None
    started = False
    try:
        check_files(arguments)
        others = rclpy.utilities.remove_ros_args(arguments)[1:]
        if {'-h', '--help'} & set(others):
            sys.stdout.write(help_text())
            return 0
        if others:
            sys.stderr.write(
                f'depth_node: {quoted(" ".join(others))} is no argument of it; settings follow '
                'after --ros-args, such as -p weights:=demo (config/depth.yaml has all).\n')
            return 2
        # Our own signal handlers: rclpy's would close the context under the last messages.
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = DepthNode(ending)
        started = not node.autostart or (
            node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS)
        if started:
            _spin(node, ending)
    except ExternalShutdownException:
        started = True
    except (DepthClipError, RuntimeError, ValueError) as error:
        if node is not None:
            raise
        sys.stderr.write(f'depth_node: {explain(error)}\n')
        return 1
    finally:
        stopped = ending.is_set()
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
        signals.close()
    return node.status() if node is not None and (started or stopped) else 1


def _spin(node: DepthNode, ending: threading.Event) -> None:
    """Run callbacks until the process is to end; one that raises ends nothing."""
    # One thread: with several, rclpy loses most of a fast camera's images.
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    say = Say(node)
    while not ending.is_set() and node.crash is None:
        try:
            executor.spin_once(timeout_sec=0.2)
        except ExternalShutdownException:  # noqa: PERF203
            raise
        except Exception:  # noqa: BLE001
            say.once('callback', f'A callback failed: {traceback.format_exc()}', 'error')
    executor.shutdown(0.1)


if __name__ == '__main__':  # as the executable
    begin()
    run()
