"""Table 3: clustering of the encoders of Table 1, by k-means: FMI, ARI and NMI.

    python experiments/table3_clustering.py   # rendered objects, two CPU cores, 2 minutes after Table 1
    python experiments/table3_clustering.py --preset paper --data ImageNet100-S data/in100 STL10 data/stl10
    python experiments/table3_clustering.py --preset paper --dry-run

The trainings are those of Table 1: whichever table runs first trains them.
"""

import sys

from adios_ray.tables.command import main
from adios_ray.tables.grid import Column, Table
from adios_ray.tables.methods import (
    IMAGES_NOTE,
    OBJECTS,
    PREPARED_DATA,
    SMALL_EPOCHS,
    SMALL_NOTE,
    VIEW_NOTE,
    published_backbones,
    small_pairs,
    view_of,
)

PRESETS = {"ImageNet100-S": "in100s", "STL10": "stl10"}
SCORES = ("FMI", "ARI", "NMI")
COLUMNS = tuple((group, score) for group in PRESETS for score in SCORES)
INDICES = {
    "vit_tiny_patch16_224": {
        ("simclr", "none"): (
            (0.105, 1e-3), (0.095, 1e-3), (0.432, 3e-3), (0.349, 5e-3), (0.269, 6e-3), (0.410, 2e-3),
        ),
        ("simclr", "adios"): (
            (0.120, 1e-3), (0.110, 1e-3), (0.442, 4e-3), (0.351, 4e-3), (0.271, 8e-3), (0.417, 6e-3),
        ),
        ("simsiam", "none"): (
            (0.077, 9e-4), (0.067, 2e-3), (0.389, 3e-3), (0.296, 3e-3), (0.177, 1e-3), (0.341, 4e-3),
        ),
        ("simsiam", "adios"): (
            (0.098, 1e-2), (0.087, 9e-4), (0.425, 3e-3), (0.320, 3e-3), (0.235, 5e-3), (0.349, 0.0),
        ),
        ("byol", "none"): (
            (0.098, 8e-3), (0.088, 8e-3), (0.418, 4e-3), (0.349, 5e-3), (0.269, 5e-3), (0.410, 5e-3),
        ),
        ("byol", "adios"): (
            (0.132, 3e-3), (0.123, 1e-3), (0.458, 4e-3), (0.355, 4e-2), (0.276, 3e-3), (0.422, 4e-3),
        ),
    },
    "resnet18": {
        ("simclr", "none"): (
            (0.151, 3e-3), (0.135, 4e-3), (0.515, 6e-3), (0.338, 2e-3), (0.166, 9e-4), (0.512, 5e-3),
        ),
        ("simclr", "adios"): (
            (0.175, 1e-3), (0.161, 4e-3), (0.539, 3e-3), (0.437, 6e-3), (0.309, 9e-3), (0.585, 8e-3),
        ),
        ("simsiam", "none"): (
            (0.167, 2e-3), (0.136, 6e-3), (0.553, 8e-3), (0.392, 2e-3), (0.242, 7e-3), (0.552, 3e-3),
        ),
        ("simsiam", "adios"): (
            (0.179, 1e-3), (0.161, 1e-3), (0.553, 1e-3), (0.412, 8e-3), (0.249, 7e-3), (0.558, 2e-4),
        ),
        ("byol", "none"): (
            (0.170, 1e-3), (0.158, 3e-3), (0.530, 4e-3), (0.429, 5e-3), (0.328, 9e-3), (0.525, 8e-3),
        ),
        ("byol", "adios"): (
            (0.179, 6e-4), (0.156, 2e-3), (0.561, 2e-3), (0.508, 6e-3), (0.422, 1e-2), (0.588, 9e-3),
        ),
    },
}  # fmt: skip
"""Table 3 of the paper, in the order of ``COLUMNS``."""


def columns(group: str) -> tuple[Column, ...]:
    """Return the three columns of a group."""
    options = view_of(group)
    return tuple(Column(group, score, "clustering", score.lower(), options, scale=1.0, digits=3) for score in SCORES)


def paper() -> Table:
    """Return the paper's table: two backbones at 96 pixels."""
    rows = published_backbones(PRESETS, COLUMNS, INDICES)
    data = {group: PREPARED_DATA[group] for group in PRESETS}
    notes = (
        "There is a cluster for each class, of the backbone's features of the test images. The authors' code has one "
        "cluster fewer; it clusters training images and the projector's features too, and the paper does not say which "
        "of these it reports.",
        IMAGES_NOTE,
        VIEW_NOTE,
    )
    return Table("Table 3: clustering", rows, tuple(c for group in PRESETS for c in columns(group)), data, notes)


def small() -> Table:
    """Return the table on rendered objects."""
    notes = (SMALL_NOTE,)
    rows = small_pairs("objects", SMALL_EPOCHS)
    return Table("Clustering of rendered objects", rows, columns("objects"), {"objects": OBJECTS}, notes)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"paper": paper, "small": small}))
