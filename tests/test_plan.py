"""The plan of a data set: splits, subsets, shards and order."""

from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from adios_ray.data import plan
from adios_ray.data.manifest import Layout
from adios_ray.data.plan import OF_A_CARVED_GROUP, ShardJob, deciding, group_by_pattern, make_plan, plan_jobs
from adios_ray.data.rendered import objects, scenes
from adios_ray.data.sources import folder
from adios_ray.data.sources.base import Source
from adios_ray.data.splits import Quota, folder_of, in_blocks, mixed, plan_splits, shares, take
from adios_ray.errors import DatasetError

SIZES = {"ant": 400, "bee": 200, "cat": 101}
TRAIN = [f"train/{name}/{number}.png" for name, size in SIZES.items() for number in range(size)]
TEST = [f"test/{name}/{number}.png" for name in SIZES for number in range(20)]
ALL: dict[str, int | None] = {"train": None, "val": None, "test": None}


def per_class(items: list[str]) -> dict[str, int]:
    """Count the items in each class folder."""
    return dict(Counter(item.split("/")[1] for item in items))


def test_missing_splits_are_carved_out_of_train() -> None:
    splits = plan_splits({"train": TRAIN}, ALL)
    assert {split: len(items) for split, items in splits.items()} == {"train": 561, "val": 70, "test": 70}
    assert sorted(sum(splits.values(), [])) == sorted(TRAIN)
    assert per_class(splits["test"]) == {"ant": 40, "bee": 20, "cat": 10}


def test_splits_of_the_source_are_kept() -> None:
    splits = plan_splits({"train": TRAIN, "test": TEST}, {"train": 70, "val": 140, "test": None})
    assert sorted(splits["test"]) == sorted(TEST)
    assert per_class(splits["train"]) == {"ant": 40, "bee": 20, "cat": 10}
    assert per_class(splits["val"]) == {"ant": 80, "bee": 40, "cat": 20}
    assert not set(splits["train"]) & set(splits["val"])


def test_the_held_out_images_do_not_depend_on_the_size_of_train() -> None:
    small, large = (plan_splits({"train": TRAIN}, {**ALL, "train": count}) for count in (10, 300))
    assert small["val"] == large["val"] and small["test"] == large["test"]
    assert set(small["train"]) < set(large["train"])


def test_zero_images_leave_a_split_out() -> None:
    splits = plan_splits({"train": TRAIN, "test": TEST}, {**ALL, "val": 0, "test": 0})
    assert splits.keys() == {"train"} and len(splits["train"]) == len(TRAIN)


@pytest.mark.parametrize("listing", [{}, {"test": []}])
def test_a_source_without_images_is_refused(listing: dict[str, list[str]]) -> None:
    with pytest.raises(DatasetError, match="no split has images"):
        plan_splits(listing, ALL)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 702}, "702 images asked for train, but there are 561"),
        ({"val": 702}, "702 images asked for val, but there are 631"),
        ({"test": -1}, "-1 images asked for test"),
        ({"val": 0, "test": 701}, "no images are left for train"),
    ],
)
def test_counts_that_cannot_be_met(counts: dict[str, int], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        plan_splits({"train": TRAIN}, {**ALL, **counts})


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 350, 700, 701])
def test_every_class_has_its_share_to_within_one(count: int) -> None:
    taken, rest = take("train", mixed(TRAIN), Quota(count))
    assert len(taken) == count and sorted(taken + rest) == sorted(TRAIN)
    for name, size in SIZES.items():
        assert abs(per_class(taken).get(name, 0) - size * count / len(TRAIN)) < 1


def test_what_rounding_leaves_goes_to_the_largest_remainder() -> None:
    taken, _ = take("train", ["ant/1", *(f"bee/{number}" for number in range(7))], Quota(1))
    assert taken == ["bee/0"]


