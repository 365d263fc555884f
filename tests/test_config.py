"""Strict configuration: what is refused, and the error messages."""

import math
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from adios_ray.backend.loop_config import threads_of
from adios_ray.config import (
    EvaluationConfig,
    MaskingConfig,
    TrialConfig,
    check_batch,
    check_image_size,
    replaced,
    value_at,
)
from adios_ray.errors import ConfigError
from adios_ray.experiment.checks import check_data, check_job_paths, check_storage
from adios_ray.experiment.command import main, read_arguments
from adios_ray.experiment.config import SPACES, ExperimentConfig
from adios_ray.experiment.presets import preset_config
from adios_ray.experiment.resources import Node, bundles, count_capacity, worker_resources
from adios_ray.search.parameters import Choice, Continuous, Integer
from adios_ray.search.spaces import SearchSpace, load_space, save_space
from adios_ray.store import Location
from adios_ray.tracking.records import write_config
from adios_ray.validation import parse


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"masking": {"slotz": 4}}, "masking.slotz"),
        ({"masking": {"entropy_weight": -0.1}}, "masking.entropy_weight"),
        ({"objective": {"name": "simsiam", "masked_views": "both", "terms": ["masked-masked"]}}, "masked-unmasked"),
        ({"objective": {"name": "simsiam", "terms": ["masked-unmasked"]}}, "terms need masked_views both, not one"),
        (
            {"objective": {"name": "byol", "masked_views": "both", "terms": ["masked-unmasked"]}},
            "byol does not use terms",
        ),
        ({"objective": {"predictor_dim": 64}}, "simclr does not use predictor_dim"),
        ({"masking": {"sparsity_weight": -1.0}}, "masking.sparsity_weight"),
        ({"masking": {"slots": 1}}, "masking.slots"),
        ({"masking": {"width": 12}}, "masking.width"),
        ({"optimizer": {"encoder_lr": 0}}, "optimizer.encoder_lr"),
        ({"objective": {"name": "simclrr"}}, "objective.name"),
        ({"image_size": 72}, r"image size 72: .* halves it 4 times, so it must be a multiple of 16 \(32, 48, "),
        ({"image_size": 100, "masking": {"levels": 4}}, r"3 times, .* a multiple of 8 \(masking\.levels is 4\)"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_what_cannot_work_is_refused_by_its_path(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(TrialConfig, values)


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128, 160, 192, 224, 256])
def test_usual_image_sizes_are_allowed(size: int) -> None:
    check_image_size(size)


@pytest.mark.parametrize("masking", [{"levels": 4}, {"scheme": "none"}, {"scheme": "mae"}])
def test_image_sizes_are_those_of_the_unet_that_there_is(masking: dict[str, Any]) -> None:
    values = {"image_size": 144, "masking": masking}
    assert parse(TrialConfig, values).image_size == 144
    if "scheme" in masking:
        assert parse(TrialConfig, values | {"image_size": 98}).image_size == 98


SPACE_NAMES = ("pbt_in100", "pbt_demo")


def test_a_changed_copy_is_checked() -> None:
    config = TrialConfig()
    changed = replaced(config, {"masking.slots": 7, "seed": 3})
    assert (changed.masking.slots, changed.seed, config.masking.slots) == (7, 3, 4)
    assert value_at(changed, "masking.slots") == 7
    with pytest.raises(ConfigError, match="masking.sparsity_weight"):
        replaced(config, {"masking.sparsity_weight": -0.1})
    changes = {"masking": {"slots": 6}, "masking.width": 16}  # a section, and a value in it
    assert (replaced(config, changes).masking.slots, replaced(config, changes).masking.width) == (6, 16)
    assert changes["masking"] == {"slots": 6}
    with pytest.raises(ConfigError, match="masking.nothing"):
        value_at(config, "masking.nothing")


def test_the_space_of_a_single_training_searches_nothing(tmp_path: Path) -> None:
    space = load_space(SPACES / "single.yaml")
    space.bind(TrialConfig())
    assert (space.trials(8), space.scheduler, space.parameters) == (1, "none", {})
    save_space(space, tmp_path / "space.yaml")
    assert load_space(tmp_path / "space.yaml") == space


