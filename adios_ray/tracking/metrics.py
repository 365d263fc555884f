"""Publishes trials' measurements on Ray's metrics endpoint."""

from ray.util.metrics import Gauge

from adios_ray.tracking.formatting import label
from adios_ray.tracking.results import Row

GAUGES = {
    "fitness": "evaluation.fitness on the validation images of selection",
    "standard_error": "standard error of the fitness over images",
    "accuracy": "accuracy on the same images, 0 to 1",
    "images_per_s": "training images per second",
    "slot_overlap": "largest overlap of two slots, 0 to 1",
    "data_wait_fraction": "share of training time spent waiting for data",
    "epoch": "completed epochs",
}


class RayMetrics:
    """A gauge for each measurement, ``adios_<name>``, and searched value, ``adios_<path>`` with underscores for dots.

    All are tagged with run and trial. A value that is not a number is the tag "value" of a gauge that is 1.
    """

    def __init__(self, run: str) -> None:
        """Register the gauges of a run; needs a connection to Ray."""
        self._run = run
        self._gauges = {name: self._gauge(name, text, "trial") for name, text in GAUGES.items()}
        self._values: dict[str, Gauge] = {}

    def _gauge(self, name: str, description: str, *tags: str) -> Gauge:
        gauge = Gauge(f"adios_{name}", description=description, tag_keys=("run", *tags))
        gauge.set_default_tags({"run": self._run})
        return gauge

    def report(self, row: Row) -> None:
        """Publish a trial's report."""
        for name, gauge in self._gauges.items():
            if (value := getattr(row, name)) is not None:
                gauge.set(float(value), tags={"trial": row.trial})
        for path, value in row.values.items():
            if path not in self._values:
                name = path.replace(".", "_")
                self._values[path] = self._gauge(name, f"searched value: {label(path)}", "trial", "value")
            is_number = isinstance(value, int | float)
            tags = {"trial": row.trial, "value": "" if is_number else str(value)}
            self._values[path].set(float(value) if is_number else 1.0, tags=tags)