def test_a_subset_is_not_the_beginning_of_the_listing() -> None:
    taken, _ = take("train", mixed(TRAIN), Quota(100))
    numbers = [int(item.split("/")[2].removesuffix(".png")) for item in taken if "/ant/" in item]
    assert 150 < sum(numbers) / len(numbers) < 250


def test_order_mixes_the_classes_and_does_not_depend_on_the_listing_order() -> None:
    order = mixed(TRAIN)
    assert order == mixed(TRAIN[::-1]) and sorted(order) == sorted(TRAIN)
    changes = sum(a.split("/")[1] != b.split("/")[1] for a, b in zip(order, order[1:], strict=False))
    assert changes > len(order) / 3


def test_blocks_are_kept_together_in_mixed_order() -> None:
    blocks = {item: f"block {number // 10}" for number, item in enumerate(TRAIN)}
    order = in_blocks(TRAIN, blocks.__getitem__)
    assert order == in_blocks(TRAIN[::-1], blocks.__getitem__) and sorted(order) == sorted(TRAIN)
    named = [blocks[item] for item in order]
    changes = sum(a != b for a, b in zip(named, named[1:], strict=False))
    assert changes == len(set(named)) - 1 and named[:100] != sorted(named[:100])


def jobs_for(layout: Layout, recipe: dict[str, int], items: list[str] = TRAIN) -> list[ShardJob]:
    """Plan the jobs of one split."""
    return plan_jobs({"train": items}, layout, recipe)


def test_shards_have_nearly_equal_length_and_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_SHARD_ROWS", 100)
    jobs = jobs_for(Layout(32, None, False), {})
    assert [item for job in jobs for item in job.items] == TRAIN
    assert {len(job.items) for job in jobs} == {87, 88} and len(jobs) == 8
    assert jobs[7].file == "train-00007.arrow"


def test_shards_of_large_images_have_fewer_rows() -> None:
    rows = max(len(job.items) for job in jobs_for(Layout(256, None, has_instances=True), {}))
    assert rows * 256 * 256 * 4 <= 32 * 2**20 and rows > 100


def test_a_digest_tells_recipes_and_items_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(32, None, False)
    plans = [jobs_for(layout, {"seed": 0}), jobs_for(layout, {"seed": 1}), jobs_for(layout, {"seed": 0}, TRAIN[:-1])]
    assert len({tuple(job.digest for job in jobs) for jobs in plans}) == 3
    assert plans[0][0].digest != plans[1][0].digest
    assert jobs_for(layout, {"seed": 0}) == plans[0]
    monkeypatch.setattr(plan, "ROWS_VERSION", 0)  # images were decoded in another way
    assert not {job.digest for job in jobs_for(layout, {"seed": 0})} & {job.digest for job in plans[0]}


def tree(random: Random) -> list[str]:
    """Items of classes of random sizes, in folders of random depth below the class."""
    items = []
    for number in range(random.randint(1, 30)):
        for image in range(random.choice((1, 2, 3, 4, random.randint(5, 80)))):
            below = "".join(f"p{random.randint(0, 9)}/" for _ in range(random.randint(0, 3)))
            items.append(f"class{number:02d}/{below}{image}.png")
    return items


def class_of(item: str) -> str:
    """Name the first folder of an item."""
    return item.partition("/")[0]


@pytest.mark.parametrize("seed", range(40))
def test_each_class_has_its_share_of_a_carved_split_whatever_the_depth(seed: int) -> None:
    items = tree(Random(seed))
    splits = plan_splits({"train": items}, ALL, class_of)
    assert sorted(item for found in splits.values() for item in found) == sorted(items)
    found = {split: Counter(map(class_of, splits.get(split, ()))) for split in ("train", "val", "test")}
    for name, size in Counter(map(class_of, items)).items():
        held_out = [found[split][name] for split in ("val", "test")]
        assert found["train"][name] >= 1
        assert all(number >= 1 for number in held_out) if size >= 3 else held_out == [0, 0]
        assert all(abs(number - 0.1 * size) <= 1 for number in held_out)


