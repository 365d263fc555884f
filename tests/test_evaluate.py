"""Evaluations of a frozen encoder by kind, against independent implementations, and their command."""

import inspect
import json
import pickle
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import numpy as np
import pytest
import torch
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from small import SIZE, make_objects, small_config
from torch import Tensor
from waiting import TIMEOUT_S, until

import adios_ray
from adios_ray.cli import main
from adios_ray.commands.evaluation_kinds import KINDS, Knn, Linear, Robustness, Transfer
from adios_ray.data.augment import apply_view, draw_parameters
from adios_ray.data.loader import central_instances, central_views
from adios_ray.data.manifest import Manifest
from adios_ray.data.shards import Dataset, open_shards
from adios_ray.errors import AGAIN, EvaluationError, RunError
from adios_ray.evaluation import features as features_module
from adios_ray.evaluation import kinds, label_free, transfer
from adios_ray.evaluation.extraction import CROPS_AND_FLIPS, Indices, extract_features
from adios_ray.evaluation.features import Features, MapParts, features_of
from adios_ray.evaluation.knn import knn_label_shares
from adios_ray.evaluation.linear import Accuracy, Sgd, train_rates
from adios_ray.evaluation.requirements import check_labels
from adios_ray.evaluation.result import EvaluationResult
from adios_ray.evaluation.robustness import robustness
from adios_ray.evaluation.statistics import fresh_statistics, refresh_statistics
from adios_ray.evaluation.subject import Subject, build_subject, opened
from adios_ray.evaluation.transfer import TransferConfig
from adios_ray.local_cache import CACHE_VARIABLE
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, build_networks, save_weights
from adios_ray.tables.evaluate import evaluate as tables_evaluate

