"""The data sets that ``adios-ray prepare`` knows by name."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple


class Entry(NamedTuple):
    """One data set.

    Attributes:
        reader: ``module:function`` in ``data.sources`` that makes a source out of a folder; in ``data.rendered``, of
            a number of images and a seed.
        images: How many there are, in words.
        classes: How many there are, in words.
        image_size: Pixels a side to store. Photographs larger than the paper's views of them (96 pixels, of imagenet100
            224, of clevr 64) are stored 1.4 to 1.7 times as large as these, so that most crops are not magnified; None
            where the user says.
        origin: Where it comes from.
        download: Class of ``torchvision.datasets`` that fetches it, and the versions to ask it for; None where it is
            not free to fetch.
        rendered: Whether the images are drawn on the spot.
        remote: Whether the reader takes a URI in place of a folder.
    """

    reader: str
    images: str
    classes: str
    image_size: int | None
    origin: str
    download: tuple[str, tuple[Mapping[str, str], ...]] | None = None
    rendered: bool = False
    remote: bool = False

    def source(self, *arguments: Any, **options: Any) -> Any:
        """Make the source; its module is imported by this call, so that the command line starts quickly.

        Raises:
            DatasetError: If the files cannot be used.
            ValueError: If a rendered source refuses its number of images or its seed.
        """
        module, _, function = self.reader.partition(":")
        package = "rendered" if self.rendered else "sources"
        return getattr(import_module(f"adios_ray.data.{package}.{module}"), function)(*arguments, **options)

    def fetch(self, folder: Path) -> None:
        """Download the files into a folder; torchvision skips those that are already there.

        Raises:
            DatasetError: If they cannot be fetched.
        """
        from torchvision import datasets
        from torchvision.datasets.utils import download_and_extract_archive

        from adios_ray.errors import DatasetError

        assert self.download is not None
        name, versions = self.download
        data_set = getattr(datasets, name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if hasattr(data_set, "tgz_md5"):  # CIFAR: the constructor would unpickle the downloaded files
                download_and_extract_archive(data_set.url, folder, filename=data_set.filename, md5=data_set.tgz_md5)
            else:
                for version in versions:
                    data_set(folder, download=True, **version)
        except (OSError, RuntimeError) as error:
            raise DatasetError(f"{name} could not be fetched into {folder}: {error}") from error


CATALOG: Mapping[str, Entry] = {
    "imagenet100": Entry("imagenet:source", "126,689 + 5,000", "100", 320, "image-net.org, on request"),
    "imagenet100s": Entry("imagenet:source", "126,689 + 5,000", "100", 160, "image-net.org, on request"),
    "stl10": Entry(
        "stl10:source",
        "100,000 unlabeled + 5,000 + 8,000",
        "10",
        96,
        "cs.stanford.edu/~acoates/stl10",
        ("STL10", ()),
    ),
    "cifar10": Entry("cifar:cifar10", "50,000 + 10,000", "10", 32, "cs.toronto.edu/~kriz/cifar.html", ("CIFAR10", ())),
    "cifar100": Entry(
        "cifar:cifar100", "50,000 + 10,000", "100", 32, "cs.toronto.edu/~kriz/cifar.html", ("CIFAR100", ())
    ),
    "flowers102": Entry(
        "flowers102:source",
        "1,020 + 1,020 + 6,149",
        "102",
        160,
        "robots.ox.ac.uk/~vgg/data/flowers/102",
        ("Flowers102", ({"split": "train"},)),
    ),
    "inaturalist": Entry(
        "inaturalist:source",
        "2018: 437,513 + 24,426; 2021: 2,686,843 + 100,000",
        "8,142; 10,000",
        160,
        "github.com/visipedia/inat_comp",
        ("INaturalist", ({"version": "2021_train_mini"}, {"version": "2021_valid"})),
    ),
    "clevr": Entry(
        "clevr:source",
        "70,000 + 15,000, with masks 100,000",
        "24 at once",
        96,
        "cs.stanford.edu/people/jcjohns/clevr",
        ("CLEVRClassification", ({"split": "train"},)),
    ),
    "backgrounds": Entry("backgrounds:source", "8 x 4,050", "9", 160, "github.com/MadryLab/backgrounds_challenge"),
    "folder": Entry(
        "folder:source",
        "any number of",
        "any number",
        None,
        "SPLIT/CLASS/*.jpg, CLASS/*.jpg or just *.jpg",
        remote=True,
    ),
    "parquet": Entry(
        "parquet:source", "any number of", "any number", None, "*.parquet, as on huggingface.co", remote=True
    ),
    "webdataset": Entry(
        "webdataset:source",
        "any number of",
        "any number",
        None,
        "*.tar of KEY.jpg and KEY.cls or KEY.json",
        remote=True,
    ),
    "scenes": Entry("scenes:source", "any number of", "24 at once", 64, "rendered, with masks", rendered=True),
    "objects": Entry("objects:source", "any number of", "10", 64, "rendered, with masks", rendered=True),
}


# A Literal made from the catalog lets tyro list and check the names; mypy cannot read one that is computed.
if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(CATALOG)]


def table() -> str:
    """Describe each data set in one line: number of images, pixels a side, classes and origin."""
    lines = []
    for name, entry in CATALOG.items():
        fetched = " (--download)" if entry.download else ""
        size = f" at {entry.image_size} px" if entry.image_size else ""
        lines.append(f"{name}: {entry.images} images{size}, classes: {entry.classes}; {entry.origin}{fetched}")
    return "\n\n".join(lines)