@pytest.mark.parametrize("seed", range(40))
def test_a_number_that_is_asked_for_is_met_and_every_class_has_its_share(seed: int) -> None:
    random = Random(seed)
    items = tree(random)
    sizes = Counter(map(class_of, items))
    count = random.randint(0, len(items) - 1)
    splits = plan_splits({"train": items}, {"train": None, "val": 0, "test": count}, class_of)
    found = Counter(map(class_of, splits.get("test", ())))
    assert found.total() == count
    if count >= sum(size > 1 for size in sizes.values()):
        assert all(found[name] >= 1 for name, size in sizes.items() if size > 1)


def test_ties_do_not_favor_classes_by_their_names() -> None:
    names = [f"{letter}{number}" for letter in "az" for number in range(50)]
    given = shares(dict.fromkeys(names, 5), Quota(50))
    assert sum(given.values()) == 50 and 15 <= sum(given[name] for name in names[:50]) <= 35


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_together(seed: int) -> None:
    random = Random(seed)
    items = [
        f"class{random.randint(0, 3)}/patient{patient:03d}/{image}.png"
        for patient in range(random.randint(20, 60))
        for image in range(random.randint(1, 6))
    ]
    splits = plan_splits({"train": items}, ALL, class_of, group_by_pattern(r"patient\d+"))
    groups = {split: {item.split("/")[1] for item in found} for split, found in splits.items()}
    assert groups.keys() == {"train", "val", "test"}
    assert sum(map(len, groups.values())) == len({item.split("/")[1] for item in items})
    assert sorted(item for found in splits.values() for item in found) == sorted(items)
    for split in ("val", "test"):
        assert 0.03 * len(items) <= len(splits[split]) <= 0.3 * len(items)


def test_classes_of_few_groups_are_in_train_and_named() -> None:
    few = [f"few/video{number % 2}/{number}.png" for number in range(20)]
    many = [f"many/video{number % 10}/{number}.png" for number in range(100)]
    splits = plan_splits({"train": few + many}, ALL, class_of, lambda item: item.rpartition("/")[0])
    assert {class_of(item) for item in (*splits["val"], *splits["test"])} == {"many"}


def test_a_class_of_large_groups_gives_its_smallest_ones() -> None:
    items = [f"c/g{size}/{number}" for size in (20, 10, 12) for number in range(size)]
    splits = plan_splits({"train": items}, ALL, class_of, folder_of)
    assert {split: len(found) for split, found in splits.items()} == {"train": 20, "test": 10, "val": 12}


def test_groups_of_several_classes_leave_each_class_in_train() -> None:
    """A group that a lacking class needs may hold the last images of another one."""
    by_patient = group_by_pattern(r"p\d+")
    for seed in range(300):
        random = Random(seed)
        kinds = random.randint(2, 6)
        items = [
            f"c{kind}/p{patient:02}_{image}.png"
            for patient in range(random.randint(10, 30))
            for kind in random.sample(range(kinds), random.randint(1, min(kinds, 3)))
            for image in range(random.randint(1, 6))
        ]
        splits = plan_splits({"train": items}, ALL, class_of, by_patient)
        assert {*map(class_of, splits["train"])} == {*map(class_of, items)}, seed


def test_a_class_that_numbers_take_from_train_is_noted(tmp_path: Path) -> None:
    for item in ("ant/0.png", "ant/1.png", "bee/0.png"):
        (tmp_path / item).parent.mkdir(exist_ok=True)
        (tmp_path / item).touch()
    found = make_plan(folder.source(tmp_path), {**ALL, "train": 1, "val": 0, "test": 2})
    assert {split: dict(number) for split, number in found.classes.items()} == {
        "train": {"ant": 1},
        "test": {"ant": 1, "bee": 1},
    }
    assert found.notes == ("1 class of test without images in train: bee",)


