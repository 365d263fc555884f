"""Shards on disk: samples are read back without a copy, and damaged files are named."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from encoded_images import upload

from adios_ray import local_cache
from adios_ray.data.manifest import SCHEMA_VERSION, Layout, Manifest, Refusal, ShardEntry, write_manifest
from adios_ray.data.shards import open_shards, verify, write_shard
from adios_ray.data.sources.base import Sample
from adios_ray.errors import DatasetError
from adios_ray.store import Store

SIZE = 6
ROWS = (5, 0, 3, 4)


def make_samples(count: int, seed: int, classes: int | None = None) -> list[tuple[str, Sample]]:
    """Draw random samples; with ``classes`` they are multi-label and have instance maps."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        label = int(rng.integers(0, 9)) if classes is None else rng.integers(0, 2, classes, dtype=np.uint8)
        instances = None if classes is None else rng.integers(0, 4, (SIZE, SIZE), dtype=np.uint8)
        height, width = rng.integers(8, 70_000, 2).tolist()
        samples.append((f"{seed}/{number}.png", Sample(image, label, instances, height, width)))
    return samples


def make_dataset(directory: Path, classes: int | None = None) -> list[tuple[str, Sample]]:
    """Write a train split of four shards, one of them empty; return its samples in order."""
    directory.mkdir()
    chunks = [make_samples(rows, seed, classes) for seed, rows in enumerate(ROWS)]
    layout = Layout(SIZE, classes, has_instances=classes is not None)
    entries = [write_shard(Store(directory), f"train-{i:05d}.arrow", layout, chunk) for i, chunk in enumerate(chunks)]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        image_size=SIZE,
        multi_label=classes is not None,
        has_instances=classes is not None,
        classes=tuple(f"class {i}" for i in range(classes or 9)),
        splits={"train": tuple(entries)},
        recipe={"dataset": "test"},
        refused=(Refusal(item="x.jpg", split="train", reason="empty file"),),
    )
    write_manifest(Store(directory), manifest)
    return [sample for chunk in chunks for sample in chunk]