def test_one_trial_trains_but_does_not_evolve() -> None:
    config = ExperimentConfig(population=1)
    for name in ("single", "asha_demo"):
        load_space(SPACES / f"{name}.yaml").bind(config.trial(), population=config.population)
    with pytest.raises(ConfigError, match="--population 1 leaves pbt nothing to compare: .* --space single"):
        load_space(SPACES / "pbt_demo.yaml").bind(config.trial(), population=config.population)


SEARCHES = sorted(set(SPACES.rglob("*.yaml")) - {SPACES / "single.yaml"})


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.name)
def test_every_search_space_binds_round_trips_and_stays_inside_its_bounds(path: Path, tmp_path: Path) -> None:
    space = load_space(path)
    space.bind(TrialConfig())
    save_space(space, tmp_path / "space.yaml")
    assert load_space(tmp_path / "space.yaml") == space
    stored = yaml.safe_load((tmp_path / "space.yaml").read_text())
    assert ("grace_epochs" in stored, "interval_epochs" in stored) == (not space.evolving, space.evolving)
    assert min(space.parameters["masking.sparsity_weight"].extremes) > 0
    random, values = Random(0), space.sample(Random(1))
    for _ in range(300):
        values = space.explore(values, random)
        for name, parameter in space.parameters.items():
            if isinstance(parameter, Choice):
                assert values[name] in parameter.values
            else:
                assert parameter.low <= values[name] <= parameter.high
                assert isinstance(values[name], int) == isinstance(parameter, Integer)


def test_perturbation_moves_by_the_factor_or_the_step() -> None:
    rate = Continuous(low=0.01, high=1, scale="log", factor=1.25)
    moved = {round(rate.perturb(0.1, Random(seed)), 6) for seed in range(20)}
    assert moved == {0.08, 0.125}
    off = Continuous(low=0, high=1, scale="linear")
    assert len({off.perturb(0.0, Random(seed)) for seed in range(20)}) == 20  # a factor would keep it at 0
    slots = Integer(low=2, high=5, scale="integer", step=1)
    assert {slots.perturb(4, Random(seed)) for seed in range(20)} == {3, 5}
    assert {slots.perturb(5, Random(seed)) for seed in range(20)} == {4, 5}
    thirds = Integer(low=2, high=8, scale="integer", step=3)
    for value, near in ((6, {5, 8}), (3, {2, 5}), (5, {2, 8}), (1, {2}), (11, {8})):  # those that can be drawn
        assert {thirds.perturb(value, Random(seed)) for seed in range(20)} == near


def test_log_scale_draws_uniformly_in_the_logarithm() -> None:
    rate = Continuous(low=0.01, high=1, scale="log")
    random = Random(0)
    logs = [math.log10(rate.sample(random)) for _ in range(4000)]
    assert sum(logs) / len(logs) == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parameters": {"masking.slotz": {"low": 2, "high": 3, "scale": "integer"}}}, "masking.slotz"),
        ({"parameters": {"masking.slots": {"low": 1, "high": 3, "scale": "integer"}}}, "masking.slots"),
        (
            {"parameters": {"masking.slots": {"low": 2, "high": 5, "scale": "integer", "step": 2}}},
            "high 5 is not a whole number of steps of 2 above low 2",
        ),
        ({"parameters": {"optimizer.encoder_lr": {"low": 0.1, "high": math.inf, "scale": "linear"}}}, "high = inf"),
        ({"parameters": {"masking.sparsity_weight": {"low": 0, "high": 1, "scale": "linear"}}}, "sparsity_weight"),
        ({"parameters": {"optimizer.encoder_lr": {"low": 0, "high": 1, "scale": "log"}}}, "encoder_lr"),
        ({"parameters": {"masking.width": {"values": [8, 16]}}}, "masking.width cannot change while a trial trains"),
        ({"parameters": {"masking.slots": {"values": [4, 6, 4]}}}, "contain a duplicate"),
        ({"parameters": {"masking.slots": {"values": [4, 65]}}}, "masking.slots"),
        ({"search": "hyperopt"}, "search hyperopt cannot be combined with pbt, which itself changes the values"),
        ({"search": "grid"}, "search grid cannot be combined with pbt"),
        ({"grace_epochs": 3}, "grace_epochs is for asha and median, not for pbt"),
        ({"scheduler": "asha", "synchronous": True, "interval_epochs": 2}, "interval_epochs is for pbt and pb2"),
        ({"scheduler": "pbt9"}, "scheduler"),
        ({"interval": 3}, "interval"),
    ],
)
def test_a_space_that_cannot_work_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    values = yaml.safe_load((SPACES / "pbt_demo.yaml").read_text())
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({**values, **change}))
    with pytest.raises(ConfigError, match=named):
        load_space(file).bind(TrialConfig(), str(file))


