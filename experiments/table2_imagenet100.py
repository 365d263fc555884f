"""Table 2: the lightweight ADIOS-s on ImageNet100 at 224 pixels, by linear evaluation.

    python experiments/table2_imagenet100.py   # rendered objects, two CPU cores, 3 minutes after Table 1
    python experiments/table2_imagenet100.py --preset paper --data ImageNet100 data/in100
    python experiments/table2_imagenet100.py --preset paper --dry-run

The settings are those of the authors' scripts: the paper's appendix has none for this table. They have none without
masks either, so that the baselines train with the same values.
"""

import sys

from adios_ray.config import TrialConfig, replaced
from adios_ray.tables.command import main
from adios_ray.tables.grid import Published, Row, Table
from adios_ray.tables.methods import (
    CHOICES_NOTE,
    IMAGES_NOTE,
    OBJECTIVES,
    OBJECTS,
    PREPARED_DATA,
    SMALL_EPOCHS,
    SMALL_NOTE,
    VIEW_NOTE,
    classification,
    published_training,
    small_pairs,
)

TOP1 = {
    "simclr": ((77.5, 0.10), (76.1, 0.50)),
    "simsiam": ((76.4, 0.07), (77.2, 0.09)),
    "byol": ((74.3, 0.16), (80.8, 0.60)),
}
"""Table 2 of the paper: top-1 in percent, without masks and with ADIOS-s."""


def paper() -> Table:
    """Return the paper's table: ResNet-18 at 224 pixels."""
    rows: list[Row] = []
    for objective, name in OBJECTIVES.items():
        masked = published_training("in100", "resnet18", objective, "adios-s")
        trainings = (("none", _without_masks(masked)), ("adios-s", masked))
        for (scheme, config), number in zip(trainings, TOP1[objective], strict=True):
            published = {("ImageNet100", "linear"): Published(*number)}
            names = (name, None) if scheme == "none" else (f"{name} + ADIOS-s", name)
            rows.append(Row(names[0], {"ImageNet100": (config,)}, names[1], published))
    columns = (classification("ImageNet100")[1],)
    data = {"ImageNet100": PREPARED_DATA["ImageNet100"]}
    notes = (
        "Without masks, trainings have the values of ADIOS-s, since none are published; those of the published "
        "baselines were searched. A part of the gain may be that of the search.",
        CHOICES_NOTE,
        IMAGES_NOTE,
        VIEW_NOTE,
    )
    return Table("Table 2: ADIOS-s on ImageNet100", tuple(rows), columns, data, notes)


def _without_masks(config: TrialConfig) -> TrialConfig:
    return replaced(config, {"masking.scheme": "none", "objective.masked_views": "one"})


def small() -> Table:
    """Return the table on rendered objects."""
    notes = (SMALL_NOTE,)
    rows = small_pairs("objects", SMALL_EPOCHS, "adios-s")
    return Table("ADIOS-s on rendered objects", rows, classification("objects"), {"objects": OBJECTS}, notes)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"paper": paper, "small": small}))
