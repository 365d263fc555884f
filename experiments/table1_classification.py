"""Table 1: what ADIOS adds to SimCLR, SimSiam and BYOL, by k-NN and linear evaluation.

    python experiments/table1_classification.py   # rendered objects, two CPU cores, 7 minutes
    python experiments/table1_classification.py --preset paper --data ImageNet100-S data/in100 STL10 data/stl10
    python experiments/table1_classification.py --preset paper --dry-run

Tables 3, 4 and 5 evaluate the same encoders in other ways.
"""

import sys

from adios_ray.tables.command import main
from adios_ray.tables.grid import Table
from adios_ray.tables.methods import (
    CHOICES_NOTE,
    IMAGES_NOTE,
    OBJECTS,
    PREPARED_DATA,
    SMALL_EPOCHS,
    SMALL_NOTE,
    VIEW_NOTE,
    classification,
    published_backbones,
    small_pairs,
)

PRESETS = {"ImageNet100-S": "in100s", "STL10": "stl10"}
COLUMNS = tuple((group, name) for group in PRESETS for name in ("k-NN", "linear"))
TOP1 = {
    "vit_tiny_patch16_224": {
        ("simclr", "none"): ((40.0, 0.28), (40.2, 0.47), (72.9, 0.27), (76.0, 0.33)),
        ("simclr", "adios"): ((42.0, 1.32), (43.1, 0.71), (73.4, 0.28), (79.7, 0.88)),
        ("simsiam", "none"): ((35.2, 1.12), (36.8, 1.82), (66.7, 0.10), (67.5, 0.02)),
        ("simsiam", "adios"): ((38.8, 2.73), (40.1, 0.59), (67.9, 0.75), (68.8, 0.25)),
        ("byol", "none"): ((38.1, 0.61), (39.7, 0.50), (71.9, 0.12), (72.1, 0.32)),
        ("byol", "adios"): ((47.1, 0.35), (49.2, 0.94), (74.5, 0.58), (75.9, 0.63)),
    },
    "resnet18": {
        ("simclr", "none"): ((54.1, 0.09), (55.1, 0.15), (83.7, 0.48), (85.1, 0.12)),
        ("simclr", "adios"): ((55.1, 0.43), (55.9, 0.21), (85.8, 0.10), (86.1, 0.36)),
        ("simsiam", "none"): ((58.6, 0.31), (59.5, 0.31), (84.3, 0.81), (84.8, 0.72)),
        ("simsiam", "adios"): ((61.0, 0.29), (60.4, 0.19), (84.6, 0.35), (86.4, 0.24)),
        ("byol", "none"): ((56.2, 0.79), (56.3, 0.10), (83.6, 0.09), (84.3, 0.13)),
        ("byol", "adios"): ((60.2, 0.82), (61.4, 0.14), (84.8, 0.19), (85.6, 0.24)),
    },
}
"""Table 1 of the paper: top-1 in percent, in the order of ``COLUMNS``."""


def paper() -> Table:
    """Return the paper's table: two backbones at 96 pixels."""
    rows = published_backbones(PRESETS, COLUMNS, TOP1)
    columns = tuple(column for group in PRESETS for column in classification(group))
    data = {group: PREPARED_DATA[group] for group in PRESETS}
    return Table("Table 1: classification", rows, columns, data, (CHOICES_NOTE, IMAGES_NOTE, VIEW_NOTE))


def small() -> Table:
    """Return the table on rendered objects."""
    notes = (SMALL_NOTE,)
    rows = small_pairs("objects", SMALL_EPOCHS)
    return Table("Classification of rendered objects", rows, classification("objects"), {"objects": OBJECTS}, notes)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"paper": paper, "small": small}))