def test_a_plan_keeps_the_images_of_a_folder_together(tmp_path: Path) -> None:
    for number in range(60):
        image = tmp_path / f"class{number % 2}" / f"video{number % 20}" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    found = make_plan(folder.source(tmp_path), ALL, folder_of)
    folders = {split: {item.rpartition("/")[0] for item in items} for split, items in found.splits.items()}
    assert found.images == 60 and folders.keys() == {"train", "val", "test"}
    assert sum(map(len, folders.values())) == 20 == len(set.union(*folders.values()))
    assert any(
        len({*map(folder_of, items)}) > 20 / 3 for items in make_plan(folder.source(tmp_path), ALL).splits.values()
    )


def test_classes_of_too_few_groups_are_an_error_with_the_cause(tmp_path: Path) -> None:
    items = ["ant/0", "ant/1", "bee/0", "bee/1"]
    for group, cause in (
        (folder_of, "each class is a single folder, so that no folder can be held out for test"),
        (group_by_pattern(r"\w"), "each class is a single group, so that no group can be held out for test"),
        (str, "classes have too few groups, so that no group can be held out for test"),
    ):
        with pytest.raises(DatasetError, match=cause):
            plan_splits({"train": items}, ALL, folder_of, group)


def test_groups_that_the_source_has_in_several_splits_are_noted(tmp_path: Path) -> None:
    for item in ("train/a/p1_0", "train/a/p2_0", "test/a/p1_1", "test/a/p3_0", "val/a/p3_1", "unlabeled/p2_1"):
        (tmp_path / item).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{item}.png").touch()
    found = make_plan(folder.source(tmp_path), ALL, group_by_pattern(r"p\d"))
    note = "2 groups in more than one split, as the source has them: p1 (test, train), p3 (test, val)"
    assert sorted(found.notes) == [note]
    assert make_plan(folder.source(tmp_path), ALL).notes == ()
    (tmp_path / "test/a/other.png").touch()  # nothing is carved that its group could decide
    assert list(make_plan(folder.source(tmp_path), ALL, group_by_pattern(r"p\d")).notes) == [note]


def test_unlabeled_images_of_a_group_that_is_held_out_are_left_out(tmp_path: Path) -> None:
    for number in range(80):
        name = "unlabeled" if number % 4 == 3 else f"train/class{number % 2}"
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / f"p{number // 4:02}_{number}.png").touch()
    source = folder.source(tmp_path)
    found = make_plan(source, ALL, group_by_pattern(r"p\d+"))
    groups = {split: {group_by_pattern(r"p\d+")(item) for item in items} for split, items in found.splits.items()}
    held = groups["val"] | groups["test"]
    assert held and not held & (groups["train"] | groups["unlabeled"]) and found.notes == ()
    assert dict(found.passed_over.items())[OF_A_CARVED_GROUP][0] == len(held)
    assert found.images + found.passed_over.total == 80
    for name in ("class0", "class1"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "p00_x.png").touch()
    (note,) = make_plan(folder.source(tmp_path), {**ALL, "val": 0}, group_by_pattern(r"p\d+")).notes
    assert note.startswith("1 group in more than one split") and note.endswith("p00 (test, train)")


def test_a_count_that_groups_cannot_meet_is_refused() -> None:
    items = [f"a/video{number % 20}_{number}.png" for number in range(100)]
    with pytest.raises(DatasetError, match="1000 images asked for test, but there are 100"):
        plan_splits({"train": items}, {**ALL, "test": 1000}, class_of, group_by_pattern(r"video\d+"))


def test_a_pattern_must_match_every_image() -> None:
    assert group_by_pattern(r"(video\d)_\d+")("a/video3_17.png") == "video3"
    with pytest.raises(DatasetError, match="does not match a/b.png"):
        group_by_pattern(r"video\d")("a/b.png")


