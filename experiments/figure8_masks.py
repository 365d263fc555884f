"""Figure 8: the masks that ADIOS learns, with each image below its masks in color.

    python experiments/figure8_masks.py   # rendered scenes, two CPU cores, 5 minutes
    python experiments/figure8_masks.py --preset paper \
        --data STL10 data/stl10 CLEVR data/clevr ImageNet100-S data/in100
    python experiments/figure8_masks.py --preset paper --dry-run

One picture for each data set, from SimCLR with ADIOS and ResNet-18, and from Table 7's encoder for CLEVR. Its trainings
are those of Tables 1 and 7.
"""

import sys

from adios_ray.tables.command import main
from adios_ray.tables.grid import Column, Row, Table
from adios_ray.tables.methods import PREPARED_DATA, SCENES, published_training, scenes_training

PRESETS = {"STL10": "stl10", "CLEVR": "clevr", "ImageNet100-S": "in100s"}
IMAGES = 8


def columns(groups: tuple[str, ...]) -> tuple[Column, ...]:
    """Return the sizes of the slots, which tell whether a picture shows collapsed masks."""
    return tuple(Column(group, "largest slot", "slots", "mask_mean_max", of_masks=True) for group in groups)


def paper() -> Table:
    """Return the paper's three trainings."""
    trainings = {
        group: (published_training(preset, "resnet18", "simclr", "adios"),) for group, preset in PRESETS.items()
    }
    data = {group: PREPARED_DATA[group] for group in PRESETS}
    return Table("Figure 8: masks", (Row("SimCLR + ADIOS", trainings),), columns(tuple(PRESETS)), data, pictures=IMAGES)


def small() -> Table:
    """Return one training on rendered scenes: that of Table 7's small setting."""
    row = Row("SimCLR + ADIOS", {"scenes": (scenes_training("adios"),)})
    return Table("Masks on rendered scenes", (row,), columns(("scenes",)), {"scenes": SCENES}, pictures=IMAGES)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"paper": paper, "small": small}))
