"""What a server measures, for Prometheus."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts and times; safe in any thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # each would be twice as long
        self.registry = CollectorRegistry()
        own: Any = {"namespace": "speechkit", "registry": self.registry}
        self.opened = Counter("streams_opened", "Streams that began.", ["protocol"], **own)
        self.closed = Counter("streams_closed", "Streams that ended.", ["protocol", "reason"], **own)
        self.refused = Counter("refused", "Connections and requests that were refused.", ["reason"], **own)
        self.resumed = Counter("streams_resumed", "Streams that a client came back to.", **own)
        self.audio = Counter("audio_seconds", "Audio that came in.", **own)
        self.words = Counter("words", "Words in final results.", **own)
        self.batch = Histogram("batch_size", "Streams in a call of the model.", buckets=SIZES, **own)
        self.step = Histogram("step_seconds", "Duration of a call of the model.", buckets=FAST, **own)
        self.queueing = Histogram("queueing_seconds", "From audio being there to its call.", buckets=FAST, **own)
        self.latency = Histogram(
            "word_latency_seconds",
            "From the audio in which a word was recognised coming in to the word going out.",
            buckets=FAST,
            **own,
        )
        self.failures = Counter("model_failures", "Streams for which the model failed.", **own)
        self.busy = Counter("step_busy_seconds", "Time spent in calls of the model: per second, how busy it is.", **own)
        self._lock = threading.Lock()
        self.failing = 0  # calls in a row that failed for all of their streams

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Something that is read when it is asked for."""
        Gauge(name, text, namespace="speechkit", registry=self.registry).set_function(read)

    def stepped(self, batch: int, failed: int, seconds: float, waited: Sequence[float]) -> None:
        """As `Meter.stepped`."""
        self.batch.observe(batch)
        self.step.observe(seconds)
        self.busy.inc(seconds)
        for wait in waited:
            self.queueing.observe(wait)
        self.failures.inc(failed)
        with self._lock:
            self.failing = self.failing + 1 if failed == batch else 0

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
