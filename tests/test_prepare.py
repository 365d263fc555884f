"""Preparation through Ray Data: shards equal a plain loop's, despite crashes, kills and refused images."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ray import cloudpickle

from adios_ray.cli import main
from adios_ray.commands.data import Verify
from adios_ray.data import claim, plan, shard_task
from adios_ray.data import prepare as prepare_module
from adios_ray.data.manifest import Layout
from adios_ray.data.plan import deciding, make_plan, plan_jobs
from adios_ray.data.prepare import PrepareSummary, prepare
from adios_ray.data.rendered import scenes
from adios_ray.data.shard_task import finished_part, make_shard
from adios_ray.data.shards import open_shards, verify
from adios_ray.data.sources.base import PHOTOGRAPH, Sample
from adios_ray.data.sources.folder import source as folder_source
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.data.sources.passed_over import PassedOver
from adios_ray.data.splits import plan_splits
from adios_ray.errors import ClaimError, DatasetError
from adios_ray.store import Store

SIZE = 16
CLASSES = ("ant", "bee", "cat")
RECIPE = {"dataset": "test"}
NO_COUNTS = {"train": None, "val": None, "test": None}


@dataclass(frozen=True)
class Failing:
    """A folder whose item ``broken`` raises once some shards are finished: a crash in the middle of a run.

    Attributes:
        folder: The images.
        output: Directory of the shards.
        broken: The item that fails.
        after: Number of finished shards to wait for.
    """

    folder: ImageFiles
    output: Path
    broken: str
    after: int = 3
    multi_label: bool = False
    has_instances: bool = False
    resize: str = PHOTOGRAPH
    classes: tuple[str, ...] = CLASSES
    notes: tuple[str, ...] = ()

    @property
    def passed_over(self) -> PassedOver:
        """What the folder passes over."""
        return self.folder.passed_over

    def stratum(self, item: str) -> str:
        """Class of an item of the folder."""
        return self.folder.stratum(item)

    def files(self) -> Mapping[str, tuple[int, int]]:
        """Files of the folder."""
        return self.folder.files()

    def file_of(self, item: str) -> str:
        """File of an item of the folder."""
        return self.folder.file_of(item)

    def beside(self, item: str) -> tuple[str, ...]:
        """Nothing, as beside an item of the folder."""
        return self.folder.beside(item)

    def checksum(self, name: str) -> str:
        """Checksum of a file of the folder."""
        return self.folder.checksum(name)

    def listing(self) -> Mapping[str, Sequence[str]]:
        """Return the listing of the folder."""
        return self.folder.listing()

    def load(self, item: str, image_size: int) -> Sample:
        """Load from the folder, or fail."""
        while item == self.broken:
            if len(list((self.output / ".parts").glob("*.json"))) >= self.after:
                raise RuntimeError(f"crashed at {item}")
            time.sleep(0.01)
        return self.folder.load(item, image_size)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFiles:
    """Write sixty noise images in three classes, of several shapes, without val and test splits."""
    rng = np.random.default_rng(0)
    for number in range(60):
        path = tmp_path / "images" / CLASSES[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (SIZE * (1 + number % 2), SIZE * (1 + number % 4 // 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder_source(tmp_path / "images")


@pytest.fixture(autouse=True)
def short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit shards to seven rows, so that sixty images fill ten."""
    monkeypatch.setattr(plan, "MAX_SHARD_ROWS", 7)


