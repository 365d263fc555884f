"""Table 7: does it matter what is masked? Seven masking schemes, and none, on CLEVR's multi-label task.

    python experiments/table7_clevr_masks.py   # rendered scenes, SimCLR, two CPU cores, 25 minutes
    python experiments/table7_clevr_masks.py --preset paper --data CLEVR data/clevr
    python experiments/table7_clevr_masks.py --preset paper --dry-run

The paper averages over SimCLR, SimSiam and BYOL and three seeds; ``--preset small`` trains SimCLR on 1,400
scenes, also with ADIOS-s.
"""

import sys

from adios_ray.tables.command import main
from adios_ray.tables.grid import Column, Published, Row, Table
from adios_ray.tables.methods import (
    F1_SCORES,
    IMAGES_NOTE,
    PREPARED_DATA,
    SCENES,
    multilabel,
    published_trainings,
    scenes_training,
)

NAMES = {
    "ground-truth": "a) ground truth",
    "fg-bg": "b) foreground, background",
    "box": "c) box",
    "shuffle": "d) shuffle",
    "mae": "e) MAE",
    "beit": "f) BEiT",
    "adios": "ADIOS",
    "none": "none",
}
"""Masking schemes in the order of the paper's table."""
F1 = {
    "ground-truth": ((0.373, 7e-3), (0.401, 2e-4), (0.460, 1e-2)),
    "fg-bg": ((0.346, 7e-3), (0.365, 2e-4), (0.402, 1e-3)),
    "box": ((0.347, 2e-4), (0.391, 3e-5), (0.457, 5e-2)),
    "shuffle": ((0.332, 6e-3), (0.360, 8e-4), (0.418, 1e-3)),
    "mae": ((0.309, 8e-4), (0.336, 3e-4), (0.391, 9e-4)),
    "beit": ((0.274, 1e-3), (0.307, 2e-4), (0.395, 7e-3)),
    "adios": ((0.377, 2e-3), (0.385, 9e-4), (0.451, 1e-3)),
    "none": ((0.352, 9e-3), (0.359, 2e-4), (0.373, 2e-5)),
}
"""Table 7 of the paper: macro, micro and weighted F1."""


def paper() -> Table:
    """Return the paper's table: ResNet-18 at 64 pixels, 500 epochs, mean over three objectives."""
    rows = tuple(
        Row(
            name,
            {"CLEVR": published_trainings("clevr", "resnet18", scheme)},
            baseline=None if scheme == "none" else NAMES["none"],
            published={
                ("CLEVR", f"F1 {score}"): Published(*value) for score, value in zip(F1_SCORES, F1[scheme], strict=True)
            },
        )
        for scheme, name in NAMES.items()
    )
    data = {"CLEVR": PREPARED_DATA["CLEVR"]}
    notes = (
        "F1 scores are those of the whole split, weighted by how often a label occurs; one that does not occur counts "
        "as 0. The authors' code averages over batches, weights by how often a label is predicted, and counts such a "
        "label as 1.",
        "Ours are of logistic regressions on frozen features; the authors' code scores the classifier that is trained "
        "beside the encoder. Its images of CLEVR are not normalized: hidden pixels are black, here the mean color.",
        "There are 4 masks: those of ground truth, box and shuffle are the background and 3 of up to 10 objects, drawn "
        "at random.",
        IMAGES_NOTE,
    )
    return Table("Table 7: masking schemes on CLEVR", rows, multilabel("CLEVR"), data, notes)


def small() -> Table:
    """Return the table on rendered scenes, of one objective."""
    rows = tuple(
        Row(
            name,
            {"scenes": (scenes_training(scheme),)},
            baseline=None if scheme == "none" else NAMES["none"],
        )
        for scheme, name in {**NAMES, "adios-s": "ADIOS-s"}.items()
    )
    masks = (Column("scenes", "masks' ARI", "segmentation", "ari", of_masks=True, scale=1.0, digits=3),)
    data = {"scenes": SCENES}
    notes = ("Rendered scenes with 24 labels, SimCLR, a small ResNet: directions, not the paper's numbers.",)
    return Table("Masking schemes on rendered scenes", rows, multilabel("scenes") + masks, data, notes)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"paper": paper, "small": small}))