def test_a_plan_says_what_is_read_and_what_is_not(tmp_path: Path) -> None:
    for name, size in {"ant": 30, "bee": 30, "cow": 1}.items():
        (tmp_path / name).mkdir()
        for number in range(size):
            (tmp_path / name / f"{number}.png").touch()
    (tmp_path / "ant" / ".hidden").touch()
    found = make_plan(folder.source(tmp_path), ALL)
    assert found.only_in_train == ("cow",) and found.carved == ("val", "test")
    assert found.text().splitlines() == [
        "3 splits, 3 classes: train 49, test 6, val 6 (val and test carved out of train)",
        "1 class too small to be in val and test, kept in train: cow",
        "passed over, hidden: 1 (ant/.hidden)",
    ]
    assert found.empty == ()
    fewer = make_plan(folder.source(tmp_path), {**ALL, "train": 20})
    assert fewer.passed_over["beyond the number of images asked for"].number == 29
    assert fewer.images + fewer.passed_over.total == 62


def test_a_plan_says_what_is_too_small_to_be_carved(tmp_path: Path) -> None:
    for name in ("ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = make_plan(folder.source(tmp_path), ALL)
    assert found.carved == () and found.text().splitlines() == [
        "1 split, 2 classes: train 4",
        "nothing is left for val and test, which training needs: all classes are too small",
    ]
    assert make_plan(folder.source(tmp_path), {**ALL, "val": 0, "test": 0}).empty == ()


@pytest.mark.parametrize(
    ("source", "expected"),
    [(objects.source(30, 0), "3 splits, 10 classes: "), (scenes.source(30, 0), "3 splits, 24 labels: ")],
)
def test_the_plan_of_rendered_images_names_their_classes_or_labels(source: Source, expected: str) -> None:
    assert plan.make_plan(source, plan.image_counts()).text().startswith(expected)


def test_a_group_that_takes_no_part_in_a_match_leaves_the_whole_match() -> None:
    group = group_by_pattern(r"seq(\d+)|clip")
    assert [group(item) for item in ("cat/seq0_1.jpg", "cat/clip_3.jpg")] == ["0", "clip"]


def test_shards_are_made_again_where_classes_or_files_have_changed() -> None:
    """An index of a class is another class once one more is there; a file of many images may be another one."""
    layout, splits = Layout(16, None, False), {"train": ["a/x.tar#1", "a/x.tar#2"], "val": ["a/y.tar#1"]}

    def digests(classes: tuple[str, ...], changed_ns: int) -> list[str]:
        files = {"a/x.tar": (9, changed_ns), "a/y.tar": (9, 1)}
        source: Any = SimpleNamespace(
            classes=classes,
            listing=lambda: splits,
            file_of=lambda item: item.partition("#")[0],
            beside=lambda item: (),
            stratum=lambda item: "a",
        )
        return [job.digest for job in plan_jobs(splits, layout, *deciding(source, {"source": "here"}, files))]

    before = digests(("a", "b"), 1)
    assert digests(("a", "b"), 1) == before
    assert not set(digests(("0", "a", "b"), 1)) & set(before)
    train, val = digests(("a", "b"), 2)
    assert train != before[0] and val == before[1]


@pytest.mark.parametrize(("place", "matters"), [("/data/images", False), ("s3://bucket/images", True)])
def test_the_place_of_objects_decides_since_their_times_are_coarse(place: str, matters: bool) -> None:
    splits = {"train": ["a/1.png"]}
    source: Any = SimpleNamespace(
        classes=("a",),
        listing=lambda: splits,
        file_of=lambda item: item,
        beside=lambda item: (),
        stratum=lambda item: "a",
    )
    files = {"a/1.png": (9, 10**9)}
    layout = Layout(16, None, False)
    (before,), (after,) = (
        plan_jobs(splits, layout, *deciding(source, {"source": each}, files)) for each in (place, f"{place}2")
    )
    assert (before.digest != after.digest) is matters