def make_version_1(directory: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Write a train split in schema version 1 without the package's code; return its images and instance maps."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    images, maps = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((7, SIZE, SIZE, 3), (7, SIZE, SIZE)))
    entries = []
    for number, rows in enumerate((slice(0, 4), slice(4, 7))):
        count, path = len(images[rows]), directory / f"train-{number:05d}.arrow"
        columns = {
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images[rows]),
            "label": pa.array(range(count), pa.int64()),
            "instances": pa.FixedShapeTensorArray.from_numpy_ndarray(maps[rows]),
            "source_id": pa.array([f"{number}/{row}.png" for row in range(count)]),
        }
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"file": path.name, "rows": count, "bytes": path.stat().st_size, "sha256": digest})
    manifest = {
        "schema_version": 1,
        "image_size": SIZE,
        "multi_label": False,
        "has_instances": True,
        "classes": ["a", "b", "c", "d"],
        "splits": {"train": entries},
        "recipe": {"dataset": "test", "resize": "short side to image_size, bicubic, antialiased; center crop"},
        "refused": [],
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return images, maps


def edit_manifest(directory: Path, **changes: Any) -> None:
    """Overwrite fields of the manifest."""
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Write a data set with one label per image."""
    make_dataset(tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("classes", [None, 7])
def test_what_is_written_is_read_back(tmp_path: Path, classes: int | None) -> None:
    samples = make_dataset(tmp_path / "set", classes)
    split = open_shards(tmp_path / "set").split("train")
    assert len(split) == sum(ROWS) and [len(images) for images in split.images] == list(ROWS)
    np.testing.assert_array_equal(np.concatenate(split.images), [sample.image for _, sample in samples])
    np.testing.assert_array_equal(split.labels, [sample.label for _, sample in samples])
    assert split.labels.dtype == (np.int64 if classes is None else np.uint8)
    np.testing.assert_array_equal(split.heights, [sample.height for _, sample in samples])
    np.testing.assert_array_equal(split.widths, [sample.width for _, sample in samples])
    assert split.heights.dtype == split.widths.dtype == np.int32
    if split.instances is None:
        assert classes is None
    else:
        np.testing.assert_array_equal(np.concatenate(split.instances), [sample.instances for _, sample in samples])


def test_data_sets_of_version_1_are_read(tmp_path: Path) -> None:
    images, maps = make_version_1(tmp_path / "old")
    assert verify(tmp_path / "old").schema_version == 1
    split = open_shards(tmp_path / "old").split("train")
    indices = np.array([6, 0, 4, 3, 0])
    np.testing.assert_array_equal(split.gather(indices), images[indices])
    np.testing.assert_array_equal(split.gather_instances(indices), maps[indices])
    assert split.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert split.heights.tolist() == split.widths.tolist() == [SIZE] * 7
    edit_manifest(tmp_path / "old", schema_version=2)
    with pytest.raises(DatasetError, match=r"train-00000\.arrow does not hold the rows or columns"):
        verify(tmp_path / "old")


def test_source_ids_are_kept_beside_the_pixels(directory: Path) -> None:
    batch = pa.ipc.open_file(directory / "train-00002.arrow").get_batch(0)
    assert batch["source_id"].to_pylist() == ["2/0.png", "2/1.png", "2/2.png"]


def test_views_are_the_mapped_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "set", classes=7)
    mapped: list[tuple[int, int]] = []
    memory_map = pa.memory_map

    def remembering(path: str) -> pa.MemoryMappedFile:
        """Map a file and record its address range."""
        file = memory_map(path)
        whole = file.read_buffer()
        file.seek(0)
        mapped.append((whole.address, whole.address + whole.size))
        return file

    monkeypatch.setattr(pa, "memory_map", remembering)
    split = open_shards(tmp_path / "set").split("train")
    assert split.instances is not None and len(mapped) == len(ROWS)
    for view, (start, end) in zip((*split.images, *split.instances), mapped * 2, strict=True):
        assert not view.size or (start <= view.ctypes.data <= end - view.nbytes and not view.flags.writeable)


def indices_of(kind: str) -> npt.NDArray[np.int64]:
    """Return indices in one of the orders that callers use."""
    rng = np.random.default_rng(3)
    kinds = {
        "shuffled": rng.permutation(sum(ROWS)),
        "repeated": rng.integers(0, sum(ROWS), 50),
        "borders": np.array([11, 0, 4, 5, 7, 8]),
        "none": np.array([]),
    }
    return kinds[kind].astype(np.int64)


@pytest.mark.parametrize("kind", ["shuffled", "repeated", "borders", "none"])
def test_gather_is_indexing_of_the_joined_shards(tmp_path: Path, kind: str) -> None:
    make_dataset(tmp_path / "set", classes=7)
    split = open_shards(tmp_path / "set").split("train")
    assert split.instances is not None
    indices = indices_of(kind)
    np.testing.assert_array_equal(split.gather(indices), np.concatenate(split.images)[indices])
    np.testing.assert_array_equal(split.gather_instances(indices), np.concatenate(split.instances)[indices])


@pytest.mark.parametrize("index", [-1, sum(ROWS)])
def test_gather_rejects_indices_out_of_range(directory: Path, index: int) -> None:
    with pytest.raises(IndexError, match=r"\[0, 12\)"):
        open_shards(directory).split("train").gather(np.array([3, index]))


def test_gather_instances_needs_instances(directory: Path) -> None:
    with pytest.raises(DatasetError, match="no instance maps"):
        open_shards(directory).split("train").gather_instances(np.array([0]))


def test_a_missing_split_lists_those_present(directory: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'val'; it has train"):
        open_shards(directory).split("val")


def test_no_manifest_is_no_data_set(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=r"manifest\.json is missing.*adios-ray prepare"):
        open_shards(directory)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"schema_version": '])
def test_a_file_that_is_no_manifest(directory: Path, text: str) -> None:
    (directory / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match="is not a manifest"):
        open_shards(directory)


def test_another_schema_version_is_refused(directory: Path) -> None:
    edit_manifest(directory, schema_version=3)
    with pytest.raises(DatasetError, match="manifest.json has schema version 3, not 2 or 1.*adios-ray prepare again"):
        open_shards(directory)


def test_a_manifest_of_the_other_version_does_not_fit_its_shards(directory: Path) -> None:
    edit_manifest(directory, schema_version=1)
    with pytest.raises(DatasetError, match=r"train-00000\.arrow does not hold the rows or columns"):
        open_shards(directory).split("train")


def test_a_shard_outside_the_directory_is_refused(directory: Path) -> None:
    entry = {"file": "../train-00000.arrow", "rows": 1, "bytes": 1, "sha256": "0" * 64}
    edit_manifest(directory, splits={"train": [entry]})
    with pytest.raises(DatasetError, match=r"damaged: splits\.train\.0\.file = "):
        open_shards(directory)


def test_a_split_has_a_shard(directory: Path) -> None:
    entries = json.loads((directory / "manifest.json").read_text())["splits"]["train"]
    edit_manifest(directory, splits={"train": entries, "unlabeled": []})
    with pytest.raises(DatasetError, match="split unlabeled has no shards: leave it out"):
        verify(directory)


def test_classes_have_different_names(directory: Path) -> None:
    edit_manifest(directory, classes=["cat", "dog", "cat"])
    with pytest.raises(DatasetError, match="two classes are called 'cat': give each a name of its own"):
        verify(directory)


def test_a_shard_has_one_split(directory: Path) -> None:
    entries = json.loads((directory / "manifest.json").read_text())["splits"]["train"]
    edit_manifest(directory, splits={"train": entries, "test": entries[:1]})
    with pytest.raises(DatasetError, match=r"damaged: .*train-00000\.arrow is in several splits, or twice in one"):
        open_shards(directory)


def test_missing_and_truncated_shards_are_found_on_opening(directory: Path) -> None:
    shard = directory / "train-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"train-00002\.arrow has \d+ bytes instead of \d+.*prepare again"):
        open_shards(directory)
    shard.unlink()
    with pytest.raises(DatasetError, match=r"train-00002\.arrow is missing.*prepare again"):
        open_shards(directory)


def test_verify_passes_over_a_whole_data_set_shard_by_shard(directory: Path) -> None:
    seen: list[ShardEntry] = []
    manifest = verify(directory, seen.append)
    assert [entry.rows for entry in seen] == list(ROWS) and manifest.recipe == {"dataset": "test"}


def test_verify_names_every_damaged_shard_and_no_other(directory: Path) -> None:
    flipped = directory / "train-00003.arrow"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (directory / "train-00000.arrow").unlink()
    open_damage = r"train-00000\.arrow is missing; train-00003\.arrow does not have the checksum"
    with pytest.raises(DatasetError, match=open_damage) as caught:
        verify(directory)
    assert "train-00002" not in str(caught.value)


def test_verify_counts_rows(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["splits"]["train"][0]["rows"] += 1
    edit_manifest(directory, splits=manifest["splits"])
    with pytest.raises(DatasetError, match=r"train-00000\.arrow does not hold the rows"):
        verify(directory)
    with pytest.raises(DatasetError, match=r"train-00000\.arrow does not hold the rows"):
        open_shards(directory).split("train")


def relabel(directory: Path, label: pa.Array | None) -> None:
    """Write the third shard again with other labels, or without a record batch; the manifest agrees."""
    path = directory / "train-00002.arrow"
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        if label is not None:
            position = table.schema.get_field_index("label")
            (batch,) = table.set_column(position, table.schema.field("label"), label).to_batches()
            writer.write_batch(batch)
    manifest = json.loads((directory / "manifest.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["splits"]["train"][2] |= {"bytes": path.stat().st_size, "sha256": digest}
    edit_manifest(directory, splits=manifest["splits"])


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (None, pa.array([0, None, 8]), "has rows without label"),
        (None, pa.array([0, 9, 8]), "has labels from 0 to 9, not from 0 to 8"),
        (None, pa.array([0, -1, 8]), "has labels from -1 to 8, not from 0 to 8"),
        (
            2,
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([[0, 1], [2, 0], [1, 1]], np.uint8)),
            "has labels from 0 to 2, not from 0 to 1",
        ),
        (None, None, "cannot be read as a shard"),
    ],
)
def test_labels_that_cannot_be_are_named(tmp_path: Path, classes: int | None, label: Any, message: str) -> None:
    make_dataset(tmp_path / "set", classes)
    relabel(tmp_path / "set", label)
    for read in (verify, lambda directory: open_shards(directory).split("train")):
        with pytest.raises(DatasetError, match=rf"train-00002\.arrow {message}"):
            read(tmp_path / "set")


@pytest.mark.parametrize("items", [["a", "b", "a"], ["a", "b", "0/0.png"]])
def test_rows_of_val_of_one_name_are_named(directory: Path, items: list[str]) -> None:
    """Halves of val follow from the names: all images of one name would be in one half."""
    samples = [(item, sample) for item, (_, sample) in zip(items, make_samples(3, 0), strict=True)]
    entry = write_shard(Store(directory), "train-00002.arrow", Layout(SIZE, None, False), samples)
    shards = json.loads((directory / "manifest.json").read_text())["splits"]["train"]
    shards[2] = entry.model_dump()
    edit_manifest(directory, splits={"train": shards})
    verify(directory)
    assert open_shards(directory).split("train").source_ids.to_pylist()[5:8] == items
    edit_manifest(directory, splits={"val": shards})
    for read in (verify, lambda directory: open_shards(directory).split("val")):
        with pytest.raises(DatasetError, match=r"train-00002\.arrow has a source_id that another row of val has\."):
            read(directory)


def test_the_cure_of_a_copy_is_by_the_damage(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the copy is what the manifest says, another one would be no better."""
    monkeypatch.setenv(local_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    relabel(directory, pa.array([0, 9, 8]))
    uri = f"memory://{tmp_path.name}/set"
    upload(directory, uri)
    copied = open_shards(uri)
    (copied.directory / "train-00000.arrow").write_bytes(bytes(copied.manifest.entries[0].bytes))
    with pytest.raises(DatasetError, match=rf"00000\.arrow cannot be .* Remove {copied.directory}, .* verify {uri} "):
        copied.split("train")
    with pytest.raises(DatasetError, match=r"00000\.arrow does not .*; .*00002\.arrow has labels .*prepare again"):
        verify(uri)
    shutil.copy(directory / "train-00000.arrow", copied.directory)
    for read in (verify, lambda place: open_shards(place).split("train")):
        with pytest.raises(DatasetError, match=r"00002\.arrow has labels from 0 to 9, .*prepare again"):
            read(uri)


@pytest.mark.parametrize(("height", "width", "side"), [(0, 9, "height"), (9, 0, "width")])
def test_a_photograph_without_a_side_is_named(height: int, width: int, side: str, directory: Path) -> None:
    (item, sample), *rest = make_samples(3, 0)
    samples = [(item, replace(sample, height=height, width=width)), *rest]
    entry = write_shard(Store(directory), "train-00002.arrow", Layout(SIZE, None, False), samples)
    shards = json.loads((directory / "manifest.json").read_text())["splits"]["train"]
    edit_manifest(directory, splits={"train": [*shards[:2], entry.model_dump(), shards[3]]})
    with pytest.raises(DatasetError, match=rf"train-00002\.arrow has images without {side}"):
        open_shards(directory).split("train")


def test_images_without_labels_have_none_in_their_split_alone(directory: Path) -> None:
    relabel(directory, pa.array([-1, -1, -1]))
    shards = json.loads((directory / "manifest.json").read_text())["splits"]["train"]
    edit_manifest(directory, splits={"train": [*shards[:2], *shards[3:]], "unlabeled": [shards[2]]})
    verify(directory)
    assert open_shards(directory).split("unlabeled").labels.tolist() == [-1] * 3


def test_a_shard_of_other_bytes_but_the_same_size_cannot_be_mapped(directory: Path) -> None:
    shard = directory / "train-00000.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DatasetError, match=r"train-00000\.arrow cannot be read as a shard"):
        open_shards(directory).split("train")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    wrong = Sample(np.zeros((SIZE, SIZE + 1, 3), np.uint8), 0, None, SIZE, SIZE)
    with pytest.raises(ValueError, match="broadcast"):
        write_shard(Store(tmp_path), "train-00000.arrow", Layout(SIZE, None, False), [("x", wrong)])
    (tmp_path / "train-00000.arrow").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_shard(Store(tmp_path), "train-00000.arrow", Layout(SIZE, None, False), make_samples(2, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.arrow"]


def test_bytes_depend_on_the_samples_alone(tmp_path: Path) -> None:
    layout = Layout(SIZE, None, False)
    first = write_shard(Store(tmp_path), "train-00000.arrow", layout, make_samples(4, 1))
    again = write_shard(Store(tmp_path), "train-00001.arrow", layout, make_samples(4, 1))
    other = write_shard(Store(tmp_path), "train-00002.arrow", layout, make_samples(4, 2))
    assert first.sha256 == again.sha256 != other.sha256
