"""Frozen features: extracted once, and found again by what they follow from."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import make_objects, small_config

from adios_ray.config import TrialConfig, replaced
from adios_ray.data.loader import central_views, stored_batches
from adios_ray.data.shards import open_shards
from adios_ray.errors import DatasetError
from adios_ray.evaluation import extraction, features
from adios_ray.evaluation.extraction import extract_features
from adios_ray.evaluation.features import features_of
from adios_ray.local_cache import remove_least_used
from adios_ray.models.networks import Networks


@pytest.fixture
def config(objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    """Configure a small trial, and an empty cache."""
    monkeypatch.setenv("ADIOS_RAY_CACHE", str(tmp_path / "cache"))
    return small_config(objects_dir)


def test_features_are_extracted_once_and_depend_on_weights_data_and_view(
    config: TrialConfig, objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dataset, networks = open_shards(objects_dir), Networks(config, 32, 10)
    val = dataset.split("val")
    expected = extract_features(networks.backbone, val, np.arange(len(val)), 32)
    monkeypatch.setattr(features, "PART", 16)
    found = features_of(networks, dataset, "val", 32, "square")
    torch.testing.assert_close(found.features, expected, rtol=1e-5, atol=1e-5)
    assert found.labels.tolist() == val.labels.tolist()

    def never(*arguments: object) -> None:
        raise AssertionError("extracted again")

    def not_permitted(path: Path) -> None:
        raise PermissionError(f"{path} is another user's")

    with monkeypatch.context() as patch:
        patch.setattr(features, "_Extractor", never)
        patch.setattr(os, "utime", not_permitted)  # in a cache that users share
        again = features_of(networks, dataset, "val", 32, "square")
        assert torch.equal(again.features, found.features)
        for split, most in (("test", None), ("val", 10)):
            with pytest.raises(AssertionError, match="extracted again"):
                features_of(networks, dataset, split, 32, "square", most)
        with torch.no_grad():
            next(networks.backbone.parameters()).add_(1)
        with pytest.raises(AssertionError, match="extracted again"):
            features_of(networks, dataset, "val", 32, "square")
    fewer = features_of(networks, dataset, "val", 32, "square", most=10)
    assert len(fewer.features) == len(fewer.labels) == 10
    files = list((tmp_path / "cache" / "features").glob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    torch.testing.assert_close(features_of(networks, dataset, "val", 32, "square", 10), fewer)  # a damaged file
    # The same tensors in another architecture.
    networks.config = replaced(config, {"backbone.cifar_stem": True, "backbone.stem_padding": 2})
    features_of(networks, dataset, "val", 32, "square", most=10)
    assert len(list((tmp_path / "cache" / "features").glob("*.safetensors"))) == 3


def test_a_process_elsewhere_with_other_images_at_the_same_place_is_refused(tmp_path: Path) -> None:
    config = small_config(make_objects(tmp_path / "data"))
    dataset, networks = open_shards(tmp_path / "data"), Networks(config, 32, 10)
    extractor = pickle.dumps(features._Extractor(networks.backbone, dataset, "val", 32, "square"))
    assert pickle.loads(extractor)(np.arange(3)).shape[0] == 3
    shutil.rmtree(tmp_path / "data")
    make_objects(tmp_path / "data", unlabeled=3)
    with pytest.raises(DatasetError, match="data is another data set on .* than on the machine that asks"):
        pickle.loads(extractor)


def test_features_that_were_used_least_recently_are_removed(tmp_path: Path) -> None:
    for number, name in enumerate(("oldest", "old", "recent", "newest", ".draft")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (0, number))
    os.utime(tmp_path / "old", (0, 9))
    steps = ((400, {"oldest", "old", "recent", "newest"}), (300, {"old", "recent", "newest"}), (0, {"old"}))
    for kept_bytes, names in steps:
        remove_least_used(tmp_path, kept_bytes)
        assert {path.name for path in tmp_path.iterdir()} == {*names, ".draft"}


def test_features_of_views_by_batches_are_those_of_each_batch_read_as_one(
    objects_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are larger and smaller than a forward pass; one thread reads the images of all of them."""
    torch.manual_seed(0)
    backbone, split = Networks(small_config(objects_dir), 32, 10).backbone, open_shards(objects_dir).split("train")
    batches, readers = [np.arange(95, 55, -1), np.array([3, 3, 50]), np.arange(8)], list[object]()
    settings = split, batches, 32, extraction.CROPS_AND_FLIPS, 1, extraction.STREAM, 2
    expected = [own for b in batches for own in extraction.view_feature_batches(backbone, split, [b], *settings[2:])]

    def counted(*arguments: Any) -> Iterator[Any]:
        readers.append(arguments)
        return stored_batches(*arguments)

    monkeypatch.setattr(extraction, "BATCH", 16)
    monkeypatch.setattr(extraction, "stored_batches", counted)
    backbone.train()
    found = list(extraction.view_feature_batches(backbone, *settings))
    assert len(readers) == 1 and backbone.training and not any(part.requires_grad for part in found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_forward_passes_are_in_the_given_precision_and_images_are_not(objects_dir: Path) -> None:
    config = small_config(objects_dir, precision="bfloat16")
    torch.manual_seed(0)
    networks, split, indices = Networks(config, 32, 10), open_shards(objects_dir).split("val"), np.arange(8)
    found = extract_features(networks.backbone, split, indices, 32, precision=networks.autocast(torch.device("cpu")))
    views = central_views(split, indices, 32, torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = networks.backbone.eval()(views).float()
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert not torch.equal(found, extract_features(networks.backbone, split, indices, 32))
