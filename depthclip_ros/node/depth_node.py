# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-calls
# (rclpy's Node, of which this is one, is typed in part only)
"""The lifecycle node: it subscribes to images and publishes their depth.

`message_types.INPUTS`, `anchors.SENSORS` and `outputs.OUTPUTS` list its topics, `DepthConfig` and
`NodeConfig` its parameters (docs/reference has them all). In addition there are qos_overrides of
all topics but /diagnostics. Each camera in `cameras` has all topics under its name.

The newest image wins: while the network is busy, one image of each camera waits, and a newer one
replaces it. When the network is free, it processes all waiting images as one batch. While no
output of a camera has a subscriber, its images are counted as idle and never reach the network.
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
from ..executables import prepare_process
from ..messages import message_types as messages
from ..messages.anchors import SENSORS, TF, TF_STATIC, AnchorSensor, needs_transforms
from ..messages.node_config import NodeConfig
from ..messages.outputs import OUTPUTS
from .camera import Camera, ThrottledLog, account_summary
from .health import CameraHealth, NodeHealth
from .parameters import Parameters, help_text
from .process import (
    StopSignals,
    check_files,
    end_process,
    keep_freed_memory,
    rclpy_error_text,
    warn_of_files,
)
from .subscriptions import OVERRIDES, AdaptiveSubscription, check_overrides
from .worker import Worker, free_memory

Transition = Callable[['DepthNode', LifecycleState], TransitionCallbackReturn]

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

TF_QUEUE = 100  # queue of tf2's own listeners
STOP_TIMEOUT = 10.0  # least seconds that the images in work have when the node stops
SHUTDOWN_TIMEOUT = 1.0  # seconds that they have when the process ends


def _log_exceptions(transition: Transition) -> Transition:
    """Log what a transition raises, which rclpy turns into ERROR without a message."""
    @functools.wraps(transition)
    def wrapper(self: DepthNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception:
            self.get_logger().fatal(traceback.format_exc())
            raise
    return wrapper


def _reject_invalid_transitions(node: LifecycleNode) -> None:
    """Respond to requests for transitions that do not exist or that the state does not allow.

    rclpy raises an error instead of responding, so that the client would wait forever.
    """
    service = node._service_change_state  # noqa: SLF001 (rclpy has no public access to it)
    change_state = service.callback

    def respond(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except RuntimeError:
            node.get_logger().warning(
                f'change_state: transition {request.transition.id} is not possible now. '
                f'ros2 lifecycle list {node.get_fully_qualified_name()} shows which are.')
            response.success = False
            return response
    service.callback = respond


class DepthNode(LifecycleNode):
    """DepthCLIP as a managed node.

    Attributes:
        crash: error that ended the worker; None while it works.

    """

    def __init__(self, ending: threading.Event | None = None, **kwargs: Any) -> None:
        """Declare the parameters; the event `ending` is set when the process shall end.

        Raises:
            ConfigError: a parameter is unknown or wrong.

        """
        super().__init__('depth_node', automatically_declare_parameters_from_overrides=True,
                         **kwargs)
        self._qos_overrides = tuple(self.get_parameters_by_prefix(OVERRIDES))
        self._worker: Worker | None = None
        try:
            self._settings = Parameters(self, lambda: self._worker)
        except ConfigError:  # the incomplete node is in the graph already
            super().destroy_node()
            self._state_machine.destroy_when_not_in_use()
            raise
        self.crash: BaseException | None = None
        self._ending = ending or threading.Event()
        self._log = ThrottledLog(self)
        self._worker_abandoned = False
        self._state = 'unconfigured'  # of the lifecycle, or 'loading'
        self._cameras: list[Camera] = []
        self._sensor: AnchorSensor | None = None
        self._sensor_subscriptions: list[AdaptiveSubscription] = []
        self._health, self._cameras_health = NodeHealth(self), list[CameraHealth]()
        self.autostart = self._settings.node_config.autostart
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1)),
            post_callback=self._on_jump)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A thread of its own reports also while a callback takes long.
        self._destroyed = threading.Event()
        self._ticker = threading.Thread(target=self._run_ticker, name='ticker', daemon=True)
        self._ticker.start()
        _reject_invalid_transitions(self)

    def destroy_node(self) -> None:
        """End the ticker, and destroy the node, which leaves the graph."""
        self._destroyed.set()
        self._ticker.join(1.0)
        self._jump_handle.unregister()
        super().destroy_node()
        # It holds the node, which would stay in the graph for 20 s after the process's end.
        self._state_machine.destroy_when_not_in_use()

    # Lifecycle -----------------------------------------------------------------------------

    @_log_exceptions
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model; FAILURE, with the reason in the log, if that fails."""
        self._state = 'loading'
        try:
            depth, config = self._settings.configs()
            # Before loading, which takes seconds: subscribers discover the topics meanwhile.
            for name in config.cameras:
                self._cameras.append(Camera(self, config, name))
            self._check_remappings(config)
            worker = self._worker = Worker(self, depth, self._on_crash)
            loaded = worker.submit(lambda: self._load(worker, depth, config))
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

    @_log_exceptions
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to images and to the sensor of the anchor, and publish depth."""
        if self._worker is None:
            raise RuntimeError('no model is loaded')
        try:
            self._subscribe_to_sensor(self._settings.node_config)
            for camera in self._cameras:
                camera.subscribe(self._worker.put, self._sensor)
            check_overrides(self, self._qos_overrides)
        except ConfigError as error:
            self.get_logger().error(f'Cannot activate: {error}')
            self._stop()
            return FAILURE
        self._cameras_health = [CameraHealth(self, camera, self._worker)
                                for camera in self._cameras]
        self._state = 'active'
        for camera in self._cameras:
            self._log.announce(f'Active: {camera.image_topic} and {camera.info_topic} in, '
                               f'{camera.depth_topic} out.')
        return super().on_activate(state)

    @_log_exceptions
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the images in work are still published."""
        self._stop()
        return super().on_deactivate(state)

    @_log_exceptions
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model and all topics; also after an error."""
        self._release()
        self._state = 'unconfigured'
        return super().on_cleanup(state)

    on_error = on_cleanup  # type: ignore[assignment]  # (of rclpy's, typed in part)

    @_log_exceptions
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model and all topics, from any state, for good."""
        self._release()
        self._state = 'finalized'
        return super().on_shutdown(state)

    def close(self) -> None:
        """Shut down and release the model and all topics, in any state."""
        self._ending.set()
        try:
            self.trigger_shutdown()
        except RuntimeError:  # shut down already, or in the middle of a transition
            self._release()

    def exit_status(self) -> int:
        """Return the process's exit status: 1 if the worker crashed or never ended, else 0."""
        return int(self._worker_abandoned or self.crash is not None)

    def _check_remappings(self, config: NodeConfig) -> None:
        """Refuse remappings of topics that no camera has."""
        for topic in ('image', 'camera_info', *OUTPUTS) if '' not in config.cameras else ():
            resolved = self.resolve_topic_name(topic)
            if resolved != self.resolve_topic_name(topic, only_expand=True):
                raise ConfigError(
                    f'{topic} is remapped to {resolved}, but no camera has that topic (cameras: '
                    f'{list(config.cameras)}); remap {config.cameras[0]}/{topic} instead.')

    def _load(self, worker: Worker, config: DepthConfig, node_config: NodeConfig) -> None:
        """Load the worker's estimator, and run it once for every batch size."""
        try:  # here, since torch takes seconds to import, and may be missing
            from ..core.estimator import DepthEstimator
        except ImportError as error:
            raise ConfigError(
                f'{error}, in the Python of {sys.executable}. Run `depthclip doctor` with it for '
                'the fix.') from error
        estimator = DepthEstimator(
            config, node_config.weights, node_config.device, cache_dir=node_config.cache_dir,
            offline=node_config.offline, num_threads=node_config.num_threads, log=self._log_line)
        start = time.perf_counter()
        estimator.warm_up(largest_batch=len(node_config.cameras))
        self._log.announce(
            f'Configured: weights {estimator.weights.name} on {estimator.device} in '
            f'{estimator.precision}, engine {estimator.engine}, input '
            f'{config.input_width}x{config.input_height}, text '
            f'features {"from the cache" if estimator.text_cache_hit else "encoded"}, warm-up '
            f'{time.perf_counter() - start:.2f} s.')
        if estimator.calibration is not None:
            self._log.announce(f'Depth is {estimator.calibration.label} ({config.calibration}).')
        worker.estimator = estimator

    def _log_line(self, text: str) -> None:
        """Log a line of the core, as a warning if it begins with WARNING."""
        log, words = self.get_logger(), text.removeprefix('WARNING')
        if words == text:
            log.info(text)
        else:
            log.warning(words.lstrip(': '))

    def _stop(self) -> bool:
        """Unsubscribe, drop waiting images, and wait for those in work; return whether idle."""
        while self._sensor_subscriptions:
            self._sensor_subscriptions.pop().destroy()
        for camera in self._cameras:
            camera.unsubscribe()
        if self._worker is None:
            return True
        self._worker.clear()
        # A batch of many cameras may take long on a slow machine; allow twice the longest one.
        timeout, start = max(STOP_TIMEOUT, self._settings.node_config.worker_timeout,
                             2e-3 * self._worker.network_ms.percentile(100)), time.monotonic()
        idle = _wait_for(self._worker.submit(bool), until=lambda: time.monotonic() - start
                         > (SHUTDOWN_TIMEOUT if self._ending.is_set() else timeout))
        if self._state == 'active':
            self._state = 'inactive'
            if not idle:
                self.get_logger().error(
                    f'The images in work since {self._worker.busy_seconds():.1f} s are not '
                    'done.')
            for camera in self._cameras:
                self._log.announce(f'Stopped: {camera.label}{account_summary(camera.counts())}.')
        return idle

    def _release(self) -> None:
        idle = self._stop()
        worker, self._worker = self._worker, None
        if worker is not None:
            # A stuck worker keeps its thread and its model; the node goes on without it.
            self._worker_abandoned |= worker.busy_seconds() > 0
            worker.end(wait=idle)
            if idle and not self._ending.is_set():  # the end of a process frees all at once
                free_memory()
        for camera in self._cameras:
            camera.destroy()
        self._cameras, self._cameras_health, self._sensor = [], [], None

    def _on_crash(self, worker: Worker, error: BaseException) -> None:
        """Record the worker's crash; `main` then ends the process."""
        if worker is self._worker:  # and not an abandoned one
            self.get_logger().fatal(''.join(traceback.format_exception(error)))
            self.crash = error

    # The sensor of the anchor, shared by all cameras ---------------------------------------

    def _subscribe_to_sensor(self, config: NodeConfig) -> None:
        """Subscribe to the anchor's sensor, and to tf if it is needed."""
        if not config.anchor:
            return
        message_type, name = SENSORS.get(config.anchor, ('', ''))
        topic = self.resolve_topic_name(name) if name else ''
        sensor = self._sensor = AnchorSensor(config, topic, messages.deserialize)
        if name:
            self._sensor_subscriptions.append(
                AdaptiveSubscription(self, message_type, name, sensor.on_message))
        if not needs_transforms(config):
            return
        try:
            messages.message_class(messages.TF)
        except ImportError:
            self._log.write('tf', (
                'tf2_msgs is not installed here, so that tf is not available: the anchor needs it '
                '(ros-$ROS_DISTRO-tf2-msgs), or anchor_pose, or camera_height.'))
            return
        self._sensor_subscriptions += [
            AdaptiveSubscription(self, messages.TF, TF, sensor.on_transforms, depth=TF_QUEUE),
            # As tf2's own listener, which does not match volatile publishers of /tf_static.
            AdaptiveSubscription(self, messages.TF, TF_STATIC, sensor.on_static, depth=TF_QUEUE,
                                 transient_local=True, adapts_durability=False)]

    def _on_jump(self, _jump: Any) -> None:
        """Clear the stored messages after time jumped back: their stamps are of another time."""
        if self._sensor is not None:
            self._sensor.clear()

    # Once a second -------------------------------------------------------------------------

    def _run_ticker(self) -> None:
        """Publish diagnostics every second; an error in one second does not end it."""
        while not self._destroyed.wait(1.0):
            try:
                self._publish_diagnostics()
            except Exception as error:  # noqa: BLE001, PERF203
                # InvalidHandle: a topic was destroyed meanwhile.
                if type(error).__name__ != 'InvalidHandle' and self.context.ok():
                    self._log.write('report', f'Diagnostics failed: {traceback.format_exc()}',
                                    'error')

    def _publish_diagnostics(self) -> None:
        """Update the findings, log them, and publish them on /diagnostics."""
        worker = self._worker
        depth = self._settings.depth_config if worker is None else worker.config
        config = self._settings.node_config
        status, node_findings = self._health.update(
            worker, (depth, config), self.crash, self._state, self._settings.conflict)
        for finding in node_findings:
            finding.log(self._log)
        message = DiagnosticArray(status=[status, *(
            health.update(config, node_findings, active=self._state == 'active')
            for health in self._cameras_health)])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def _wait_for(job: Future[Any], until: Callable[[], bool]) -> bool:
    """Wait for a job of the worker; return False if `until` becomes true before its end."""
    while not wait([job], timeout=0.1).done:
        if until():
            return False
    return True