def contents(directory: Path) -> dict[str, bytes]:
    """Read every file of a data set, including hidden ones."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def make_in_this_process(folder: ImageFiles, output: Path, every: int, recipe: Mapping[str, object]) -> None:
    """Do every ``every``-th job of ``prepare`` here, the last one first, as a single worker would."""
    settings = {f"{split}_images": None for split in NO_COUNTS}
    full = {**recipe, **settings, "image_size": SIZE, "resize": PHOTOGRAPH}
    decided = deciding(folder, full, folder.files())
    jobs = plan_jobs(make_plan(folder, NO_COUNTS).splits, Layout(SIZE, None, False), *decided)
    (output / ".parts").mkdir(parents=True)
    for job in reversed(jobs[::every]):
        make_shard({"job": job.model_dump_json()}, folder, Store(output), SIZE, "skip")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_shards_hold_what_a_plain_loop_decodes(folder: ImageFiles, tmp_path: Path) -> None:
    summary = prepare(folder, tmp_path / "out", SIZE, RECIPE)
    assert summary.images == {"train": 48, "val": 6, "test": 6} and (summary.refused, summary.decoded) == (0, 60)
    verify(tmp_path / "out")
    dataset = open_shards(tmp_path / "out")
    seen: list[tuple[str, int]] = []
    for entry in dataset.manifest.entries:
        batch = pa.ipc.open_file(tmp_path / "out" / entry.file).get_batch(0)
        for item, pixels in zip(batch["source_id"].to_pylist(), batch["image"].to_numpy_ndarray(), strict=True):
            expected = np.asarray(Image.open(folder.root / item).resize((SIZE, SIZE)), dtype=int)
            assert np.abs(pixels - expected).max() <= 1
        sizes = [Image.open(folder.root / item).size for item in batch["source_id"].to_pylist()]
        assert list(zip(batch["width"].to_pylist(), batch["height"].to_pylist(), strict=True)) == sizes
        seen += zip(batch["source_id"].to_pylist(), batch["label"].to_pylist(), strict=True)
    assert sorted(seen) == sorted((item, CLASSES.index(item[:3])) for item in folder.listing()["train"])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_multi_label_and_instances_come_through(tmp_path: Path) -> None:
    source = scenes.source(20, seed=3)
    prepare(source, tmp_path / "out", 32, {"dataset": "scenes"}, train_images=5)
    split = open_shards(tmp_path / "out").split("train")
    items = plan_splits(source.listing(), {**NO_COUNTS, "train": 5})["train"]
    samples = [source.load(item, 32) for item in items]
    assert len(split) == 5 and split.instances is not None
    np.testing.assert_array_equal(np.concatenate(split.images), [sample.image for sample in samples])
    np.testing.assert_array_equal(np.concatenate(split.instances), [sample.instances for sample in samples])
    np.testing.assert_array_equal(split.labels, [sample.label for sample in samples])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_bytes_do_not_depend_on_the_number_of_workers(folder: ImageFiles, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "four", SIZE, RECIPE)
    make_in_this_process(folder, tmp_path / "one", every=1, recipe=RECIPE)
    summary = prepare(folder, tmp_path / "one", SIZE, RECIPE)
    assert summary.decoded == 0 and not summary.complete_before
    assert contents(tmp_path / "one") == contents(tmp_path / "four")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_resumed_run_equals_an_uninterrupted_one(folder: ImageFiles, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare(folder, whole, SIZE, RECIPE)
    last = plan_splits(folder.listing(), NO_COUNTS)["test"][-1]
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file
    with pytest.raises(DatasetError, match=rf"\(RuntimeError: crashed at {last}\); run the same command again"):
        prepare(Failing(folder, broken, last), broken, SIZE, RECIPE)
    assert not (broken / "manifest.json").exists()
    lost, cut, kept = sorted((broken / ".parts").glob("*.json"))[:3]
    lost.unlink()
    (broken / lost.stem).unlink()
    (broken / cut.stem).write_bytes((broken / cut.stem).read_bytes()[:-1])
    (broken / ".train-00000.arrow.123.tmp").write_bytes(b"left by a killed worker")
    kept_before = (broken / kept.stem).stat()
    summary = prepare(folder, broken, SIZE, RECIPE)
    assert contents(broken) == contents(whole)
    assert (broken / kept.stem).stat().st_mtime_ns == kept_before.st_mtime_ns
    assert 14 <= summary.decoded < 60


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_preparation_killed_at_any_point_ends_with_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.undo()  # shards as long as those of the processes to kill
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    command = ["prepare", "--dataset", "objects", "--num-images", "6000", "--image-size", "32", "--output"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*command, str(whole)]) == 0
    program, random = Path(sys.executable).with_name("adios-ray"), Random(0)
    for kept in (0, 3):
        process = subprocess.Popen([program, *command, broken], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list((broken / ".parts").glob("*.json"))) <= kept:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.4))
        process.kill()
        process.wait()
    finished = {part.stem for part in (broken / ".parts").glob("*.json")}
    before = {name: (broken / name).stat().st_mtime_ns for name in finished}
    assert len(before) > 3 and not (broken / "manifest.json").exists()
    assert main([*command, str(broken)]) == 0
    assert contents(broken) == contents(whole)
    assert {name: (broken / name).stat().st_mtime_ns for name in finished} == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_another_recipe_left_unfinished_is_made_again(folder: ImageFiles, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "fresh", SIZE, RECIPE)
    make_in_this_process(folder, tmp_path / "used", every=2, recipe={"dataset": "another"})
    (tmp_path / "used" / "train-00099.arrow").write_bytes(b"a shard of a larger plan")
    assert prepare(folder, tmp_path / "used", SIZE, RECIPE).decoded == 60
    assert contents(tmp_path / "used") == contents(tmp_path / "fresh")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_finished_data_set_is_left_alone(folder: ImageFiles, tmp_path: Path) -> None:
    first = prepare(folder, tmp_path / "out", SIZE, RECIPE, val_images=9)
    before = contents(tmp_path / "out")
    again = prepare(folder, tmp_path / "out", SIZE, RECIPE, val_images=9)
    assert again.complete_before and again.decoded == 0
    assert (again.images, again.bytes) == (first.images, first.bytes) and first.images["val"] == 9
    with pytest.raises(DatasetError, match=r"another data set \(val_images 9, not 8\); choose another --output"):
        prepare(folder, tmp_path / "out", SIZE, RECIPE, val_images=8)
    assert contents(tmp_path / "out") == before
    table = tmp_path / "out" / "files.arrow"
    table.write_bytes(table.read_bytes().replace(b"ant", b"axt"))
    with pytest.raises(DatasetError, match="files.arrow does not have the checksum of the manifest. Run adios-ray"):
        Verify(str(tmp_path / "out")).run()
    assert verify(tmp_path / "out").images("val") == 9  # a training needs the shards alone
    with pytest.raises(DatasetError, match="files.arrow does not have the checksum of the manifest. Run adios-ray"):
        prepare(folder, tmp_path / "out", SIZE, RECIPE, val_images=9)
    (tmp_path / "out" / "val-00000.arrow").unlink()
    with pytest.raises(DatasetError, match="val-00000.arrow is missing or not as in the manifest. Run adios-ray"):
        prepare(folder, tmp_path / "out", SIZE, RECIPE, val_images=9)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_class_of_which_nothing_is_left_is_named(folder: ImageFiles, tmp_path: Path) -> None:
    planned = plan_splits(folder.listing(), NO_COUNTS)
    for item in (*planned["val"], *planned["train"]):
        if "bee" in item and item in planned["val"]:
            (folder.root / item).write_bytes(b"")
    said: list[str] = []
    prepare(folder, tmp_path / "out", SIZE, RECIPE, max_bad_fraction=0.5, say=said.append)
    assert said[-1] == "note: nothing is left of class bee in val: all of its images there are refused"
    for item in planned["train"]:
        if "bee" in item:
            (folder.root / item).write_bytes(b"")
    prepare(folder, tmp_path / "again", SIZE, RECIPE, max_bad_fraction=0.5, say=said.append)
    assert said[-1].startswith("note: nothing is left of class bee in train, bee in val: all of its images")


def spoil(folder: ImageFiles, count: int) -> list[str]:
    """Empty some of the files."""
    items = list(folder.listing()["train"][::7][:count])
    for item in items:
        (folder.root / item).write_bytes(b"")
    return items


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_images_in_are_images_out_and_refused(folder: ImageFiles, tmp_path: Path) -> None:
    items = spoil(folder, 3)
    summary = prepare(folder, tmp_path / "out", SIZE, RECIPE, max_bad_fraction=0.05)
    assert sum(summary.images.values()) + summary.refused == 60 and summary.refused == 3
    manifest = verify(tmp_path / "out")
    assert sorted(refusal.item for refusal in manifest.refused) == items
    assert {refusal.reason for refusal in manifest.refused} == {"empty file"}
    planned = plan_splits(folder.listing(), NO_COUNTS)
    assert all(refusal.item in planned[refusal.split] for refusal in manifest.refused)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_too_many_refused_images_make_no_data_set_until_they_are_repaired(folder: ImageFiles, tmp_path: Path) -> None:
    [item] = spoil(folder, 1)
    with pytest.raises(DatasetError, match=rf"1 of 60 images were refused, .*1\.00% \({item}: empty file\)"):
        prepare(folder, tmp_path / "out", SIZE, RECIPE)
    with pytest.raises(DatasetError, match="no data set"):
        open_shards(tmp_path / "out")
    Image.new("RGB", (SIZE, SIZE)).save(folder.root / item)
    summary: PrepareSummary = prepare(folder, tmp_path / "out", SIZE, RECIPE)
    assert summary.refused == 0 and sum(summary.images.values()) == 60 and summary.decoded <= 7


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_first_bad_image_stops_where_that_is_asked_for(folder: ImageFiles, tmp_path: Path) -> None:
    [item] = spoil(folder, 1)
    stopped = f"{item} was refused: empty file.*; run the same command again to resume"
    with pytest.raises(DatasetError, match=stopped):
        prepare(folder, tmp_path / "out", SIZE, RECIPE, on_bad_image="fail")
    with pytest.raises(DatasetError, match="1 of 60 images were refused"):  # of which its shard is made
        prepare(folder, tmp_path / "out", SIZE, RECIPE)
    with pytest.raises(DatasetError, match=stopped):
        prepare(folder, tmp_path / "out", SIZE, RECIPE, on_bad_image="fail")
    assert prepare(folder, tmp_path / "out", SIZE, RECIPE, max_bad_fraction=0.05).refused == 1


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(("step", "parts"), [("make_shard", 3), ("_parts", 9), ("write_files", 9)])
def test_a_place_that_is_taken_over_is_left_to_its_holder(
    step: str, parts: int, folder: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that resumes after a minute writes nothing more, at whatever step it was suspended."""
    output, original = tmp_path / "out", getattr(prepare_module, step)

    def suspended(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if len(list((output / ".parts").glob("*.json"))) == parts:
            (output / ".preparing.json").write_text('{"token": "another"}')
            time.sleep(0.1)
        return result

    monkeypatch.setattr(claim, "BEAT_S", 0.01 if step == "make_shard" else 60.0)
    monkeypatch.setattr(prepare_module, step, suspended)
    with pytest.raises(ClaimError, match="out has been taken over by another process"):
        prepare(folder, output, SIZE, RECIPE)
    assert not (output / "manifest.json").exists() and len(list((output / ".parts").glob("*.json"))) == parts
    assert (output / ".preparing.json").read_text() == '{"token": "another"}'


def test_a_record_is_of_the_shard_beside_it(
    folder: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe, another one killed between its shard and its record, and the first one again."""
    store, plans = Store(tmp_path / "out"), make_plan(folder, NO_COUNTS).splits
    first, other = (plan_jobs(plans, Layout(SIZE, None, False), {"stretch": bits})[0] for bits in (12, None))
    make_shard({"job": first.model_dump_json()}, folder, store, SIZE, "skip")
    assert finished_part(store, first) is not None and finished_part(store, other) is None
    monkeypatch.setattr(shard_task, "Part", lambda **values: sys.exit("killed"))
    with pytest.raises(SystemExit):
        make_shard({"job": other.model_dump_json()}, folder, store, SIZE, "skip")
    monkeypatch.undo()
    assert store.size(other.file) and finished_part(store, first) is None


def test_a_directory_with_something_else_is_left_alone(folder: ImageFiles, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="images is not empty and not an unfinished data set"):
        prepare(folder, tmp_path / "images", SIZE, RECIPE)
