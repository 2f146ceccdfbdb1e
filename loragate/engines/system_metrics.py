"""What a training takes of its machine, sampled beside it and shown by MLflow as the run's system metrics.

Processor, memory, disk and network of the machine, and every GPU where there are some and pynvml is installed (the
extra `cuda`). MLflow's own monitors read them; its own loop is not used, because that waits for MLflow when it ends.

Promises: the training never waits for a sample. What MLflow does not take is lost, and nothing else. MLflow's variables
are heeded: MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false switches it off, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is the
seconds between two samples.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlflow.entities import Metric
from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.tracking import MlflowClient

from loragate.attempt import Attempt

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
SECONDS = 10.0
"""Between two samples: MLflow's own default."""
MAX_WAITING = 900
"""Measurements that wait for the run to be there, the newest: MLflow takes no more than 1,000 at once."""
LAST_SECONDS = 2.0
"""How long a training that has ended waits for its last sample to arrive."""


@contextmanager
def sampled(attempt: Attempt) -> Iterator[None]:
    """Sample the machine into the attempt's run while the context lasts; of what is no release, nothing is sampled."""
    if attempt.kind != "record" or os.environ.get(SWITCH, "").lower() in ("false", "0"):
        yield
        return
    ended = threading.Event()
    sampler = threading.Thread(target=_sample, args=(attempt, ended), name="system metrics", daemon=True)
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join(LAST_SECONDS)


def _sample(attempt: Attempt, ended: threading.Event) -> None:
    """Take samples until the training has ended, one at its end; those from before there was a run are sent with it."""
    monitors, waiting = _monitors(), list[Metric]()
    every, step, run = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or SECONDS, 0, ""
    while True:
        over = ended.wait(every)
        waiting = [*waiting, *_taken(monitors, step)][-MAX_WAITING:]
        step += 1
        tracked = attempt.journal.read().tracked if not run else None
        run = tracked.run_id if tracked else run
        if run:
            with suppress(MlflowException, OSError):
                MlflowClient(attempt.tracking_uri).log_batch(run, metrics=waiting)
            waiting = []
        if over:
            return


def _monitors() -> list[BaseMetricsMonitor]:
    found: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    found[0].collect_metrics()  # a processor's first reading is always 0: it is about the time since the one before
    found[0].clear_metrics()
    with suppress(ImportError, RuntimeError):  # no pynvml, or no NVIDIA GPU
        found.append(GPUMonitor())
    return found


def _taken(monitors: list[BaseMetricsMonitor], step: int) -> Iterator[Metric]:
    at = int(time.time() * 1000)
    for monitor in monitors:
        monitor.collect_metrics()
        found = monitor.aggregate_metrics()
        monitor.clear_metrics()
        yield from (Metric(f"system/{name}", float(value), at, step) for name, value in found.items())