def test_flags_replace_the_scheduler_and_the_search_of_a_file() -> None:
    file = SPACES / "pbt_demo.yaml"
    space = load_space(file, scheduler="asha", search="hyperopt")
    assert (space.scheduler, space.search, space.parameters) == ("asha", "hyperopt", load_space(file).parameters)
    with pytest.raises(
        ConfigError, match=r"search grid needs values: \[...\] instead of bounds for masking.sparsity_weight"
    ):
        load_space(file, scheduler="none", search="grid")
    with pytest.raises(
        ConfigError, match="pb2 needs numbers with low and high instead of values for masking.sparsity_weight"
    ):
        load_space(SPACES / "asha_demo.yaml", scheduler="pb2", search="random")
    with pytest.raises(ConfigError, match="search hyperopt cannot be combined with pbt"):
        load_space(SPACES / "asha_demo.yaml", scheduler="pbt")


def test_a_choice_moves_to_its_neighbors() -> None:
    width = Choice(values=[8, 16, 32])
    assert {width.perturb(16, Random(seed)) for seed in range(20)} == {8, 32}
    assert {width.perturb(8, Random(seed)) for seed in range(20)} == {8, 16}
    assert {width.perturb(64, Random(seed)) for seed in range(20)} == {8, 16, 32}


def test_a_value_may_have_its_own_resample_probability() -> None:
    always = {"low": 0.1, "high": 1.0, "scale": "linear", "resample_probability": 1.0}
    never = {"low": 0.01, "high": 1.0, "scale": "log", "resample_probability": 0.0, "factor": 2.0}
    values = {"scheduler": "pbt", "parameters": {"masking.sparsity_weight": always, "optimizer.encoder_lr": never}}
    space = parse(SearchSpace, values)
    explored = [
        space.explore({"masking.sparsity_weight": 0.5, "optimizer.encoder_lr": 0.1}, Random(i)) for i in range(30)
    ]
    assert len({round(each["masking.sparsity_weight"], 6) for each in explored}) == 30
    assert {round(each["optimizer.encoder_lr"], 6) for each in explored} == {0.05, 0.2}


def test_a_missing_space_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing.yaml"):
        load_space(tmp_path / "nothing.yaml")


def test_the_command_line_reaches_every_value_over_its_preset() -> None:
    arguments = "--preset demo --epochs 3 --masking.slots 5 --population 6 --optimizer.encoder-lr 0.2 --seed 9".split()
    config = read_arguments("", arguments, *SPACE_NAMES)
    assert (config.epochs, config.masking.slots, config.population, config.seed) == (3, 5, 6, 9)
    assert config.optimizer.encoder_lr == 0.2
    assert config.backbone.name == "resnet_small"
    assert config.masking.width == preset_config("demo").masking.width


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("--masking.sparsity-weight", "-1", "--masking.sparsity-weight -1"),
        ("--masking.slots", "1", "--masking.slots 1"),
        ("--image-size", "72", "image size 72"),
        ("--masking.slotz", "4", "--masking.slots"),
    ],
)
def test_wrong_flags_are_refused_by_name(flag: str, value: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("", *SPACE_NAMES, ["--preset", "demo", flag, value]) == 2
    assert named in capsys.readouterr().err


def test_resume_begins_with_the_configuration_of_the_run(tmp_path: Path) -> None:
    own = preset_config("demo").model_copy(update={"seed": 5})
    write_config(tmp_path, own.model_dump(mode="json"))
    resume = ["--resume", str(tmp_path)]
    config = read_arguments("", [*resume, "--epochs", "300", "--wandb", "offline"], *SPACE_NAMES)
    assert config == own.model_copy(update={"resume": str(tmp_path), "epochs": 300, "wandb": "offline"})
    with pytest.raises(ConfigError, match="leave out --name and --storage"):
        read_arguments("", [*resume, "--name", "other"], *SPACE_NAMES)
    with pytest.raises(ConfigError, match="nowhere is not a run directory"):
        read_arguments("", ["--resume", "nowhere"], *SPACE_NAMES)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "ä"])