def run() -> NoReturn:
    """Run the node, and end the process with its exit status."""
    end_process(main())


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        Exit status: 0 after a signal or --help, 1 if the node could not start or its worker
        crashed or never ended, 2 for an unknown argument.

    """
    signals = StopSignals()
    arguments, ending = list(sys.argv if args is None else args), signals.received
    keep_freed_memory()
    node: DepthNode | None = None
    started = False
    try:
        check_files(arguments)
        extra = rclpy.utilities.remove_ros_args(arguments)[1:]
        if {'-h', '--help'} & set(extra):
            sys.stdout.write(help_text())
            return 0
        if extra:
            sys.stderr.write(
                f'depth_node: {quoted(" ".join(extra))} is no argument of it; settings '
                'follow after --ros-args, such as -p weights:=demo (config/depth.yaml has all).\n')
            return 2
        # Not rclpy's signal handlers, which would close the context under the last messages.
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = DepthNode(ending)
        warn_of_files(node, arguments)
        started = not node.autostart or (
            node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS)
        if started:
            _spin(node, ending)
    except ExternalShutdownException:
        started = True
    except (DepthClipError, RuntimeError, ValueError) as error:
        if node is not None:
            raise
        sys.stderr.write(f'depth_node: {rclpy_error_text(error)}\n')
        return 1
    finally:
        stopped = ending.is_set()
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
        signals.close()
    return node.exit_status() if node is not None and (started or stopped) else 1


def _spin(node: DepthNode, ending: threading.Event) -> None:
    """Run callbacks until the process shall end; log an error of one, and go on."""
    # A single thread: with several, rclpy loses most of a fast camera's images.
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    log = ThrottledLog(node)
    while not ending.is_set() and node.crash is None:
        try:
            executor.spin_once(timeout_sec=0.2)
        except ExternalShutdownException:  # noqa: PERF203
            raise
        except Exception:  # noqa: BLE001
            log.write('callback', f'A callback failed: {traceback.format_exc()}', 'error')
    executor.shutdown(0.1)


if __name__ == '__main__':  # as the executable
    prepare_process()
    run()
