"""What the sparsity weight does to masks and features, from too small to too large.

    python experiments/sparsity_sweep.py   # rendered scenes, two CPU cores, 25 minutes

Trains SimCLR with ADIOS at each weight, and draws the masks, so that a collapsed occlusion model can be recognized.
"""

import sys

from adios_ray.tables.command import main
from adios_ray.tables.grid import Column, Row, Table
from adios_ray.tables.methods import SCENES, multilabel, scenes_training

WEIGHTS = (0.0, 0.03, 0.3, 3.0, 30.0)


def small() -> Table:
    """Return one row for each weight."""
    rows = tuple(
        Row(f"λ = {weight:g}", {"scenes": (scenes_training("adios", sparsity_weight=weight),)}) for weight in WEIGHTS
    )
    masks = (
        Column("scenes", "masks' ARI", "segmentation", "ari", of_masks=True, scale=1.0, digits=3),
        Column("scenes", "smallest slot", "slots", "mask_mean_min", of_masks=True),
        Column("scenes", "largest slot", "slots", "mask_mean_max", of_masks=True),
        Column("scenes", "overlap", "slots", "slot_overlap", of_masks=True, scale=1.0, digits=2),
    )
    notes = ("Sizes are means in percent of the image. An overlap of 1 means that two slots are the same.",)
    return Table("Sparsity weight", rows, multilabel("scenes") + masks, {"scenes": SCENES}, notes, pictures=8)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"small": small}))