def test_a_name_that_is_no_safe_name_of_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name = "):
        parse(ExperimentConfig, {"name": name})


@pytest.mark.parametrize(
    ("storage", "named"),
    [
        ("gs://bucket/runs", "gs://bucket/runs cannot be reached: Please install gcsfs"),
        ("nosuch://bucket/runs", "nosuch://bucket/runs cannot be reached: Protocol not known: nosuch"),
        ("memory://runs", "storage memory://runs is the memory of one process"),
        ("Memory://runs", "storage memory://runs is the memory of one process"),
        ("GS://bucket/runs", "gs://bucket/runs cannot be reached: Please install gcsfs"),
        ("S3:/bucket/runs", "S3:/bucket/runs is neither a path nor a URI: write s3://bucket/runs, or ./S3:"),
        ("S3:bucket/runs", "S3:bucket/runs is neither a path nor a URI: write s3://bucket/runs, or ./S3:bucket/runs"),
        ("S3://", "S3:// names no bucket: write s3://BUCKET/FOLDER"),
        ("File:runs", "File:runs names no absolute path of this machine"),
        ("s3:/bucket/runs", "s3:/bucket/runs is neither a path nor a URI: write s3://bucket/runs, or ./s3:"),
        ("s3:bucket/runs", "s3:bucket/runs is neither a path nor a URI: write s3://bucket/runs, or ./s3:bucket/runs"),
        ("file://host/runs", "file://host/runs names no absolute path of this machine: write file:///PATH"),
        ("file:runs", "file:runs names no absolute path of this machine"),
    ],
)
def test_storage_that_cannot_work_is_refused_by_name(storage: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=named):
        check_storage(storage)


@pytest.mark.parametrize("prefix", ["file:", "file://", "file://localhost", "File:"])
def test_storage_may_be_a_file_uri(prefix: str, tmp_path: Path) -> None:
    assert check_storage(f"{prefix}{tmp_path}/runs") == f"{tmp_path}/runs" and (tmp_path / "runs").is_dir()


def test_a_colon_in_the_name_of_a_folder_makes_no_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("./s3:bucket", "./S3:bucket", "run:2", "localhost"):
        assert check_storage(name) == str(tmp_path / name)


def test_relative_paths_are_refused_in_a_job(tmp_path: Path) -> None:
    places: dict[str, Location | None] = {"--storage": tmp_path, "--data-dir": "data/objects", "--resume": None}
    check_job_paths(places, None)
    with pytest.raises(ConfigError, match="--data-dir data/objects is relative, and job 7 works in a copy"):
        check_job_paths(places, "7")
    check_job_paths({**places, "--data-dir": "s3://bucket/objects"}, "7")


def test_without_data_both_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="--preset demo.*--data-dir"):
        check_data(ExperimentConfig())


def test_a_storage_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        check_storage(tmp_path / "file")
    assert Path(check_storage(tmp_path / "a" / "b")).is_dir()


