"""Commands that make and check data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from adios_ray.commands import UsageError

if TYPE_CHECKING:
    from adios_ray.data.prepare import Summary
    from adios_ray.data.sources.base import Source

DEFAULT_NUM_IMAGES = 10_000
SIZE_MULTIPLE = 16
SMALLEST_SIZE = 32


@dataclass(frozen=True)
class Prepare:
    """Turn images into a data set of memory-mapped shards; run again after an interruption to go on."""

    dataset: Literal["folder", "scenes", "objects"]
    """What to read or render: a folder of image files, or one of the two rendered sets."""

    output: Path
    """Directory of the data set to make."""

    image_size: int
    """Pixels a side, a multiple of 16 from 32 on. The short side is resized to it, the rest is cropped."""

    source: Path | None = None
    """Folder of images, only with --dataset folder: SPLIT/CLASS/*.jpg, CLASS/*.jpg or just *.jpg."""

    num_images: int | None = None
    """Images to render over all splits, not with --dataset folder; 10,000 if not given."""

    seed: int | None = None
    """Seed of the rendered images, not with --dataset folder; 0 if not given."""

    train_images: int | None = None
    """Images to take for the train split, from each class its share; all if not given."""

    val_images: int | None = None
    """Images to take for the val split, carved out of train where there is none; all (carved: 10 %) if not given."""

    test_images: int | None = None
    """Images to take for the test split, carved out of train where there is none; all (carved: 10 %) if not given."""

    on_bad_image: Literal["skip", "fail"] = "skip"
    """Leave an image that cannot be used out and record why in the manifest, or stop at the first one."""

    max_bad_fraction: float = 0.01
    """Share of images that may be refused as unusable before the whole data set is."""

    def run(self) -> None:
        """Make the data set and say what it holds."""
        self._check()
        source, made_from = self._source()
        from adios_ray.data.prepare import prepare

        summary = prepare(
            source,
            self.output,
            self.image_size,
            {"dataset": self.dataset, **made_from},
            train_images=self.train_images,
            val_images=self.val_images,
            test_images=self.test_images,
            on_bad_image=self.on_bad_image,
            max_bad_fraction=self.max_bad_fraction,
        )
        print(_in_one_line(self.output, summary))

    def _check(self) -> None:
        if self.image_size < SMALLEST_SIZE or self.image_size % SIZE_MULTIPLE:
            raise UsageError(
                f"--image-size {self.image_size} must be a multiple of {SIZE_MULTIPLE} from {SMALLEST_SIZE} on"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError(f"--max-bad-fraction {self.max_bad_fraction} must lie in [0, 1]")
        if self.dataset == "folder":
            if self.source is None:
                raise UsageError("--dataset folder needs --source, the folder of images")
            if self.num_images is not None or self.seed is not None:
                raise UsageError("--num-images and --seed are for rendered sets, not for --dataset folder")
        elif self.source is not None:
            raise UsageError(f"--dataset {self.dataset} is rendered and takes no --source")

    def _source(self) -> "tuple[Source, dict[str, Any]]":
        """The source, and what names it in the recipe."""
        if self.source is not None:
            from adios_ray.data.sources.folder import FolderSource

            root = self.source.resolve()
            return FolderSource(root), {"source": str(root)}
        from adios_ray.data.sources import objects, scenes

        num_images = DEFAULT_NUM_IMAGES if self.num_images is None else self.num_images
        seed = self.seed or 0
        module = {"scenes": scenes, "objects": objects}[self.dataset]
        try:
            return module.source(num_images, seed), {"num_images": num_images, "seed": seed}
        except ValueError as error:
            raise UsageError(str(error)) from error


def _in_one_line(output: Path, summary: "Summary") -> str:
    images = ", ".join(f"{split} {count:,}" for split, count in sorted(summary.images.items()))
    holds = f"{images} images, {summary.refused:,} refused, {summary.bytes:,} bytes"
    if summary.complete_before:
        return f"{output} is already there: {holds}"
    rate = summary.decoded / summary.seconds
    return f"{output}: {holds}, {rate:,.0f} images/s, {summary.seconds:.1f} s"


@dataclass(frozen=True)
class Verify:
    """Compare every shard of a data set with the checksums of its manifest."""

    directory: tyro.conf.Positional[Path]
    """Directory of the data set."""

    def run(self) -> None:
        """Read all shards and say how many there are."""
        from adios_ray.data.shards import verify

        entries = verify(self.directory).entries
        images, size = sum(entry.rows for entry in entries), sum(entry.bytes for entry in entries)
        print(f"{self.directory}: {len(entries)} shards, {images:,} images, {size:,} bytes, all as in the manifest")
