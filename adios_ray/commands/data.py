"""Commands that prepare and verify data sets."""

import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Field

from adios_ray.config import Count, FolderLayout, Natural, OnBadImage, Seed, Variation
from adios_ray.data.sources.catalog import CATALOG, Entry, Name, table
from adios_ray.errors import UsageError
from adios_ray.retry import promptly
from adios_ray.store import Store, local_path

if TYPE_CHECKING:
    from adios_ray.data.prepare import PrepareSummary
    from adios_ray.data.sources.base import Source
    from adios_ray.data.splits import Key

DEFAULT_NUM_IMAGES = 10_000
OWN_IMAGES = ("folder", "parquet", "webdataset")
"""Data sets whose classes and splits are the user's."""
SIZE_MULTIPLE = 16
SMALLEST_SIZE, LARGEST_SIZE = 32, 4096
MOST_RENDERED = 10**7


@dataclass(frozen=True)
class Prepare:
    """Convert images to a data set of memory-mapped shards; run again after an interruption to resume."""

    dataset: Annotated[Name, tyro.conf.arg(help=f"Data set to read or to render.\n\n{table()}")]
    output: str
    """Directory or URI (s3://, gs://, ...) of the data set to write."""

    source: str | None = None
    """Folder of the images as they come from their authors; docs/datasets.md has the layouts. folder,
    parquet and webdataset take a URI (s3://, gs://, ...) too. Not for rendered ones."""

    image_size: int | None = None
    """Pixels a side to store, a multiple of 16 from 32 to 4096; the data set's own if not given. A whole photograph is
    squeezed into a square of this size. Views (--image-size of a training) should be about 0.6 times as large, so that
    most crops are not magnified."""

    download: bool = False
    """Download files that are missing in --source first, where torchvision can."""

    fold: Annotated[int, Field(ge=0, le=9)] | None = None
    """STL-10 only: train has the 1,000 images of this fold (0 to 9); the other 4,000 join the unlabeled ones."""

    image_column: str | None = None
    """Parquet only: column of the encoded images; the only such column if not given."""

    label_column: str | None = None
    """Parquet only: column of the labels; the class label of the schema, or label, class, ... if not given."""

    num_images: Annotated[int, Field(ge=1, le=MOST_RENDERED)] | None = None
    """Rendered sets only: number of images in all splits together, at most 10 million; 10,000 if not given."""

    seed: Seed | None = None
    """Rendered sets only: seed of the images; 0 if not given."""

    variation: Variation = "original"
    """objects only: a variation of the backgrounds challenge, of the same objects for the same seed: background with
    the object's box black (only_bg_b) or filled with the texture (only_bg_t), object black (no_fg), background black
    (only_fg), background of another image of the same (mixed_same), any (mixed_rand) or the next class (mixed_next)."""

    train_images: Natural | None = None
    """Images to take for the train split, from each class in proportion to its size; all if not given."""

    val_images: Natural | None = None
    """Images to take for the val split, carved out of train where there is none; all (carved: 10 %) if not given."""

    test_images: Natural | None = None
    """Images to take for the test split, carved out of train where there is none; all (carved: 10 %) if not given."""

    unlabeled_images: Natural | None = None
    """Images to take for the unlabeled split, where there is one (STL-10, a folder); all if not given."""

    layout: FolderLayout | None = None
    """Folders only: what the folders of --source are: splits (train, val, test, unlabeled), classes, or nothing (flat);
    decided by their names if not given."""

    allow_missing_classes: bool = False
    """Folders, parquet and webdataset only: val and test may lack classes that train has."""

    group_by: str | None = None
    """Keep images that belong together, such as frames of a video, in one split when val and test are carved: "folder",
    or a regular expression whose first group (or whole match) in an image's path names what it belongs to."""

    drop_duplicates: bool = False
    """Keep one of images with equal pixels, that of the split that is evaluated. They are counted in any case."""

    check_content: bool = False
    """Where the data set is there already: compare the content of --source with what it was made from, not only names,
    sizes and times."""

    max_pixels: Count | None = None
    """Largest number of pixels that are decoded at once (89 million if not given); larger JPEGs are reduced first,
    other larger images are refused."""

    stretch: Literal["file"] | int | None = None
    """16-bit images: scale by each file's own largest value (file), or by the bit depth of the values (9 to 16) where
    they leave most of the range empty."""

    dry_run: bool = False
    """Print the layout as it is understood, splits, classes and what is passed over; read no image."""

    on_bad_image: OnBadImage = "skip"
    """Skip an unusable image and record the reason in the manifest, or fail at the first one."""

    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Highest share of unusable images, in [0, 1], with which the data set is still completed."""

    def run(self) -> None:
        """Prepare the data set and print a summary."""
        entry = CATALOG[self.dataset]
        image_size = self._image_size(entry)
        self._check(entry)
        source, made_from = self._rendered(entry) if entry.rendered else self._read(entry)
        group = self._group(source)
        if self.group_by is not None:
            made_from["group_by"] = self.group_by
        source = self._with_decode_options(source, made_from)
        if self.dry_run:
            self._print_plan(source, group)
            return
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
            group=group,
            on_bad_image=self.on_bad_image,
            max_bad_fraction=self.max_bad_fraction,
            drop_duplicates=self.drop_duplicates,
            check_content=self.check_content,
            say=lambda text: print(text, flush=True),
        )
        print(_in_lines(self.output, summary))

    def _with_decode_options(self, source: "Source", made_from: dict[str, Any]) -> "Source":
        """Pass the options of decoding to a source of encoded images, and name them in the recipe.

        Raises:
            UsageError: If the source has none, or a value is out of range.
        """
        from adios_ray.data.sources.encoded import EncodedImages
        from adios_ray.data.sources.image_files import ImageFiles

        if self.check_content and not isinstance(source, ImageFiles):
            raise UsageError(f"--check-content compares files of single images, not those of --dataset {self.dataset}")
        given = {"max_pixels": self.max_pixels, "stretch": self.stretch}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if not options:
            return source
        if not isinstance(source, ImageFiles | EncodedImages):
            raise UsageError(f"--max-pixels and --stretch are for encoded images, not for --dataset {self.dataset}")
        made_from.update(options)
        return replace(source, options=replace(source.options, **options))

    def _print_plan(self, source: "Source", group: "Key | None") -> None:
        from adios_ray.console import printable
        from adios_ray.data.plan import image_counts, make_plan

        counts = image_counts(self.train_images, self.val_images, self.test_images, self.unlabeled_images)
        plan = make_plan(source, counts, group)
        print(plan.text())
        for name in sorted({name for found in plan.classes.values() for name in found if name}):  # rendered: none yet
            counts_by_split = (f"{split} {numbers.get(name, 0):,}" for split, numbers in plan.classes.items())
            print(f"  {printable(name)}: {', '.join(counts_by_split)}")

    def _group(self, source: "Source") -> "Key | None":
        """Make the function that names what an image belongs to, by its path.

        Raises:
            UsageError: If the expression is not one, or images are in no folders.
        """
        if self.group_by is None:
            return None
        from adios_ray.data.plan import group_by_pattern
        from adios_ray.data.splits import folder_of

        if self.group_by == "folder":
            item = next(chain.from_iterable(source.listing().values()))
            if source.file_of(item) != item:
                raise UsageError(
                    f"--group-by folder is for files of single images; give an expression for names such as {item}"
                )
            return folder_of
        try:
            return group_by_pattern(self.group_by)
        except re.error as error:
            raise UsageError(
                f"--group-by {self.group_by!r} is neither folder nor a regular expression: {error}"
            ) from None

    def _image_size(self, entry: Entry) -> int:
        """Return the pixels a side to store, or raise a UsageError."""
        size = entry.image_size if self.image_size is None else self.image_size
        if size is None:
            raise UsageError(f"--dataset {self.dataset} needs --image-size, the pixels a side to store")
        if not SMALLEST_SIZE <= size <= LARGEST_SIZE or size % SIZE_MULTIPLE:
            raise UsageError(
                f"--image-size {size} must be a multiple of {SIZE_MULTIPLE} from {SMALLEST_SIZE} to {LARGEST_SIZE}"
            )
        return size

    def _check(self, entry: Entry) -> None:
        """Raise a UsageError for options that do not fit the data set."""
        if not entry.rendered and self.source is None:
            raise UsageError(f"--dataset {self.dataset} needs --source, the folder of images")
        if not entry.rendered and (self.num_images is not None or self.seed is not None):
            raise UsageError(f"--num-images and --seed are for rendered sets, not for --dataset {self.dataset}")
        if self.variation != "original" and self.dataset != "objects":
            raise UsageError(f"--variation is for --dataset objects, not for {self.dataset}")
        if entry.rendered and self.source is not None:
            raise UsageError(f"--dataset {self.dataset} is rendered and takes no --source")
        if self.download and entry.download is None:
            raise UsageError(f"--dataset {self.dataset} cannot be downloaded; it comes from: {entry.origin}")
        if self.fold is not None and self.dataset != "stl10":
            raise UsageError(f"--fold is for --dataset stl10, not for {self.dataset}")
        if self.layout and self.dataset != "folder":
            raise UsageError(f"--layout is for --dataset folder, not for {self.dataset}")
        if self.allow_missing_classes and self.dataset not in OWN_IMAGES:
            names = ", ".join(OWN_IMAGES)
            raise UsageError(f"--allow-missing-classes is for --dataset {names}, not for {self.dataset}")
        if entry.rendered and (self.group_by or self.drop_duplicates or self.check_content):
            raise UsageError(
                f"--group-by, --drop-duplicates and --check-content are for files, not for --dataset {self.dataset}"
            )
        if (self.image_column or self.label_column) and self.dataset != "parquet":
            raise UsageError(f"--image-column and --label-column are for --dataset parquet, not for {self.dataset}")
        if self.source is not None and local_path(self.source) is None and not entry.remote:
            raise UsageError(f"--dataset {self.dataset} reads a folder, not a URI such as {self.source}: copy it first")

    def _read(self, entry: Entry) -> "tuple[Source, dict[str, Any]]":
        """Make the source of a folder, and the values that identify it in the recipe."""
        from adios_ray.errors import DatasetError

        assert self.source is not None
        path = local_path(self.source)
        root = self.source.rstrip("/") if path is None else path.resolve()
        given = {
            "fold": self.fold,
            "layout": self.layout,
            "image_column": self.image_column,
            "label_column": self.label_column,
        }
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.allow_missing_classes:
            options["allow_missing_classes"] = True
        made_from = {"source": str(root), **options}
        try:
            if path is None:
                promptly(partial(Store(str(root)).size, ""))  # the listing of what is there may take longer
            return entry.source(root, **options), made_from
        except DatasetError as error:  # not downloaded yet, or not completely
            if not self.download:
                if entry.download is None:
                    raise
                raise DatasetError(f"{error}; if files are missing, --download fetches them") from None
        except Exception as error:  # each protocol has errors of its own
            if isinstance(root, Path):
                raise
            raise DatasetError(f"{root} cannot be read: {type(error).__name__}: {error}") from error
        assert isinstance(root, Path)  # what is downloaded is no URI
        entry.fetch(root)
        return entry.source(root, **options), made_from

    def _rendered(self, entry: Entry) -> "tuple[Source, dict[str, Any]]":
        """Make the source of rendered images, and the values that identify it in the recipe."""
        num_images = DEFAULT_NUM_IMAGES if self.num_images is None else self.num_images
        seed = self.seed or 0
        # The original is no option: its recipe stays that of data sets from before there were variations.
        options = {} if self.variation == "original" else {"variation": self.variation}
        try:
            return entry.source(num_images, seed, **options), {"num_images": num_images, "seed": seed, **options}
        except ValueError as error:
            raise UsageError(str(error)) from error


def _in_lines(output: str, summary: "PrepareSummary") -> str:
    """Describe a data set, and what is worth knowing of it."""
    from adios_ray.console import printable
    from adios_ray.data.duplicates import duplicates_text

    images = ", ".join(f"{split} {count:,}" for split, count in sorted(summary.images.items()))
    holds = f"{images} images, {summary.refused:,} refused, {summary.bytes:,} bytes"
    account, lines = summary.manifest.account, []
    for refusal in summary.manifest.refused[:3]:
        lines.append(f"refused: {printable(refusal.item)}: {refusal.reason}")
    if account is not None:
        for note, noted in account.notes.items():
            lines.append(f"{note}: {noted.number:,} images, such as {printable(noted.examples[0])}")
        lines += filter(None, [duplicates_text(account.duplicates)])
        passed = account.found - account.read - summary.refused
        lines.append(
            f"{account.found:,} found = {account.read:,} read + {summary.refused:,} refused + {passed:,} passed over"
        )
    if summary.complete_before:
        return "\n".join([*lines, f"{output} is already there: {holds}"])
    rate = summary.decoded / summary.seconds
    return "\n".join([*lines, f"{output}: {holds}, {rate:,.0f} images/s, {summary.seconds:.1f} s"])


@dataclass(frozen=True)
class Verify:
    """Compare every shard of a data set with the checksums of its manifest."""

    location: tyro.conf.Positional[str]
    """Directory or URI of the data set."""

    def run(self) -> None:
        """Read all shards and print their number and size."""
        from adios_ray.console import progress_bar
        from adios_ray.data.manifest import read_manifest, read_source_files
        from adios_ray.data.shards import verify

        shards = len(read_manifest(self.location).entries)
        with progress_bar("shards", transient=True) as bar:
            task = bar.add_task("verify", total=shards)
            manifest = verify(self.location, lambda entry: bar.advance(task), there=True)
        if manifest.source_files is not None:  # which trainings do not need
            read_source_files(Store(self.location), manifest.source_files)
        entries = manifest.entries
        images, size = sum(entry.rows for entry in entries), sum(entry.bytes for entry in entries)
        print(f"{self.location}: {len(entries)} shards, {images:,} images, {size:,} bytes, all as in the manifest")