def test_workers_share_the_cpus_and_take_a_gpu_each(capsys: pytest.CaptureFixture[str]) -> None:
    config = ExperimentConfig(population=4)
    assert worker_resources(config, [Node(2, 0)]) == (0.5, 0)
    assert worker_resources(config, [Node(64, 0)]) == (16, 0)
    assert [threads_of(cpus) for cpus in (0.5, 1, 2.5, 16)] == [1, 1, 2, 16]
    assert worker_resources(config, [Node(63, 0), Node(1, 0)]) == (15, 0)  # no trial fits into the small node
    assert worker_resources(config, [Node(16, 4)]) == (4, 1)
    assert worker_resources(config, [Node(16, 1)]) == (16, 1)  # the four take turns
    head, node = Node(64, 0), Node(4, 8)
    crowd = ExperimentConfig(population=16)
    assert worker_resources(crowd, [head, node, node]) == (0.5, 1)
    assert count_capacity(crowd, worker_resources(crowd, [head, node, node]), [head, node, node]) == 16
    growing = ExperimentConfig(gpus_per_worker=1, population=3, workers_per_trial=2)
    assert worker_resources(growing, [Node(4, 0)], grows=True) == (1, 1)
    assert "each is given 1 CPUs and 1 GPUs, whatever nodes the autoscaler adds" in capsys.readouterr().out
    chosen = growing.model_copy(update={"cpus_per_worker": 8})
    assert worker_resources(chosen, [Node(4, 0)], grows=True) == (8, 1)
    assert worker_resources(growing, [Node(16, 4)], grows=True) == (4, 1) and not capsys.readouterr().out
    assert worker_resources(config, [Node(8, 0)], grows=True) == (2, 0)
    assert "all workers of the run use CPUs, whatever nodes the autoscaler adds" in capsys.readouterr().out
    cpus = ExperimentConfig(population=4, gpus_per_worker=0)
    assert worker_resources(cpus, [Node(8, 0)], grows=True) == (2, 0) and not capsys.readouterr().out
    with pytest.raises(ConfigError, match="the cluster can never give"):
        worker_resources(growing, [Node(4, 0)])
    assert bundles(growing, worker_resources(growing, [], grows=True)) == [{"CPU": 1, "GPU": 1}] * 2
    assert worker_resources(ExperimentConfig(gpus_per_worker=0.25), [Node(16, 1)]).gpus == 0.25


@pytest.mark.parametrize(
    ("settings", "cluster", "capacity"),
    [
        ({}, [Node(2, 0)], 4),
        ({"cpus_per_worker": 1}, [Node(2, 0)], 2),
        ({"cpus_per_worker": 1}, [Node(2, 0), Node(3, 0)], 5),
        ({"gpus_per_worker": 0.6}, [Node(8, 1), Node(8, 1)], 2),  # 0.4 of each GPU is left over
        ({"gpus_per_worker": 0.3}, [Node(8, 1), Node(8, 0)], 3),
        ({"gpus_per_worker": 0.6, "cpus_per_worker": 1}, [Node(16, 4)], 4),  # no worker takes parts of two
        ({"workers_per_trial": 4, "gpus_per_worker": 1}, [Node(8, 2), Node(8, 4)], 1),
    ],
)
def test_trials_that_fit_at_once(settings: dict[str, Any], cluster: list[Node], capacity: int) -> None:
    config = ExperimentConfig(population=4, **settings)
    assert count_capacity(config, worker_resources(config, cluster), cluster) == capacity


