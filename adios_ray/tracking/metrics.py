"""Trials' figures on Ray's metrics endpoint."""

from ray.util.metrics import Gauge

from adios_ray.tracking.records import Row

GAUGES = {
    "fitness": "what evaluation.fitness says of the validation images",
    "sparsity_weight": "lambda, weight of the sparsity penalty",
    "encoder_lr": "peak learning rate of the encoder",
    "occlusion_lr": "peak learning rate of the occlusion model",
    "slots": "number of masks N",
    "images_per_s": "training images a second",
    "slot_overlap": "largest overlap of two slots, 0 to 1",
    "data_wait_fraction": "share of training time spent waiting for data",
    "epoch": "epochs done",
}


class RayMetrics:
    """One gauge a figure, named ``adios_<figure>``, tagged with run and trial."""

    def __init__(self, run: str) -> None:
        """Register the gauges of a run; needs a connection to Ray."""
        self._gauges = {
            name: Gauge(f"adios_{name}", description=text, tag_keys=("run", "trial")) for name, text in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def report(self, row: Row) -> None:
        """Publish a trial's report."""
        for name, gauge in self._gauges.items():
            gauge.set(float(getattr(row, name)), tags={"trial": row.trial})
