"""The sampler: a thread that looks at the machine twice a second and writes down what was measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from graft.profiler.records import Facts, RecordWriter
from graft.profiler.stopwatch import STEP_COLUMNS, Stopwatch

FLUSH_S = 5.0  # between two flushes; after 500 s a hundredth of the time so far, so that parts stay few


class Sampler:
    """Samples and writes from `start` to `stop`.

    Args:
        writer: of the records.
        watch: of the run.
        interval_s: seconds between two samples.
        facts: what is known of the run by now.
    """

    def __init__(self, writer: RecordWriter, watch: Stopwatch, interval_s: float, facts: Callable[[], Facts]) -> None:
        self.writer, self.watch, self.interval_s, self.facts = writer, watch, interval_s, facts
        self.machine = Machine()
        self._rows: list[list[float]] = []
        self._flushed = watch.clock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="profiler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with all that was measured written."""
        self._stopping.set()
        self._thread.join()
        self.flush()

    def flush(self) -> None:
        """Write what was measured since the last time."""
        rows, self._rows = self._rows, []
        steps = self.watch.steps[:]
        del self.watch.steps[: len(steps)]  # the run goes on appending meanwhile
        self.writer.write("samples", ["seconds", *self.machine.columns], rows)
        self.writer.write("steps", STEP_COLUMNS, steps)
        self.writer.write_session(self.facts(), self.watch.totals())
        self._flushed = self.watch.clock()

    def _run(self) -> None:
        while not self._stopping.wait(self.interval_s):
            now = self.watch.clock()
            self._rows.append([now - self.watch.started, *self.machine.sample()])
            if now - self._flushed >= max(FLUSH_S, (now - self.watch.started) / 100):
                self.flush()


class Machine:
    """What psutil and NVML say of this machine; rates are over the time since the last sample."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        import psutil

        self._psutil, self._clock = psutil, clock
        self._gpus = open_gpus()
        cores = len(psutil.cpu_times_percent(percpu=True))
        self._before, self._counted = clock(), self._counters()
        self.columns = [
            "cpu_percent",
            *(f"cpu{core}_percent" for core in range(cores)),
            "iowait_percent",
            "memory_percent",
            "disk_read_mb_s",
            "disk_write_mb_s",
            "net_mb_s",
            *(f"gpu{gpu}_{name}" for gpu in range(len(self._gpus)) for name in ("percent", "memory_percent", "watts")),
        ]

    def sample(self) -> list[float]:
        """A number for each of `columns`."""
        # iowait is Linux's alone.
        cores = [(100 - c.idle - getattr(c, "iowait", 0.0), getattr(c, "iowait", 0.0)) for c in self._core_times()]
        now, counted = self._clock(), self._counters()
        elapsed = max(now - self._before, 1e-9)
        rates = [(new - old) / 1e6 / elapsed for new, old in zip(counted, self._counted, strict=True)]
        self._before, self._counted = now, counted
        busy = [core for core, _ in cores]
        mean_wait = sum(wait for _, wait in cores) / len(cores)
        memory = self._psutil.virtual_memory().percent
        return [sum(busy) / len(busy), *busy, mean_wait, memory, *rates, *(n for gpu in self._gpus for n in gpu())]

    def _core_times(self) -> list[Any]:
        times: list[Any] = self._psutil.cpu_times_percent(percpu=True)
        return times

    def _counters(self) -> list[float]:
        """Bytes read from disks, written to them, and sent and received, since the machine started."""
        # None in containers that hide them.
        disk, net = self._psutil.disk_io_counters(), self._psutil.net_io_counters()
        disks = [disk.read_bytes, disk.write_bytes] if disk else [0, 0]
        return [*disks, net.bytes_sent + net.bytes_recv if net else 0]


def open_gpus() -> list[Callable[[], tuple[float, float, float]]]:
    """Of each NVIDIA GPU, what tells how busy it is, how full its memory (both 0..100), and its watts.

    What a GPU does not tell is NaN.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver: no GPU
        return []
    return [_gpu(pynvml, handle) for handle in handles]


def _gpu(nvml: Any, handle: Any) -> Callable[[], tuple[float, float, float]]:
    def busy() -> float:
        return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    def memory() -> float:
        held = nvml.nvmlDeviceGetMemoryInfo(handle)
        return float(100 * held.used / held.total)

    def watts() -> float:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000

    def told(figure: Callable[[], float]) -> float:
        try:
            return figure()
        except nvml.NVMLError:  # a divided GPU (MIG) tells neither how busy it is nor its power; others fail at times
            return float("nan")

    return lambda: (told(busy), told(memory), told(watts))