COUNTS = {"train": 96, "val": 40, "test": 140}
Splits = dict[str, tuple[Tensor, np.ndarray]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write objects, with more test images than the small network has features, 128."""
    return make_objects(tmp_path_factory.mktemp("data") / "objects", counts=COUNTS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write scenes, whose images have several labels each."""
    return make_objects(tmp_path_factory.mktemp("data") / "scenes", multi_label=True)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep features in a folder of these tests."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "features"))


def weights(classes: int = 8, seed: int = 0, **changes: Any) -> Weights:
    """Make the weights of a small untrained network."""
    torch.manual_seed(seed)
    config = small_config(Path("data"), **changes)
    size = config.image_size or SIZE
    return Weights(config, size, classes, "made for a test", Networks(config, size, classes).state_dict())


def evaluated(
    data: Path,
    kind: Callable[..., EvaluationResult],
    options: dict[str, Any] | None = None,
    split: str = "test",
    **changes: Any,
) -> tuple[EvaluationResult, Subject, Splits]:
    """Evaluate an untrained network; return its result, and the features with labels of all splits."""
    with opened(build_subject(weights(**changes), open_shards(data), split)) as subject:
        result = kind(subject, **(options or {}))
        splits = {name: subject.features(name) for name in subject.dataset.manifest.splits}
        return result, subject, {name: (own.features, own.labels.numpy()) for name, own in splits.items()}


@pytest.mark.slow
def test_knn_reports_the_setting_that_is_best_on_val(data: Path) -> None:
    result, _, splits = evaluated(data, kinds.knn, {"neighbors": (1, 5, 50), "temperatures": (0.07, 0.5)})
    (bank, numbers), expected = splits["train"], []
    for row in result.details:
        temperature = row["temperature"]

        def votes(distance: np.ndarray, temperature: Any = temperature) -> np.ndarray:
            return 1 / (distance + 1e-5) if temperature is None else np.exp((1 - distance) / temperature)

        classifier = KNeighborsClassifier(
            row["neighbors"], weights=votes, metric=row["distance"], algorithm="brute"
        ).fit(bank, numbers)
        expected.append({name: classifier.score(*splits[name]) for name in ("val", "test")})
        # Distances near 0 of an untrained network's features are not exact: a tie may be broken otherwise.
        for name in ("val", "test"):
            assert row[f"{name} top1"] == pytest.approx(expected[-1][name], abs=1.01 / COUNTS[name])
    assert len(expected) == 4 * 2 + 4  # the checkpoint's own k, 20, beside those three
    for measure in ("top1", "top5"):
        values = [row[f"val {measure}"] or 0 for row in result.details]
        best = result.details[int(np.argmax(values))]
        setting = {name: best[name] for name in ("distance", "neighbors", "temperature")}
        assert result.configuration[f"selected_for_{measure}"] == setting
        assert result.scores[measure].value == best[f"test {measure}"]
    top1 = result.scores["top1"]
    assert top1.standard_error == pytest.approx(np.sqrt(top1.value * (1 - top1.value) / 140))
    assert result.images_per_split == COUNTS


@pytest.mark.slow
def test_all_training_images_vote_where_there_are_fewer_than_the_checkpoints_neighbors(data: Path) -> None:
    options = {"temperatures": (0.07,)}
    fewer, _, _ = evaluated(data, kinds.knn, {**options, "neighbors": (5,)}, evaluation={"neighbors": 500})
    every, _, _ = evaluated(data, kinds.knn, {**options, "neighbors": (5,)}, evaluation={"neighbors": 96})
    assert fewer.scores["knn_accuracy"] == every.scores["knn_accuracy"]
    assert fewer.configuration["neighbors"] == 96 and fewer.configuration["swept_neighbors"] == (5, 96)


@pytest.mark.slow
def test_nothing_is_chosen_on_the_split_that_is_reported(data: Path) -> None:
    result, _, _ = evaluated(data, kinds.knn, {"temperatures": (0.07,)}, split="val")
    assert set(result.scores) == {"knn_accuracy"} and result.configuration["selected_on"] is None
    assert result.configuration["swept_neighbors"] == (1, 2, 5, 10, 20, 50)  # train has 96 images
    with pytest.raises(EvaluationError, match="chooses one of 7 rates on val, and reports another split, not val"):
        evaluated(data, kinds.linear, split="val")
    result, _, _ = evaluated(data, kinds.linear, {"rates": (0.1,), "epochs": 2}, split="val")
    assert result.configuration["selected_on"] is None and set(result.scores) == {"top1", "top5"}


@pytest.mark.slow
def test_linear_trains_on_another_view_of_each_image_in_each_epoch(data: Path) -> None:
    options = {"augment": True, "rates": (0.5,), "epochs": 3, "batch_size": 32}
    result, subject, splits = evaluated(data, kinds.linear, options)
    train, backbone = subject.dataset.split("train"), subject.networks.backbone
    every = np.arange(len(train))
    views = []
    for epoch in range(3):
        drawn = draw_parameters(
            CROPS_AND_FLIPS, 0, "evaluation", epoch, every, train.heights[every], train.widths[every]
        )
        assert not (drawn.jitter | drawn.grayscale | drawn.blur | drawn.solarize).any() and drawn.flip.any()
        with torch.no_grad():
            views.append(backbone(apply_view(torch.from_numpy(train.gather(every)), drawn, SIZE)))
    (classifier,) = train_rates(
        (splits["train"][0], torch.from_numpy(train.labels)),
        Sgd((0.5,), 3, 32, (2, 2)),
        batches=lambda epoch, order: (views[epoch][own] for own in order),
    ).unbind(dim=1)
    features, truth = splits["test"]
    logits = features @ classifier[:, :-1].T + classifier[:, -1]
    assert result.scores["top1"].value == pytest.approx(float((logits.argmax(dim=1).numpy() == truth).mean()), abs=0.01)
    assert not torch.equal(views[0], views[1])


def test_networks_have_the_layouts_of_networks_that_are_not_compiled(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As evaluations compile nothing, also where the training did."""
    chosen: list[tuple[torch.device, bool]] = []

    def choose(networks: Networks, device: torch.device, compiled: bool) -> None:
        chosen.append((device, compiled))

    monkeypatch.setattr(Networks, "choose_layouts", choose)
    with opened(build_subject(weights(compile=True), open_shards(data))) as subject:
        assert subject.networks.config.compile and chosen == [(subject.device, False)]


@pytest.mark.slow
def test_multilabel_equals_scikit_learn(scenes: Path) -> None:
    result, _, splits = evaluated(scenes, kinds.multilabel, classes=24)
    scaler = StandardScaler().fit(splits["train"][0])
    known, unknown = (scaler.transform(splits[name][0]) for name in ("train", "test"))
    predicted = np.stack(
        [LogisticRegression(max_iter=1000).fit(known, target).predict(unknown) for target in splits["train"][1].T], 1
    )
    for average in ("micro", "macro", "weighted"):
        expected = f1_score(splits["test"][1], predicted, average=average, zero_division=0)
        assert 0 < (result.scores[f"f1_{average}"].standard_error or 0) < 0.1
        assert result.scores[f"f1_{average}"].value == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_knn_of_several_labels_has_a_score_and_its_error(scenes: Path) -> None:
    result, subject, splits = evaluated(scenes, kinds.knn, classes=24)
    own = subject.networks.config.evaluation
    (bank, known), (queries, truth) = splits["train"], splits["test"]
    labels = [torch.from_numpy(of) for of in (known, truth)]
    predicted = (knn_label_shares(bank, labels[0], queries, own.neighbors, own.temperature) > 0.5).numpy()
    groups = np.random.default_rng(0).permutation(len(truth)) % min(50, len(truth))
    f1 = [f1_score(truth[kept], predicted[kept], average="macro", zero_division=0) for kept in (groups >= 0, *(
        groups != number for number in range(groups.max() + 1)
    ))]  # fmt: skip
    score = result.scores["knn_macro_f1"]
    assert score.value == pytest.approx(f1[0], abs=1e-6)
    assert score.standard_error == pytest.approx(np.std(f1[1:]) * np.sqrt(groups.max()), abs=1e-6)
    with pytest.raises(EvaluationError, match="multi-label data have no sweep"):
        evaluated(scenes, kinds.knn, {"neighbors": (3,)}, classes=24)


@pytest.mark.slow
def test_val_of_several_labels_is_neither_used_nor_checked(tmp_path: Path) -> None:
    scenes = make_objects(tmp_path / "scenes", counts={"train": 96, "val": 1, "test": 40}, multi_label=True)
    for kind in (kinds.knn, kinds.multilabel):
        result, _, _ = evaluated(scenes, kind, classes=24)
        assert set(result.images_per_split) == {"train", "test"}


@pytest.mark.slow
def test_segmentation_equals_a_loop_over_images(data: Path) -> None:
    result, subject, _ = evaluated(data, kinds.segmentation)
    indices, occlusion = np.arange(140), subject.networks.occlusion
    assert occlusion is not None
    with torch.no_grad():
        slots = occlusion(central_views(subject.held_out, indices, SIZE, torch.device("cpu"))).argmax(dim=1)
    truth = central_instances(subject.held_out, indices, SIZE)
    each = [adjusted_rand_score(own.ravel(), found.ravel()) for own, found in zip(truth, slots.numpy(), strict=True)]
    ari = result.scores["ari"]
    assert ari.value == pytest.approx(np.mean(each), abs=1e-6)
    assert ari.standard_error == pytest.approx(np.std(each, ddof=1) / np.sqrt(140), abs=1e-6)
    floors = [result.scores[f"{floor}_ari"].value for floor in ("color_kmeans", "random_partition")]
    assert floors[0] > 0.05 > abs(floors[1])


@pytest.mark.slow
def test_labelfree_needs_no_labels_and_as_many_images_as_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabeled = make_objects(tmp_path / "unlabeled", counts=COUNTS, one_class=True)
    result, _, splits = evaluated(unlabeled, kinds.labelfree)
    singular = np.linalg.svd(splits["test"][0].double().numpy(), compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    assert result.scores["rankme"].value == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert result.configuration["view_images"] == 140 and result.scores["alignment"].value > 0
    unit = splits["test"][0] / splits["test"][0].norm(dim=1, keepdim=True)
    groups = np.random.default_rng(0).permutation(140) % 10
    gaps = torch.cdist(unit.double(), unit.double()).numpy() ** 2
    values = []
    for number in range(10):
        (kept,) = np.nonzero(groups != number)
        pairs = gaps[np.ix_(kept, kept)][np.triu_indices(len(kept), 1)]
        values.append(np.log(np.exp(-2 * pairs).mean()))
    assert result.scores["uniformity"].standard_error == pytest.approx(np.std(values) * 3, rel=1e-4)
    assert all((score.standard_error or 0) > 0 for score in result.scores.values())
    generator = torch.Generator().manual_seed(0)
    huge = 1e12 * torch.randn(8, 2, 1, generator=generator) * torch.randn(16, generator=generator)
    monkeypatch.setattr(kinds, "features_of_views", lambda *_, **__: huge)
    with pytest.raises(EvaluationError, match="LiDAR cannot be computed"):
        evaluated(unlabeled, kinds.labelfree)
    with pytest.raises(EvaluationError, match=r"α-ReQ: val has 40 images; a rank of 128 features needs at least 128"):
        evaluated(unlabeled, kinds.labelfree, split="val")
    with pytest.raises(EvaluationError, match="knn: .* has no labels but 'unlabeled'; it needs two classes or more"):
        evaluated(unlabeled, kinds.knn)


def changed(data: Path, tmp_path: Path, change: Callable[[Manifest], dict[str, Any]]) -> Path:
    """Copy a data set, with other values in its manifest."""
    copy = tmp_path / "changed"
    shutil.copytree(data, copy)
    manifest = open_shards(data).manifest
    (copy / "manifest.json").write_text(manifest.model_copy(update=change(manifest)).model_dump_json())
    return copy


@pytest.mark.slow
def test_data_that_do_not_allow_a_measure_are_refused(data: Path, scenes: Path, tmp_path: Path) -> None:
    no_val = changed(
        data, tmp_path, lambda manifest: {"splits": {k: v for k, v in manifest.splits.items() if k != "val"}}
    )
    tiny = make_objects(tmp_path / "tiny", counts={"train": 12, "val": 12, "test": 12})
    single = make_objects(tmp_path / "single", counts={"train": 12, "test": 1})
    learned: dict[str, Any] = {}
    fixed = {"masking": {"scheme": "none"}}
    for place, kind, options, changes, message in (
        (data, kinds.knn, {"neighbors": (97,)}, learned, "knn: train has 96 images; 97 neighbors need at least 97"),
        (tiny, kinds.knn, {}, learned, r"train has no images of \d classes of \w+, such as \w+; it needs at least one"),
        (single, kinds.clustering, {}, learned, "clustering: test of .* has 1 images; it needs at least two"),
        (tiny, kinds.clustering, {}, learned, "clustering: test has 12 images of .* classes; it needs twice as many"),
        (scenes, kinds.clustering, {}, learned, "clustering: .* have several labels each; it needs one class"),
        (data, kinds.multilabel, {}, learned, "multilabel: .* have one class each; it needs several labels"),
        (no_val, kinds.linear, {}, learned, "linear evaluation chooses .* on val, and .* has no val split"),
        (data, kinds.linear, {"augment": True, "solver": "lbfgs"}, learned, "augmented views need the solver sgd"),
        (
            single,
            kinds.segmentation,
            {},
            learned,
            "segmentation: test of .*single: 1 of 1 images have objects; at least",
        ),
        (data, kinds.segmentation, {}, fixed, "made for a test has no occlusion model, as masking.scheme was none"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluated(place, kind, options, **changes)


def labeled(**splits: list[int]) -> Dataset:
    """Make the labels of a data set of 8 classes, without images."""
    manifest = SimpleNamespace(classes=tuple("abcdefgh"), multi_label=False, splits=splits)
    found = {name: SimpleNamespace(labels=np.array(labels)) for name, labels in splits.items()}
    return cast(Dataset, SimpleNamespace(manifest=manifest, location="data/mine", split=found.__getitem__))


def test_classes_are_counted_among_those_of_the_training_images() -> None:
    dataset, every = labeled(train=[6, 7, 6, 7], val=[7, 6], test=[7, 7], more=[7, 1]), ("train", "val", "test")
    assert check_labels(dataset, "linear", every) == {6, 7}  # others have no images anywhere
    with pytest.raises(EvaluationError, match="linear: train has no images of 1 classes of more, such as b; it needs"):
        check_labels(dataset, "linear", (*every, "more"))
    with pytest.raises(EvaluationError, match="again: train has no images of 1 classes of more, such as b; it needs"):
        check_labels(dataset, "again", ("more",), known={6, 7})
    assert check_labels(dataset, "again", ("test",), known={6, 7}) == {6, 7}
    with pytest.raises(EvaluationError, match="clustering: all images of test of data/mine are of one class; it needs"):
        check_labels(dataset, "clustering", ("test",))


@pytest.mark.slow
def test_features_that_are_not_finite_are_named(data: Path) -> None:
    broken = weights()
    next(tensor for name, tensor in broken.tensors.items() if name.startswith("backbone."))[0] = torch.nan
    with opened(build_subject(broken, open_shards(data))) as subject:
        for kind in (kinds.knn, kinds.linear, kinds.clustering, kinds.labelfree):
            with pytest.raises(EvaluationError, match=r"made for a test: features of \w+ are not finite; use weights"):
                kind(subject)


def extracted(data: Path, cache: Path, map_parts: MapParts) -> tuple[Tensor, list[int]]:
    """Extract the features of val by a fixed network, with a cache of its own; return the sizes of the parts, too."""
    parts: list[int] = []

    def recorded(function: Callable[[Indices], Tensor], indices: Sequence[Indices]) -> Iterable[Tensor]:
        parts.extend(map(len, indices))
        return map_parts(function, indices)

    with pytest.MonkeyPatch.context() as patch, opened(build_subject(weights(seed=5), open_shards(data))) as subject:
        patch.setenv(CACHE_VARIABLE, str(cache))
        found = features_of(subject.networks, subject.dataset, "val", SIZE, "square", map_parts=recorded)
    return found.features, parts


@pytest.mark.slow
def test_features_are_extracted_elsewhere_by_what_can_be_sent_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(function: Callable[[Indices], Tensor], indices: Sequence[Indices]) -> Iterable[Tensor]:
        return (pickle.loads(pickle.dumps(function))(part) for part in indices)

    here, _ = extracted(data, tmp_path / "here", map)
    monkeypatch.setattr(features_module, "PART", 32)
    remote, parts = extracted(data, tmp_path / "elsewhere", elsewhere)
    assert parts == [32, 8] and torch.equal(here, remote)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_extracts_the_same_features(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adios_ray.backend.extraction import map_on_cluster

    here, _ = extracted(data, tmp_path / "here", map)
    monkeypatch.setattr(features_module, "PART", 20)
    remote, parts = extracted(data, tmp_path / "remote", map_on_cluster)
    assert parts == [20, 20]
    torch.testing.assert_close(here, remote, rtol=1e-5, atol=1e-5)

    def fail(part: Any, error: Exception) -> Tensor:
        raise error

    with pytest.raises(EvaluationError, match="^one line$"):
        list(map_on_cluster(partial(fail, error=EvaluationError("one line")), [np.arange(2)]))
    with pytest.raises(RunError, match=r"^the cluster could not extract features \(ValueError: first\); the features"):
        list(map_on_cluster(partial(fail, error=ValueError("first\nsecond")), [np.arange(2)]))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_extraction_says_what_it_waits_for_and_leaves_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    from adios_ray.backend import extraction

    other, said = placement_group([{"GPU": 1}]), list[str]()
    assert other.wait(TIMEOUT_S)

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            remove_placement_group(other)

    def work(part: Indices) -> Tensor:
        if part[0]:
            (tmp_path / "begun").touch()
            time.sleep(10 * TIMEOUT_S)
        return torch.zeros(len(part))

    monkeypatch.setattr(extraction, "WAITING_S", 0.5)
    monkeypatch.setattr(extraction, "say", say)
    results = extraction.map_on_cluster(work, [np.arange(2), np.arange(1, 2)])
    assert len(next(results)) == 2
    assert said == [
        "waiting for resources: a task of the extraction needs 1 CPU and 1 GPU that nothing else uses",
        "resources are free: features are extracted",
    ]
    until((tmp_path / "begun").exists)

    def interrupted(task: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ray, "get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(results)
    until(lambda: ray.available_resources().get("GPU") == 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NodeDiedError("lost\nThe node died."), "The node died."),
        (OutOfMemoryError("Task was killed due to the node running low on memory.\n..."), "a node was low on memory"),
    ],
)
def test_a_lost_extraction_ends_in_one_line(error: RayError, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from adios_ray.backend import extraction

    def lost(task: object) -> NoReturn:
        raise error

    monkeypatch.setattr("ray.get", lost)
    with pytest.raises(RunError) as raised:
        extraction._result("task")
    assert f"({reason})" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_evaluation_on_a_cluster_prints_what_one_process_does(
    checkpoint: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from adios_ray.backend import extraction

    images: list[int] = []
    map_on_cluster = extraction.map_on_cluster

    def recorded(function: Callable[[Indices], Tensor], parts: Sequence[Indices]) -> Iterable[Tensor]:
        images.append(sum(map(len, parts)))
        return map_on_cluster(function, parts)

    monkeypatch.setattr(extraction, "map_on_cluster", recorded)
    scores = []
    for option in ([], ["--ray"]):
        assert not images
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / f"cache{option}"))
        assert main(["evaluate", "clustering", "--checkpoint", checkpoint, "--data-dir", str(data), *option]) == 0
        scores.append(json.loads(capsys.readouterr().out)["scores"])
    assert images == [COUNTS["test"]]
    assert scores[1]["nmi"]["value"] == pytest.approx(scores[0]["nmi"]["value"], abs=0.01)


@pytest.mark.slow
def test_statistics_of_unmasked_images_are_used_where_the_checkpoint_says_so(data: Path, tmp_path: Path) -> None:
    plain, _, _ = evaluated(data, kinds.clustering)
    result, subject, splits = evaluated(data, kinds.clustering, evaluation={"fresh_statistics": True})
    assert result.scores != plain.scores and result.weights_sha256 == plain.weights_sha256
    assert {**plain.configuration, "fresh_statistics": True} == result.configuration != plain.configuration
    backbone, train = subject.networks.backbone, subject.dataset.split("train")
    with fresh_statistics(backbone, train, SIZE):
        expected = extract_features(backbone, train, np.arange(len(train)), SIZE)
    torch.testing.assert_close(splits["train"][0], expected, rtol=1e-5, atol=1e-5)
    alone = changed(data, tmp_path, lambda manifest: {"splits": {"test": manifest.splits["test"]}})
    assert evaluated(alone, kinds.clustering)[0].scores == plain.scores
    with pytest.raises(EvaluationError, match=r"knn: .* has no train split \(it has test\); prepare it with one"):
        evaluated(alone, kinds.knn)
    with pytest.raises(EvaluationError, match="evaluation.fresh_statistics needs training images"):
        evaluated(alone, kinds.clustering, evaluation={"fresh_statistics": True})


@pytest.mark.slow
def test_a_transfer_has_the_statistics_of_views_of_its_own_size(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, place, size = weights(evaluation={"fresh_statistics": True}), tmp_path / "w.safetensors", 2 * SIZE
    save_weights(place, own)
    found: list[dict[str, Tensor]] = []

    def trained(subject: Subject, *_: object) -> SimpleNamespace:
        found.append({name: tensor.clone() for name, tensor in subject.networks.backbone.state_dict().items()})
        return SimpleNamespace(accuracy=lambda *_: Accuracy(0.5, 1.0, 0.1, 0.0))

    monkeypatch.setattr(transfer, "train_classifier", trained)
    options: dict[str, Any] = {"mode": "linear", "rates": (0.1,), "image_size": size}
    adios_ray.evaluate(place, data, "transfer", **options)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))  # the first result is not found there
    tables_evaluate("transfer", place, {"objects": str(data)}, options, seed=0)
    backbone = build_networks(own).backbone
    refresh_statistics(backbone, open_shards(data).split("train"), size)
    assert len(found) == 2
    for statistics in found:
        torch.testing.assert_close(statistics, dict(backbone.state_dict()))


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Write a weights file."""
    save_weights(tmp_path / "w.safetensors", weights())
    return str(tmp_path / "w.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "score"),
    [
        ("knn", "knn_accuracy"),
        ("linear --epochs 2", "top1"),
        ("linear --solver lbfgs", "top1"),
        ("linear --augment --epochs 1 --rates 0.1 1", "top5"),
        ("clustering", "nmi"),
        ("segmentation", "foreground_ari"),
        ("labelfree", "lidar"),
        ("transfer --epochs 1 --rates 0.1 --mode scratch", "val_top1"),
    ],
)
def test_each_kind_prints_one_object(
    kind: str, score: str, checkpoint: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "result.json"
    inputs = ["--checkpoint", checkpoint, "--data-dir", str(data), "--output", str(output)]
    assert main(["evaluate", *kind.split(), *inputs]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["kind"] == kind.split()[0] and printed["scores"][score]["value"] is not None
    assert json.loads(output.read_text()) == printed and len(list(output.parent.iterdir())) == 1
    assert score in captured.err and printed["images_per_split"]["test"] == 140
    recorded = [printed["configuration"][name] for name in ("origin", "data", "version", "torch")]
    assert recorded == ["made for a test", str(data), adios_ray.__version__, torch.__version__]
    assert len(printed["data_sha256"]) == 64 and len(printed["weights_sha256"]) == 1 and printed["seconds"] > 0


KEPT = "the features of finished splits are kept: run the same command again to resume"


@pytest.mark.parametrize(
    ("kind", "function", "line"),
    [
        ("transfer", "transfer.train_classifier", f"interrupted; {AGAIN}"),
        ("linear", "kinds.evaluate_linear", f"interrupted; {KEPT}"),
    ],
)
def test_an_interruption_says_how_to_resume_where_there_is_something_to(
    kind: str,
    function: str,
    line: str,
    checkpoint: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"adios_ray.evaluation.{function}", interrupted)
    assert main(["evaluate", kind, "--checkpoint", checkpoint, "--data-dir", str(data)]) == 130
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_collapsed_encoder_is_evaluated_by_what_it_has(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapsed = weights()
    for name, values in collapsed.tensors.items():
        if name.startswith("backbone.") and values.is_floating_point() and "running" not in name:
            values.zero_()  # every feature is 0
    with opened(build_subject(collapsed, open_shards(data))) as subject:
        result, clusters = kinds.labelfree(subject), kinds.clustering(subject)
        nearly = torch.ones(COUNTS["test"], 128)
        nearly[:2] = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr(Subject, "features", lambda *_: Features(nearly, torch.zeros(len(nearly))))
        of_two = kinds.labelfree(subject).scores
    assert result.configuration["left_out"].keys() == {"alpha_req"} and "alpha_req" not in result.scores
    assert result.scores["rankme"].value == pytest.approx(1, abs=1e-3) and result.scores["feature_std"].value == 0
    assert clusters.scores["ari"].value == result.scores["alignment"].value == 0
    # Without either of the two images, there is no second eigenvalue.
    assert of_two["alpha_req"].value == pytest.approx(label_free.alpha_req(nearly))
    assert of_two["alpha_req"].standard_error is None and of_two["rankme"].standard_error is not None


@pytest.mark.slow
def test_robustness_compares_two_checkpoints_on_data_sets_of_variations(
    checkpoint: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_weights(tmp_path / "second.safetensors", weights(seed=1))
    options = ["--variation", f"same={data}", f"again={data}", "--baseline", str(tmp_path / "second.safetensors")]
    inputs = ["--checkpoint", checkpoint, "--data-dir", str(data), "--epochs", "2"]
    assert main(["evaluate", "robustness", *inputs, *options]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["same"] == scores["again"] == scores["original"] and scores["same_gain"] == scores["original_gain"]
    monkeypatch.setattr(Robustness, "evaluate", lambda *_: pytest.fail("evaluated"))  # it would take hours
    second = ["--checkpoint", str(tmp_path / "second.safetensors"), checkpoint, *inputs[2:]]
    assert main(["evaluate", "robustness", *second, *options[:-1], checkpoint]) == 2
    assert "--baseline has the weights of --checkpoint: every gain would be 0" in capsys.readouterr().err


@pytest.mark.slow
def test_all_says_what_is_left_out(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "w.safetensors", weights(24))
    assert main(["evaluate", "all", "--checkpoint", str(tmp_path / "w.safetensors"), "--data-dir", str(scenes)]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert {"knn.knn_macro_f1", "multilabel.f1_macro", "segmentation.ari"} <= set(printed["scores"])
    left_out = printed["configuration"]["left_out"]
    assert (
        set(left_out) == {"linear", "clustering", "labelfree", "robustness"}
        and "several labels" in left_out["clustering"]
    )
    assert "clustering is left out: images of" in captured.err


@pytest.mark.slow
def test_all_keeps_the_details_of_its_parts(
    checkpoint: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adios_ray.commands.evaluation_kinds.PARTS", {"knn": Knn()})
    details = []
    for kind in ("knn", "all"):
        assert main(["evaluate", kind, "--checkpoint", checkpoint, "--data-dir", str(data)]) == 0
        details.append(json.loads(capsys.readouterr().out)["details"])
    assert details[0] and details[1] == [{"evaluation": "knn", **row} for row in details[0]]


@pytest.mark.slow
def test_a_result_is_printed_before_storage_can_fail(
    checkpoint: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device", "r.json")

    monkeypatch.setattr("adios_ray.evaluation.result.write_json", full)
    inputs = ["--checkpoint", checkpoint, "--data-dir", str(data), "--output", str(tmp_path / "r.json")]
    assert main(["evaluate", "clustering", *inputs]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["scores"]["nmi"] and "error: r.json: No space left on device" in captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "second", "message"),
    [
        ("clustering", {"evaluation": {"fresh_statistics": True}}, "evaluation.fresh_statistics needs training images"),
        ("clustering --view resize-256", {"image_size": 256}, "resize-256 needs views below 256 pixels"),
        ("transfer --image-size 40", {"backbone": {"name": "vit_tiny_patch16_224"}}, "has patches of 16 pixels"),
        (
            "robustness --view resize-256 --baseline {}",
            {"image_size": 64},
            "and of 32 for the baseline, show different",
        ),
    ],
)
def test_all_checkpoints_are_checked_before_the_first_is_evaluated(
    arguments: str,
    second: dict[str, Any],
    message: str,
    checkpoint: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = arguments.split()
    monkeypatch.setattr(KINDS[command[0]], "evaluate", lambda *_: pytest.fail("evaluated"))
    if "fresh_statistics" in message:
        data = changed(data, tmp_path, lambda manifest: {"splits": {"test": manifest.splits["test"]}})
    if "resize-256" in command:
        data = make_objects(tmp_path / "large", size=256)
    files = [checkpoint]
    for seed, changes in enumerate((second, {}), 1):
        files.append(str(tmp_path / f"{seed}.safetensors"))
        save_weights(Path(files[-1]), weights(seed=seed, masking={"scheme": "none"}, **changes))
    options = [option.format(files[2]) for option in command]
    assert main(["evaluate", *options, "--data-dir", str(data), "--checkpoint", *files[:2]]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_several_checkpoints_have_a_mean(
    checkpoint: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_weights(tmp_path / "second.safetensors", weights(seed=1))
    own = []
    for files in (
        [checkpoint],
        [str(tmp_path / "second.safetensors")],
        [checkpoint, str(tmp_path / "second.safetensors")],
    ):
        assert main(["evaluate", "clustering", "--data-dir", str(data), "--checkpoint", *files]) == 0
        own.append(json.loads(capsys.readouterr().out))
    values = [printed["scores"]["nmi"]["value"] for printed in own]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2) and values[0] != values[1]
    assert own[2]["scores"]["nmi"]["seeds_standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert own[2]["weights_sha256"] == own[0]["weights_sha256"] + own[1]["weights_sha256"]
    large = weights(seed=2)
    tensors = {name: tensor * (1e30 if tensor.is_floating_point() else 1) for name, tensor in large.tensors.items()}
    save_weights(tmp_path / "large.safetensors", replace(large, tensors=tensors))
    files = [checkpoint, str(tmp_path / "large.safetensors")]
    assert main(["evaluate", "clustering", "--data-dir", str(data), "--checkpoint", *files]) == 2
    printed = capsys.readouterr()
    assert "features of test are not finite" in printed.err and not printed.out
    assert f"{checkpoint}:" in printed.err and f"{values[0]:.3f}" in printed.err
    unmasked = str(tmp_path / "unmasked.safetensors")
    save_weights(Path(unmasked), weights(masking={"scheme": "none"}))
    monkeypatch.setattr(kinds, "segment", lambda *_: pytest.fail("segmented"))
    for arguments, message in (
        (["clustering", "--checkpoint", checkpoint, checkpoint], "the same weights twice"),
        (["transfer", "--mode", "scratch", "--checkpoint", *files], "--mode scratch uses no weights"),
        (["segmentation", "--checkpoint", checkpoint, unmasked], "has no occlusion model, as masking.scheme was none"),
    ):
        assert main(["evaluate", *arguments, "--data-dir", str(data)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("multilabel", "one class each; it needs several labels"),
        ("clustering --seed -1", "--seed -1 must be greater than or equal to 0"),
        ("clustering --seed 4294967296", "--seed 4294967296 must be less than 4294967296"),
        ("linear --solver lbfgs --rates 0.1", "--solver lbfgs does not use --rates: leave out, or take --solver sgd"),
        (
            "linear --solver lbfgs --epochs 100 --batch-size 64 --augment",
            "use --epochs, --batch-size, --augment: leave",
        ),
        ("transfer --mode scratch --averaged", "--mode scratch uses no weights: leave out --averaged"),
        ("segmentation --averaged", "--averaged is for an encoder, and segmentation is of masks: leave it out"),
        ("segmentation --ray", "--ray extracts features, of which segmentation uses none: leave it out"),
        ("transfer --ray", "--ray extracts features, of which transfer uses none: leave it out"),
        ("knn --neighbors 5 0", "--neighbors 0 must be greater than or equal to 1"),
        ("knn --temperatures inf", "--temperatures inf must be a finite number"),
        ("linear --rates 0", "--rates 0.0 must be greater than 0"),
        ("linear --rates nan", "--rates nan must be a finite number"),
        ("transfer --epochs 0", "--epochs 0 must be greater than or equal to 1"),
        ("clustering --output .", "--output . is a directory"),
        ("clustering --output w.safetensors", "--output w.safetensors would change "),
        ("multilabel --output new/result.json", "one class each; it needs several labels"),
        ("robustness", "has none of the splits only_bg_b"),
        ("robustness --variation no_fg", "--variation no_fg must be NAME=DATA_DIR"),
        ("robustness --variation original=data", "original is there already; give another name"),
        ("robustness --variation a=b a=c", "a is there already; give another name"),
        ("robustness --variation a_gain=b", "names that end in _gain are those of gains"),
        ("transfer --mode linear --cifar-stem", "mode linear keeps the stem"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str,
    message: str,
    checkpoint: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments.split(), "--checkpoint", checkpoint, "--data-dir", str(data)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1
    assert not captured.out and [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(("command", "function"), [(Linear, kinds.linear), (Robustness, robustness)])
def test_the_command_has_the_defaults_of_its_function(command: type, function: Callable[..., Any]) -> None:
    # Stated twice, since the command's own module imports no torch.
    options = {name: value for name, value in vars(command()).items() if value not in (None, ())}
    parameters = inspect.signature(function).parameters
    assert options == {name: parameters[name].default for name in options}


def test_the_command_has_the_defaults_of_a_transfer() -> None:
    assert asdict(Transfer()) == TransferConfig().model_dump()
