"""The plan of a data set: splits, subsets, shards and order."""

from collections import Counter

import pytest

from adios_ray.data import plan
from adios_ray.data.plan import ShardJob, mixed, plan_jobs, plan_splits, take
from adios_ray.data.shards import Layout
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
    taken, rest = take("train", mixed(TRAIN), count)
    assert len(taken) == count and sorted(taken + rest) == sorted(TRAIN)
    for name, size in SIZES.items():
        assert abs(per_class(taken).get(name, 0) - size * count / len(TRAIN)) < 1


def test_what_rounding_leaves_goes_to_the_largest_remainder() -> None:
    taken, _ = take("train", ["ant/1", *(f"bee/{number}" for number in range(7))], 1)
    assert taken == ["bee/0"]


def test_a_subset_is_not_the_beginning_of_the_listing() -> None:
    taken, _ = take("train", mixed(TRAIN), 100)
    numbers = [int(item.split("/")[2].removesuffix(".png")) for item in taken if "/ant/" in item]
    assert 150 < sum(numbers) / len(numbers) < 250


def test_order_mixes_the_classes_and_does_not_depend_on_the_listing_order() -> None:
    order = mixed(TRAIN)
    assert order == mixed(TRAIN[::-1]) and sorted(order) == sorted(TRAIN)
    changes = sum(a.split("/")[1] != b.split("/")[1] for a, b in zip(order, order[1:], strict=False))
    assert changes > len(order) / 3


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


def test_a_digest_tells_recipes_and_items_apart() -> None:
    layout = Layout(32, None, False)
    plans = [jobs_for(layout, {"seed": 0}), jobs_for(layout, {"seed": 1}), jobs_for(layout, {"seed": 0}, TRAIN[:-1])]
    assert len({tuple(job.digest for job in jobs) for jobs in plans}) == 3
    assert plans[0][0].digest != plans[1][0].digest
    assert jobs_for(layout, {"seed": 0}) == plans[0]