@pytest.mark.parametrize(
    ("settings", "cluster", "message"),
    [
        ({"gpus_per_worker": 1}, [Node(2, 0)], "need 1 CPUs and 1 GPUs each, which the cluster can never give"),
        ({"gpus_per_worker": 2}, [Node(8, 1), Node(8, 1)], "its nodes have 8 CPUs and 1 GPUs, 8 CPUs and 1 GPUs"),
        ({"cpus_per_worker": 3}, [Node(2, 0)], "lower --workers-per-trial, --cpus-per-worker"),
        ({"workers_per_trial": 3, "gpus_per_worker": 1}, [Node(8, 2)], "a trial's 3 workers need"),
    ],
)
def test_a_trial_that_can_never_be_placed_is_refused(
    settings: dict[str, Any], cluster: list[Node], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        worker_resources(ExperimentConfig(population=4, **settings), cluster)


SEARCHED = {"parameters": {"masking.sparsity_weight": {"low": 0.1, "high": 1.0, "scale": "log"}}}


@pytest.mark.parametrize("reports", [1, 2, 3, 6])
def test_decisions_at_reports_are_accepted(reports: int) -> None:
    space = parse(SearchSpace, {"scheduler": "pb2", "interval_epochs": 6, **SEARCHED})
    space.bind(TrialConfig(evaluation=EvaluationConfig(interval_epochs=reports)))


@pytest.mark.parametrize(("decisions", "reports"), [(2, 5), (3, 2), (1, 3)])
@pytest.mark.parametrize(
    "options", [{"scheduler": "pbt"}, {"scheduler": "pbt", "synchronous": False}, {"scheduler": "pb2"}]
)
def test_decisions_between_reports_are_refused(decisions: int, reports: int, options: dict[str, Any]) -> None:
    space = parse(SearchSpace, {**options, "interval_epochs": decisions, **SEARCHED})
    config = TrialConfig(evaluation=EvaluationConfig(interval_epochs=reports))
    with pytest.raises(
        ConfigError, match=f"every {reports} epochs .*cannot be {decisions} epochs .*multiple of {reports}"
    ):
        space.bind(config)
    parse(SearchSpace, {"scheduler": "asha", "grace_epochs": decisions, **SEARCHED}).bind(config)


@pytest.mark.parametrize(
    ("settings", "workers", "message"),
    [
        ({"batch_size": 2}, 2, "batch_size 2, workers_per_trial 2 and micro_batch_size None leave one image"),
        ({"batch_size": 10, "micro_batch_size": 2}, 2, "batch_size 10, workers_per_trial 2 and micro_batch_size 2 "),
        ({"batch_size": 200}, 1, "batch_size 200 is more than the 100 training images"),
        ({"batch_size": 10}, 4, "batch_size 10 cannot be shared evenly by workers_per_trial 4"),
    ],
)
def test_batches_that_workers_cannot_share_are_refused(settings: dict[str, Any], workers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_batch(TrialConfig(**settings), 100, workers, batch_norm=True)


def test_single_images_are_for_networks_without_batch_norm() -> None:
    check_batch(TrialConfig(batch_size=2), 100, workers=2, batch_norm=False)
    check_batch(TrialConfig(batch_size=2, sync_batch_norm=True), 100, workers=2, batch_norm=True)
    check_batch(TrialConfig(batch_size=12, micro_batch_size=4), 100, workers=2, batch_norm=True)  # three and three
    mixed = TrialConfig(batch_size=2, masking=MaskingConfig(fill="mix"))
    with pytest.raises(ConfigError, match="fill mix .* above 2"):
        check_batch(mixed, 100, workers=2, batch_norm=False)


@pytest.mark.parametrize(
    ("scheduler", "parameters", "settings", "message"),
    [
        ("pbt", {"masking.slots": {"low": 2, "high": 8, "scale": "linear"}}, {}, "masking.slots = .* whole number"),
        ("none", {"masking.width": {"low": 16, "high": 64, "scale": "integer"}}, {}, "masking.width = 17"),
        ("none", {"seed": {"values": [1, 2]}}, {}, "seed cannot be searched"),
        ("pbt", SEARCHED["parameters"], {"seed": 2**32 - 2}, "--seed 4294967294 is too large"),
        (
            "pb2",
            {"objective.momentum_start": {"low": 0.9, "high": 0.99, "scale": "linear"}},
            {"objective": {"name": "byol"}},
            "objective.momentum_start is not set, and pb2 changes the first trial's value",
        ),
    ],
)
def test_spaces_whose_values_cannot_be_trained_with_are_refused(
    scheduler: str, parameters: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    space = parse(SearchSpace, {"scheduler": scheduler, "parameters": parameters})
    with pytest.raises(ConfigError, match=message):
        space.bind(parse(TrialConfig, settings), population=4)


def test_values_that_do_not_fit_together_are_refused_before_a_run(objects_dir: Path) -> None:
    parameters = {"masking.scheme": {"values": ["adios", "none"]}, "masking.fill": {"values": ["zero", "noise"]}}
    space = parse(SearchSpace, {"scheduler": "none", "search": "grid", "parameters": parameters})
    values = {"data_dir": str(objects_dir), "batch_size": 8, "backbone": {"name": "resnet_small"}}
    config = parse(ExperimentConfig, values)
    space.bind(config.trial(), population=config.population)
    with pytest.raises(ConfigError, match="masking.scheme = none, masking.fill = noise of the search space"):
        check_data(config, space)


def test_a_section_in_place_of_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="epochs.a does not exist: epochs is a value, not a section"):
        replaced(TrialConfig(), {"epochs.a": 1})
