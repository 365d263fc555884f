"""A trial's report: made by its trainer, and passed on unchanged to the population and the run's files."""

import math

from adios_ray.validation import Record


class Measured(Record):
    """Measurements of the epochs since the previous report."""

    epoch: int
    """Epochs completed."""
    fitness: float = math.nan
    """The measure that ``evaluation.fitness`` names, on validation images of selection; nan if the trial diverged or
    collapsed."""
    standard_error: float | None = None
    """Standard error of ``fitness`` over images; None where it is unknown."""
    accuracy: float = math.nan
    """Accuracy on the same images, 0 to 1 (multi-label: share of labels that are right); nan where the measure needs no
    labels."""
    holdout_fitness: float = math.nan
    """The same measure on the validation images that take no part in decisions, for the final comparison of trials."""
    holdout_standard_error: float | None = None
    """Standard error of ``holdout_fitness`` over images; None where it is unknown."""
    loss: float = math.nan
    """Mean loss of the objective over steps and slots."""
    penalty: float = math.nan
    """Mean sparsity term."""
    probe_accuracy: float = math.nan
    """Share of the labeled training images that the online probe classified right, 0 to 1."""
    slot_overlap: float = 0.0
    """Largest overlap of two slots, 0 to 1."""
    mask_mean_min: float = 0.0
    """Mean mask value of the smallest slot."""
    mask_mean_max: float = 0.0
    """Mean mask value of the largest slot."""
    images_per_s: float = 0.0
    """Training images a second, over all workers of the trial."""
    data_wait_fraction: float = 0.0
    """Share of the epoch spent waiting for data, 0 to 1."""
    train_s: float = math.nan
    """Seconds of training since the previous report, waiting for data included."""
    evaluate_s: float = math.nan
    """Seconds of the evaluation behind this report."""
    checkpoint_s: float = math.nan
    """Seconds of saving the weights and masks behind this report, and of publishing them to remote storage."""
    load_s: float = math.nan
    """Seconds of loading a copied checkpoint since the previous report; part of ``idle_s``."""
    idle_s: float = 0.0
    """Seconds from sending the previous report to the next step: decisions, waiting for other trials, loading."""
    worker_pid: int = 0
    """Process ID of the first worker of the trial, which an exploit does not change."""


class TrialReport(Measured):
    """A trainer's report: measurements, and whether the trial diverged or is done."""

    outcomes: str | None = None
    """Numbers whose mean is ``fitness``, for paired tests, in base64. One byte for each validation image of selection,
    in the order of the split: 255 times its outcome in [0, 1], rounded. For macro F1, an array in numpy's npy format:
    the jackknife's pseudo-values of groups of images. None for measures without labels."""
    divergence: str | None = None
    """How the trial diverged or collapsed; None if it did not."""
    done: bool = False
    """Whether this was the last epoch."""
