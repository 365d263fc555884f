"""Images in Parquet files: the layouts that people have, what is refused, and how few row groups are read."""

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoded_images import labels_of, picture, squeezed, upload
from s3 import s3_server

from adios_ray.cli import main
from adios_ray.data import plan
from adios_ray.data.manifest import Layout
from adios_ray.data.plan import deciding, plan_jobs
from adios_ray.data.prepare import prepare
from adios_ray.data.shards import open_shards
from adios_ray.data.sources import parquet
from adios_ray.data.sources.base import NO_LABEL, ReadInBlocks
from adios_ray.data.sources.encoded import Place
from adios_ray.data.sources.parquet import source
from adios_ray.data.splits import in_blocks, plan_splits
from adios_ray.errors import DatasetError, RefusedImageError
from adios_ray.store import Store

CLASSES = ("ant", "bee/fly", "cat, big")
NO_COUNTS = {"train": None, "val": None, "test": None}


def hub_file(path: Path, labels: Sequence[int | None], names: Sequence[str] = CLASSES) -> None:
    """Write what ``datasets`` writes: images as structs, the features as JSON in the schema's metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    images = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(len(labels))]
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
    schema = pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": list(labels)}, schema), path, row_group_size=10)


def plain_file(path: Path, columns: dict[str, Any], rows: int = 10) -> None:
    """Write columns without metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Two files of train and one each of validation and test, 60 + 9 + 6 images."""
    hub_file(tmp_path / "hub/data/train-00000-of-00002.parquet", [n % 3 for n in range(36)])
    hub_file(tmp_path / "hub/data/train-00001-of-00002.parquet", [n % 3 for n in range(24)])
    hub_file(tmp_path / "hub/data/validation-00000-of-00001.parquet", [2, 1, 0] * 3)
    hub_file(tmp_path / "hub/data/test-00000-of-00001.parquet", [0, 1, 2] * 2)
    (tmp_path / "hub/README.md").write_text("---\n")
    return tmp_path / "hub"


def test_the_layout_of_the_hub(hub: Path) -> None:
    read = source(hub)
    assert read.classes == CLASSES and read.passed_over == {"not a .parquet file": (1, ("README.md",))}
    assert {split: len(items) for split, items in read.listing().items()} == {"train": 60, "val": 9, "test": 6}
    train = read.listing()["train"]
    assert train[:2] == [
        f"data/{name}/train-00000-of-00002.parquet#0.{row}" for row, name in enumerate(["ant", "bee%2Ffly"])
    ]
    assert train[47] == "data/cat, big/train-00001-of-00002.parquet#1.1" and read.stratum(train[1]) == "bee/fly"
    assert labels_of(read, "train") == [n % 3 for n in range(60)] and labels_of(read, "val") == [2, 1, 0] * 3
    sample = read.load(train[47], 16)
    np.testing.assert_allclose(sample.image, squeezed(picture(11), 16), atol=1, rtol=0)
    assert (sample.height, sample.width, sample.instances) == (12, 20, None)


def test_workers_get_the_source_without_its_listing(hub: Path) -> None:
    assert len(pickle.dumps(source(hub))) < 700


def test_carved_splits_have_a_share_of_each_class(hub: Path) -> None:
    read = source(hub / "data/train-00000-of-00002.parquet")
    splits = plan_splits(read.listing(), {"train": None, "val": 6, "test": 3})
    assert set(Counter(map(read.stratum, splits["val"])).values()) == {2}
    assert set(Counter(map(read.stratum, splits["test"])).values()) == {1}


def test_each_shard_reads_few_row_groups(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_SHARD_ROWS", 20)
    read = source(hub)
    assert isinstance(read, ReadInBlocks)
    splits = plan_splits(read.listing(), NO_COUNTS)
    blocked = {split: in_blocks(items, read.block) for split, items in splits.items()}
    assert {split: sorted(items) for split, items in blocked.items()} == {s: sorted(i) for s, i in splits.items()}
    jobs = plan_jobs(blocked, Layout(16, None, False), {})
    reads = 0
    whole = pq.ParquetFile.read_row_group

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return whole(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    for job in jobs:
        for item in job.items:
            read.load(item, 16)
    groups = 4 + 3 + 1 + 1
    assert len(jobs) == 5 and groups <= reads <= groups + len(jobs)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ({"label": [10, 9, 10, 2]}, ("2", "9", "10"), [2, 1, 2, 0]),
        ({"Target": pa.array([1, 0, 1, 0], pa.uint8())}, ("0", "1"), [1, 0, 1, 0]),
        ({"cls": ["wasp", "ant", "wasp", "bee"]}, ("ant", "bee", "wasp"), [2, 0, 2, 1]),
        ({"label": [True, False, True, False]}, ("False", "True"), [1, 0, 1, 0]),
        ({"class": pa.array(["b", "a", "b", "a"]).dictionary_encode()}, ("a", "b"), [1, 0, 1, 0]),
        ({"caption": ["a", "b", "c", "d"], "width": [1, 2, 3, 4]}, ("unlabeled",), [0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_columns(
    tmp_path: Path, labels: dict[str, Any], classes: tuple[str, ...], numbers: list[int], kind: pa.DataType
) -> None:
    plain_file(tmp_path / "part-0.parquet", {"jpg": pa.array([picture(n) for n in range(4)], kind), **labels})
    read = source(tmp_path)
    assert read.classes == classes and labels_of(read, "train") == numbers


def test_columns_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = {"img": [picture(0), picture(1)], "mask": [picture(2), picture(3)], "fine": [0, 1], "label": ["x", "y"]}
    plain_file(tmp_path / "a.parquet", {**two, "class": [5, 6]})
    with pytest.raises(DatasetError, match=r"several columns of images \(img, mask\): choose by --image-column"):
        source(tmp_path)
    with pytest.raises(DatasetError, match=r"several columns of labels \(label, class\): choose by --label-column"):
        source(tmp_path, image_column="mask")
    read = source(tmp_path, image_column="mask", label_column="fine")
    np.testing.assert_allclose(read.load(read.listing()["train"][1], 16).image, squeezed(picture(3), 16), atol=1)
    assert read.classes == ("0", "1")
    with pytest.raises(DatasetError, match="a.parquet has no column nose, but img, mask, fine, label, class"):
        source(tmp_path, image_column="img", label_column="nose")
    with pytest.raises(DatasetError, match="column fine of .*a.parquet is int64, not binary or a struct"):
        source(tmp_path, image_column="fine", label_column="label")
    command = ["prepare", "--output", str(tmp_path / "out"), "--image-size", "32", "--source", str(tmp_path)]
    assert main([*command, "--dataset", "folder", "--image-column", "img"]) == 2
    assert "--label-column are for --dataset parquet, not for folder" in capsys.readouterr().err


@pytest.mark.parametrize("statistics", [True, False, ["image.path"]])
def test_images_named_by_their_path(tmp_path: Path, statistics: bool | list[str]) -> None:
    paths = ["images/0.png", "images/gone.png", "../../etc/x.png", None]
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
    table = pa.table({"image": [{"bytes": None, "path": path} for path in paths]}, schema)
    (tmp_path / "meta/images").mkdir(parents=True)
    pq.write_table(table, tmp_path / "meta/train.parquet", write_statistics=statistics)
    (tmp_path / "meta/images/0.png").write_bytes(picture(0))
    read = source(tmp_path)
    assert not read.passed_over and read.files().keys() == {
        *("meta/train.parquet", "meta/images/0.png", "meta/images/gone.png"),
    }
    first, *others = read.listing()["train"]
    np.testing.assert_allclose(read.load(first, 16).image, squeezed(picture(0), 16), atol=1)
    for item, reason in zip(others, ["gone.png, which is not there", "outside the data set", "no image"], strict=True):
        with pytest.raises(RefusedImageError, match=reason):
            read.load(item, 16)


@pytest.mark.parametrize("file", ["", "/train.parquet"])
def test_rows_that_hold_their_images_name_no_files(tmp_path: Path, file: str) -> None:
    """Without statistics in the footer too, if none of the files is there."""
    table = pa.table({"image": [{"bytes": picture(number), "path": f"{number}.png"} for number in range(3)]})
    pq.write_table(table, tmp_path / "train.parquet", write_statistics=False)
    assert source(f"{tmp_path}{file}").files().keys() == {"train.parquet"}
    (tmp_path / "1.png").write_bytes(picture(1))
    assert source(f"{tmp_path}{file}").files().keys() == {"train.parquet", "0.png", "1.png", "2.png"}


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("remote", [False, True])
def test_images_that_rows_name_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool) -> None:
    images = [{"bytes": None if number % 2 else picture(number), "path": f"{number}.png"} for number in range(20)]
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": images}, schema), tmp_path / "set" / "train.parquet", row_group_size=10)
    for number in (*range(1, 20, 2), 99):
        (tmp_path / "set" / f"{number}.png").write_bytes(picture(number))
    place = f"memory://{tmp_path.name}/set" if remote else tmp_path / "set"
    if remote:
        upload(tmp_path / "set", str(place))
    read = source(place)
    assert read.passed_over == {"an image outside the .parquet files": (1, ("99.png",))}
    assert read.files()["1.png"][0] == len(picture(1)) and read.files()["train.parquet"][0] > 0
    assert pickle.loads(pickle.dumps(read)).links == {} and len(pickle.dumps(read)) < 700
    earlier = replace(read, links={})  # which listed the Parquet files alone
    for name, made_from in (("earlier", earlier), ("out", read)):
        assert prepare(made_from, tmp_path / name, 16, {}).images["train"] == 16
        assert prepare(source(place), tmp_path / name, 16, {}).complete_before

    def digests() -> set[str]:
        found = source(place)
        jobs = plan_jobs(found.listing(), Layout(16, None, False), *deciding(found, {}, found.files()))
        return {job.digest for job in jobs}

    monkeypatch.setattr(plan, "MAX_SHARD_ROWS", 10)
    before = digests()
    with Store(place).writing("3.png") as path:
        path.write_bytes(picture(3, height=20))
    assert len(before) == 2 and len(before & digests()) == 1
    with pytest.raises(DatasetError, match=r"out was made: 1 changed \(3.png\)"):
        prepare(source(place), tmp_path / "out", 16, {})


@pytest.mark.parametrize("labels", [{}, {"label": ["unlabeled", "unlabeled"]}])
def test_images_of_the_unlabeled_split_have_no_label_whatever_the_classes(
    tmp_path: Path, labels: dict[str, list[str]]
) -> None:
    for split in ("train", "unlabeled"):
        plain_file(tmp_path / f"{split}.parquet", {"image": [picture(0), picture(1)], **labels})
    read = source(tmp_path)
    assert read.classes == ("unlabeled",)
    assert labels_of(read, "train") == [0, 0] and labels_of(read, "unlabeled") == [NO_LABEL, NO_LABEL]


@pytest.mark.parametrize("text", ["", "[1]", '{"info": {}}', "[" * 100_000])
def test_metadata_that_name_no_features_are_none(tmp_path: Path, text: str) -> None:
    columns = {"image": [picture(0), picture(1)], "label": [1, 0]}
    plain_file(tmp_path / "a.parquet", columns)
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": text}), tmp_path / "b.parquet")
    assert source(tmp_path / "b.parquet").classes == source(tmp_path / "a.parquet").classes == ("0", "1")


def test_columns_that_may_be_labels_are_noted(tmp_path: Path) -> None:
    columns = {"fine_label": [0, 1], "caption": ["x", "y"], "is_cat": [True, False], "weight": [0.5, 0.5]}
    plain_file(tmp_path / "a.parquet", {"image": [picture(0), picture(1)], **columns})
    assert source(tmp_path).notes == (
        "no label column is recognized; for one of fine_label, caption, is_cat, give --label-column",
    )
    assert source(tmp_path, label_column="fine_label").notes == ()


def test_rows_without_a_label_are_counted(tmp_path: Path) -> None:
    hub_file(tmp_path / "train-0.parquet", [0, 1, -1, 2, None])
    hub_file(tmp_path / "test-0.parquet", [-1] * 12)
    hub_file(tmp_path / "unlabeled-0.parquet", [-1, -1])
    read = source(tmp_path)
    assert {split: len(items) for split, items in read.listing().items()} == {"train": 3, "unlabeled": 2}
    count, examples = read.passed_over["no label"]
    assert count == 14 and len(examples) == 10 and examples[0] == "test-0.parquet#0.0"
    assert labels_of(read, "unlabeled") == [NO_LABEL, NO_LABEL]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.parquet", "val.parquet", "dev-1.parquet"], {"train": 1, "val": 2}),
        (["TRAIN/x.Parquet", "Validation/y.parquet", "test/z.parquet"], {"train": 1, "val": 1, "test": 1}),
        (["imagenet-train-1.parquet", "imagenet_valid_2.parquet"], {"train": 1, "val": 1}),
        (["0000.parquet", "contest.parquet", "sub/trainer.parquet"], {"train": 3}),
        (["train.parquet", "_metadata.parquet", ".x/train.parquet", "train-metadata.parquet"], {"train": 1}),
    ],
)
def test_names_say_the_split(tmp_path: Path, names: list[str], splits: dict[str, int]) -> None:
    for name in names:
        plain_file(tmp_path / name, {"image": [picture(0)], "label": [1]})
    read = source(tmp_path)
    assert {split: len(items) for split, items in read.listing().items()} == splits
    assert sum(splits.values()) + sum(count for count, _ in read.passed_over.values()) == len(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no .parquet files"),
        (
            ["train.parquet", "extra.parquet", "more/x.parquet"],
            "2 of 3 files .*: extra.parquet, more/x.parquet; rename",
        ),
        (["train-val.parquet"], "train-val.parquet in .* may be train or val: rename it"),
        (["test/train-0.parquet"], "may be test or train"),
    ],
)
def test_names_that_cannot_be_used(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        plain_file(tmp_path / name, {"image": [picture(0)], "label": [1]})
    with pytest.raises(DatasetError, match=message):
        source(tmp_path)


@pytest.mark.parametrize("place", ["memory://b/set.parquet", "memory://set.parquet", "set.parquet"])
def test_a_folder_may_be_called_like_a_file(tmp_path: Path, hub: Path, place: str) -> None:
    root = place if "://" in place else str(tmp_path / place)
    for path in (hub / "data").iterdir():
        with Store(root).writing(path.name) as target:
            shutil.copy(path, target)
    assert {split: len(items) for split, items in source(root).listing().items()} == {"train": 60, "val": 9, "test": 6}
    single = source(f"{root}/train-00001-of-00002.parquet")
    assert len(single.listing()["train"]) == len(labels_of(single, "train")) == 24


def test_links_are_followed(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/data").symlink_to(hub / "data")
    (hub / "data/above").symlink_to(hub)
    assert len(source(tmp_path / "linked").listing()["train"]) == len(source(hub).listing()["train"]) == 60


def test_files_must_agree(tmp_path: Path) -> None:
    hub_file(tmp_path / "a/test.parquet", [0, 1, 2])
    hub_file(tmp_path / "a/train.parquet", [0, 1, 2], ("ant", "cat, big", "bee/fly"))
    with pytest.raises(DatasetError, match=r"a/train.parquet and test.parquet .* among them cat, big, bee/fly, and 3 "):
        source(tmp_path / "a")
    plain_file(tmp_path / "b/test.parquet", {"image": [picture(0)], "label": [0]})
    plain_file(tmp_path / "b/train.parquet", {"image": [picture(0)], "label": ["x"]})
    with pytest.raises(
        DatasetError, match=r"b/train.parquet and test.parquet .*label \(names\), and .*label \(numbers\)"
    ):
        source(tmp_path / "b")
    plain_file(tmp_path / "c/test.parquet", {"image": [picture(0)], "label": ["y"]})
    plain_file(tmp_path / "c/train.parquet", {"image": [picture(0)], "label": ["x"]})
    with pytest.raises(DatasetError, match="c: test has no images of x; train has no images of y: add some"):
        source(tmp_path / "c")
    hub_file(tmp_path / "d/train.parquet", [0, 3])
    with pytest.raises(DatasetError, match="d names 3 classes, but has the labels 3"):
        source(tmp_path / "d")


@pytest.mark.parametrize("names", [CLASSES, ()])
def test_splits_have_the_classes_of_train(tmp_path: Path, names: Sequence[str]) -> None:
    """By the labels, whatever the metadata name; a test split without labels does not count."""
    first, second = names[:2] or ("0", "1")
    hub_file(tmp_path / "train.parquet", [0, 1], names)
    hub_file(tmp_path / "test.parquet", [-1], names)
    hub_file(tmp_path / "val.parquet", [1, 1], names)
    with pytest.raises(DatasetError, match=f"val has no images of {first}: .* with --allow-missing-classes$"):
        source(tmp_path)
    read = source(tmp_path, allow_missing_classes=True)
    assert read.classes == (names or ("0", "1")) and labels_of(read, "val") == [1, 1]
    hub_file(tmp_path / "train.parquet", [0, 0], names)
    with pytest.raises(DatasetError, match=f"train has no images of {second}: add some, or remove the class$"):
        source(tmp_path, allow_missing_classes=True)


@pytest.mark.usefixtures("without_ray")
def test_a_set_made_before_classes_were_compared_is_there(tmp_path: Path) -> None:
    """Then no option was needed; it says what is allowed, and changes no image."""
    hub_file(tmp_path / "set/train.parquet", [0, 1, 2] * 5)
    hub_file(tmp_path / "set/val.parquet", [1, 1])
    read, recipe = source(tmp_path / "set", allow_missing_classes=True), {"dataset": "parquet"}
    allowed = {**recipe, "allow_missing_classes": True}
    assert not prepare(read, tmp_path / "out", 16, recipe).complete_before
    assert prepare(read, tmp_path / "out", 16, allowed).complete_before
    splits, layout, files = read.listing(), Layout(16, None, False), read.files()
    before, after = (plan_jobs(splits, layout, *deciding(read, each, files)) for each in (recipe, allowed))
    assert before == after
    with pytest.raises(DatasetError, match="another data set"):
        prepare(read, tmp_path / "out", 16, {**allowed, "layout": "flat"})


def test_files_that_cannot_be_used(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_file(tmp_path / "a/x.parquet", {"text": ["a"], "label": [0]})
    with pytest.raises(DatasetError, match="x.parquet has no column of encoded images; its columns are text, label"):
        source(tmp_path / "a")
    plain_file(tmp_path / "b/x.parquet", {"image": [picture(0)], "labels": [[0, 1]]})
    with pytest.raises(DatasetError, match="column labels of .*x.parquet is list.*: a label must be one integer"):
        source(tmp_path / "b")
    with pytest.raises(DatasetError, match="nowhere has no .parquet files"):
        source(tmp_path / "nowhere")
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "MAX_GROUP_BYTES", 1000)
        with pytest.raises(DatasetError, match=r"test-00000-of-00001.parquet has .* group 0, .*row_group_size=100"):
            source(hub)
    cut = hub / "data/train-00001-of-00002.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="train-00001-of-00002.parquet cannot be read"):
        source(hub)


def test_damaged_images_and_row_groups_are_refused(tmp_path: Path) -> None:
    contents = [picture(0), b"", picture(1)[:-40], None, b"text"]
    plain_file(tmp_path / "train.parquet", {"image": contents}, rows=3)
    read = source(tmp_path)
    items = read.listing()["train"]
    for item, reason in zip(items[1:], ["empty file", "damaged PNG: ", "no image", "not an image in one"], strict=True):
        with pytest.raises(RefusedImageError, match=reason):
            read.load(item, 16)
    file = pq.ParquetFile(tmp_path / "train.parquet")
    start = file.metadata.row_group(0).column(0).dictionary_page_offset
    parquet._images.cache_clear()
    parquet._opened.cache_clear()
    with (tmp_path / "train.parquet").open("r+b") as opened:
        opened.seek(start)
        opened.write(b"\xff" * 64)
    with pytest.raises(RefusedImageError, match="row group 0 is damaged"):
        read.load(items[0], 16)


def test_items_are_read_back() -> None:
    for place in (Place("a/b/c.tar", "x/y#%2F", "k/1.#@5+6"), Place("c.parquet", "n", "0.1")):
        assert Place.of(place.item()) == place
        assert place.item().count("/") == place.file.count("/") + 1


@pytest.mark.slow
def test_at_a_uri(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with s3_server() as server:
        bucket = server.uri
        upload(hub, f"{bucket}/some/set")
        ours, theirs = source(hub), source(f"{bucket}/some/set/")
        assert ours.listing() == theirs.listing() and ours.passed_over == theirs.passed_over
        assert theirs.place == f"{bucket}/some/set" and labels_of(theirs, "val") == labels_of(ours, "val")
        single = source(f"{bucket}/some/set/data/test-00000-of-00001.parquet")
        assert {split: len(items) for split, items in single.listing().items()} == {"test": 6}
        with pytest.raises(DatasetError, match=f"{bucket}/nothing has no .parquet files"):
            source(f"{bucket}/nothing")
    command = ["prepare", "--output", "/nowhere", "--image-size", "32", "--source", "s3://bucket/x"]
    assert main([*command, "--dataset", "stl10"]) == 2
    assert "--dataset stl10 reads a folder, not a URI such as s3://bucket/x" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_prepared_shards_hold_the_images(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_SHARD_ROWS", 20)
    read = source(hub)
    summary = prepare(read, tmp_path / "out", 16, {"dataset": "parquet"})
    assert summary.images == {"train": 60, "val": 9, "test": 6} and summary.refused == 0
    dataset = open_shards(tmp_path / "out")
    seen = []
    for entry in dataset.manifest.entries:
        batch = pa.ipc.open_file(tmp_path / "out" / entry.file).get_batch(0)
        for item, label, pixels in zip(
            batch["source_id"].to_pylist(),
            batch["label"].to_pylist(),
            batch["image"].to_numpy_ndarray(),
            strict=True,
        ):
            np.testing.assert_array_equal(pixels, read.load(item, 16).image)
            assert CLASSES[label] == read.stratum(item)
            seen.append(item)
    assert sorted(seen) == sorted(item for items in read.listing().values() for item in items)
