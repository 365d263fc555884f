"""What published data sets hold, to tell whether a folder is one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.data.sources.passed_over import first_of
from adios_ray.errors import DatasetError

CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
    snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)
STL10 = tuple("airplane bird car cat deer dog horse monkey ship truck".split())


def check_named(source: ImageFiles, name: str, classes: Sequence[str], sizes: Mapping[str, int]) -> ImageFiles:
    """Compare the classes and sizes of a folder with those of the data set that it is said to be.

    Args:
        source: What the folder holds.
        name: What the data set is called.
        classes: Its classes.
        sizes: Images of each of its splits.

    Returns:
        The source, with a note where it is a part of the data set.

    Raises:
        DatasetError: If there are other classes, or more images.
    """
    if other := sorted(set(source.classes) - set(classes)):
        raise DatasetError(
            f"{source.root} is not {name}, which has no class {first_of(other)}: take --dataset folder for other images"
        )
    notes = []
    if len(source.classes) < len(classes):
        notes.append(f"{len(source.classes)} of the {len(classes)} classes of {name} are there")
    for split, size in sizes.items():
        if (number := len(source.items.get(split, ()))) > size:
            raise DatasetError(f"{source.root} is not {name}: {split} has {number:,} images, not {size:,}")
    return replace(source, notes=(*source.notes, *notes, *shortage(source.items, name, sizes)))


def shortage(items: Mapping[str, Sequence[str]], name: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Note the splits that have only a part of a data set's images."""
    numbers = {split: len(items.get(split, ())) for split in sizes}
    return tuple(
        f"{split} has {numbers[split]:,} of the {size:,} images of {name}"
        for split, size in sizes.items()
        if numbers[split] < size
    )
