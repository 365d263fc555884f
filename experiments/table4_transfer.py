"""Table 4: transfer from ImageNet100-S to other data sets, fine-tuned, linear, and from scratch.

    python experiments/table4_transfer.py   # rendered objects, two CPU cores, 3 minutes after Table 1
    python experiments/table4_transfer.py --preset paper --data ImageNet100-S data/in100 CIFAR10 data/cifar10 \
        CIFAR100 data/cifar100 Flowers102 data/flowers102 iNaturalist data/inat
    python experiments/table4_transfer.py --preset paper --dry-run

The pretrained encoders are those of Table 1. On CIFAR the stem is replaced for fine-tuning, as in the paper.
"""

import sys
from dataclasses import replace

from adios_ray.tables.command import main
from adios_ray.tables.grid import Column, DataSet, Published, Row, Table
from adios_ray.tables.methods import IMAGES_NOTE, OBJECTS, PREPARED_DATA, SMALL_EPOCHS, published_pairs, small_pairs

GROUP = "ImageNet100-S"
TARGETS = {
    "CIFAR10": DataSet("--dataset cifar10 --source CIFAR10", images=45_000, image_size=32),
    "CIFAR100": DataSet("--dataset cifar100 --source CIFAR100", images=45_000, image_size=32),
    "Flowers102": DataSet("--dataset flowers102 --source FLOWERS", images=1_020, image_size=96),
    "iNaturalist": DataSet("--dataset inaturalist --source INATURALIST", images=394_500, image_size=96),
}
MODES = {"lin.": "linear", "f.t.": "fine-tune"}
TOP1 = {
    ("simclr", "none"): (30.1, 91.3, 10.2, 70.0, 42.5, 45.6, 69.4, 82.1),
    ("simclr", "adios"): (34.6, 93.4, 11.0, 71.8, 50.2, 50.6, 72.5, 84.3),
    ("simsiam", "none"): (35.3, 92.4, 13.2, 65.0, 38.7, 55.0, 72.3, 85.0),
    ("simsiam", "adios"): (39.3, 94.3, 13.3, 71.0, 44.9, 59.0, 75.9, 86.2),
    ("byol", "none"): (29.9, 88.0, 13.3, 52.3, 49.1, 58.6, 72.7, 85.1),
    ("byol", "adios"): (39.2, 90.4, 14.0, 62.0, 51.7, 60.1, 73.1, 85.7),
}
SCRATCH = (85.5, 49.8, 30.6, 73.8)
"""Table 4 of the paper: top-1 in percent; the row from scratch has no linear entries."""


def target_columns(group: str, target: str, cifar_stem: bool) -> tuple[Column, ...]:
    """Return the columns of one target: linear, and fine-tuned."""
    options = {"linear": {}, "fine-tune": {"cifar_stem": True} if cifar_stem else {}}
    return tuple(
        Column(group, f"{target} {short}", "transfer", "top1", {"mode": mode, **options[mode]}, (target,))
        for short, mode in MODES.items()
    )


def with_scratch(
    rows: tuple[Row, ...], columns: tuple[Column, ...], published: dict[tuple[str, str], Published]
) -> tuple[Row, ...]:
    """Add the row that trains from scratch, with the architecture of the first one: no linear entries."""
    linear = frozenset(column.name for column in columns if column.options["mode"] == "linear")
    scratch = replace(rows[0], name="Scratch", published=published, options={"mode": "scratch"}, left_out=linear)
    return (*rows, scratch)


def paper() -> Table:
    """Return the paper's table: ResNet-18, four targets."""
    columns = tuple(
        column for target in TARGETS for column in target_columns(GROUP, target, target.startswith("CIFAR"))
    )
    keys = [(column.group, column.name) for column in columns]
    numbers = {
        method: {key: (value,) for key, value in zip(keys, values, strict=True)} for method, values in TOP1.items()
    }
    rows = published_pairs({GROUP: "in100s"}, "resnet18", numbers)
    scratch = {(GROUP, f"{target} f.t."): Published(value) for target, value in zip(TARGETS, SCRATCH, strict=True)}
    data = {GROUP: PREPARED_DATA[GROUP], **TARGETS}
    notes = (
        "Classes of iNaturalist are species. The paper does not say which of its levels it uses; accuracies as high as "
        "the published ones are those of coarser classes.",
        "Protocol and rates are those of the paper's Appendix D. The authors' scripts for linear evaluation and "
        "fine-tuning wrap SGD in LARS, at one rate in batches of 128; fine-tuning also has 10 epochs of warm-up, a "
        "weight decay of 5e-4, and BatchNorm in evaluation mode. Their crops of CIFAR are shifts, ours random resized "
        "crops.",
        IMAGES_NOTE,
    )
    return Table("Table 4: transfer", with_scratch(rows, columns, scratch), columns, data, notes)


def small() -> Table:
    """Return the table on rendered objects whose backgrounds say nothing about the object."""
    target = DataSet(
        "--dataset objects --variation mixed_rand --num-images 1000 --image-size 32 --seed 1", 700, 32, rendered=True
    )
    columns = target_columns("objects", "mixed", cifar_stem=False)
    columns = tuple(
        replace(column, options={**column.options, "epochs": 10, "batch_size": 64, "rates": (0.01, 0.1)})
        for column in columns
    )
    notes = ("A small ResNet, transfers of 10 epochs: directions, not the paper's numbers.",)
    rows = with_scratch(small_pairs("objects", SMALL_EPOCHS), columns, {})
    return Table("Transfer between rendered objects", rows, columns, {"objects": OBJECTS, "mixed": target}, notes)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"paper": paper, "small": small}))
