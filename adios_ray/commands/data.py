"""Commands that prepare and verify data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from adios_ray.config import OnBadImage
from adios_ray.data.sources.catalog import CATALOG, Entry, Name, table
from adios_ray.errors import UsageError

if TYPE_CHECKING:
    from adios_ray.data.sources.base import Source

DEFAULT_NUM_IMAGES = 10_000
SIZE_MULTIPLE = 16
SMALLEST_SIZE = 32


@dataclass(frozen=True)
class Prepare:
    """Convert images to a data set of memory-mapped shards; run again after an interruption to resume."""

    dataset: Annotated[Name, tyro.conf.arg(help=f"Data set to read or to render.\n\n{table()}")]
    output: str
    """Directory or URI (s3://, gs://, ...) of the data set to write."""

    source: Path | None = None
    """Folder of the images in their authors' layout, see docs/datasets.md. Not for rendered sets."""

    image_size: int | None = None
    """Pixels a side to store, a multiple of 16, at least 32; the data set's own if not given. A whole photograph is
    squeezed into a square of this size. Views (--image-size of a training) should be about 0.6 times as large, so that
    crops are not magnified."""

    download: bool = False
    """Download files that are missing in --source first, where torchvision can."""

    fold: int | None = None
    """STL-10 only: train has the 1,000 images of this fold (0 to 9); the other 4,000 join the unlabeled ones."""

    num_images: int | None = None
    """Rendered sets only: number of images in all splits together; 10,000 if not given."""

    seed: int | None = None
    """Rendered sets only: seed of the images; 0 if not given."""

    train_images: int | None = None
    """Images to take for the train split, from each class in proportion to its size; all if not given."""

    val_images: int | None = None
    """Images to take for the val split, carved out of train where there is none; all (carved: 10 %) if not given."""

    test_images: int | None = None
    """Images to take for the test split, carved out of train where there is none; all (carved: 10 %) if not given."""

    unlabeled_images: int | None = None
    """Images to take for the unlabeled split, where there is one (STL-10, a folder); all if not given."""

    on_bad_image: OnBadImage = "skip"
    """Skip an unusable image and record the reason in the manifest, or fail at the first one."""

    max_bad_fraction: float = 0.01
    """Highest share of unusable images, in [0, 1], with which the data set is still completed."""

    def run(self) -> None:
        """Prepare the data set and print a summary."""
        entry = CATALOG[self.dataset]
        image_size = self._image_size(entry)
        self._check(entry)
        source, made_from = self._rendered(entry) if entry.rendered else self._read(entry)
        # It imports Ray, which takes seconds: only once the options and the source are known to be usable.
        from adios_ray.data.prepare import prepare

        summary = prepare(
            source,
            self.output,
            image_size,
            {"dataset": self.dataset, **made_from},
            train_images=self.train_images,
            val_images=self.val_images,
            test_images=self.test_images,
            unlabeled_images=self.unlabeled_images,
            on_bad_image=self.on_bad_image,
            max_bad_fraction=self.max_bad_fraction,
        )
        images = ", ".join(f"{split} {count:,}" for split, count in sorted(summary.images.items()))
        contents = f"{images} images, {summary.refused:,} refused, {summary.bytes:,} bytes"
        if summary.complete_before:
            print(f"{self.output} is already there: {contents}")
        else:
            rate = summary.decoded / summary.seconds
            print(f"{self.output}: {contents}, {rate:,.0f} images/s, {summary.seconds:.1f} s")

    def _image_size(self, entry: Entry) -> int:
        """Return the pixels a side to store, or raise a UsageError."""
        size = entry.image_size if self.image_size is None else self.image_size
        if size is None:
            raise UsageError(f"--dataset {self.dataset} needs --image-size, the pixels a side to store")
        if size < SMALLEST_SIZE or size % SIZE_MULTIPLE:
            raise UsageError(f"--image-size {size} must be a multiple of {SIZE_MULTIPLE}, at least {SMALLEST_SIZE}")
        return size

    def _check(self, entry: Entry) -> None:
        """Raise a UsageError for options that do not fit the data set."""
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError(f"--max-bad-fraction {self.max_bad_fraction} must be in [0, 1]")
        if not entry.rendered and self.source is None:
            raise UsageError(f"--dataset {self.dataset} needs --source, the folder of images")
        if not entry.rendered and (self.num_images is not None or self.seed is not None):
            raise UsageError(f"--num-images and --seed are for rendered sets, not for --dataset {self.dataset}")
        if entry.rendered and self.source is not None:
            raise UsageError(f"--dataset {self.dataset} is rendered and takes no --source")
        if self.download and entry.download is None:
            raise UsageError(f"--dataset {self.dataset} cannot be downloaded; it comes from: {entry.origin}")
        if self.fold is not None and self.dataset != "stl10":
            raise UsageError(f"--fold is for --dataset stl10, not for {self.dataset}")

    def _read(self, entry: Entry) -> "tuple[Source, dict[str, Any]]":
        """Make the source of a folder, and the values that identify it in the recipe."""
        from adios_ray.errors import DatasetError

        assert self.source is not None
        root = self.source.expanduser().resolve()
        options: dict[str, Any] = {} if self.fold is None else {"fold": self.fold}
        made_from = {"source": str(root), **options}
        try:
            return entry.source(root, **options), made_from
        except DatasetError:  # not downloaded yet, or not completely
            if not self.download:
                raise
        entry.fetch(root)
        return entry.source(root, **options), made_from

    def _rendered(self, entry: Entry) -> "tuple[Source, dict[str, Any]]":
        """Make the source of rendered images, and the values that identify it in the recipe."""
        num_images = DEFAULT_NUM_IMAGES if self.num_images is None else self.num_images
        seed = self.seed or 0
        try:
            return entry.source(num_images, seed), {"num_images": num_images, "seed": seed}
        except ValueError as error:
            raise UsageError(str(error)) from error


@dataclass(frozen=True)
class Verify:
    """Compare every shard of a data set with the checksums of its manifest."""

    location: tyro.conf.Positional[str]
    """Directory or URI of the data set."""

    def run(self) -> None:
        """Read all shards and print their number and size."""
        from adios_ray.data.shards import verify

        entries = verify(self.location).entries
        images, size = sum(entry.rows for entry in entries), sum(entry.bytes for entry in entries)
        print(f"{self.location}: {len(entries)} shards, {images:,} images, {size:,} bytes, all as in the manifest")
