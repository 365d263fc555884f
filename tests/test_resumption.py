"""Runs under a name, with other settings, at another place, after their end; training itself is left out."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from s3 import s3_server
from small import make_objects, small_config

from adios_ray.checkpoints import META_FILE, STATE_FILE, STATE_FILES, Pointer
from adios_ray.data.claim import TRAINING, Claim, claimed
from adios_ray.errors import CheckpointError, ClaimError, ConfigError
from adios_ray.experiment import evolution, runner
from adios_ray.experiment.command import read_arguments
from adios_ray.experiment.config import ExperimentConfig, read_experiment
from adios_ray.experiment.resources import WorkerResources
from adios_ray.experiment.resumption import check_checkpoints, save_changes
from adios_ray.experiment.schedule import load_schedule, schedule_of
from adios_ray.local_cache import CACHE_VARIABLE
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, checksum, load_weights, save_weights
from adios_ray.run_directory import INITIAL_WEIGHTS, RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.spaces import SearchSpace, load_space
from adios_ray.search.state import Member, PopulationState
from adios_ray.store import Store
from adios_ray.tracking.records import RunSummary, write_config, write_summary

SPACE = {
    "scheduler": "pbt",
    "synchronous": True,
    "interval_epochs": 2,
    "parameters": {"optimizer.encoder_lr": {"low": 0.01, "high": 0.1, "scale": "log"}},
}


def train(storage: RunStorage, config: ExperimentConfig, epochs: int) -> None:
    """Stand in for training: both trials reach an epoch; at the last one, the run has finished."""
    run_dir = storage.directory
    state = PopulationState.load(run_dir)
    for name, member in state.members.items():
        path = RunDirectory(run_dir).checkpoint(name, epochs)
        path.mkdir(parents=True, exist_ok=True)
        (path / STATE_FILES[member.number]).touch()  # the second trial's as earlier versions wrote it
        (path / META_FILE).touch()
        storage.publish(path)
        member.checkpoint, member.epoch = Pointer(path=path, sha256=""), epochs
        member.finished = epochs >= config.epochs
    state.next_decision_epoch = 2 * ((epochs - 1) // 2 + 1)  # no decision is made at the last epoch
    state.save(run_dir)
    if epochs >= config.epochs:
        RunDirectory(run_dir).report.touch()
        write_summary(run_dir, RunSummary.model_validate(SUMMARY))


SUMMARY = {
    **{"best_trial": "trial_01", "best_fitness": 0.5, "best_epoch": 4, "first_best_fitness": 0.2, "test_fitness": 0.4},
    **{"chance": 0.1, "seconds": 9.0, "exploits": 1, "slot_changes": 1, "epochs": 4, "population": 2},
    **{"dataset": "objects", "command": "x"},
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ExperimentConfig, dict[str, int]]]:
    """Replace training; return the configurations and the unfinished trials of all calls, with their epochs."""
    calls: list[tuple[ExperimentConfig, dict[str, int]]] = []

    def evolve(
        config: ExperimentConfig,
        space: SearchSpace,
        storage: RunStorage,
        resources: WorkerResources,
        claim: Claim,
        changes: Callable[[], None] = lambda: None,
    ) -> Path:
        claim.check()
        changes()
        run_dir = storage.directory
        state = PopulationState.load(run_dir)
        calls.append((config, {name: state.members[name].epoch for name in state.unfinished(state.members)}))
        train(storage, config, min(3, config.epochs) if len(calls) == 1 else config.epochs)
        return run_dir

    @contextmanager
    def connected() -> Iterator[None]:
        yield

    monkeypatch.setattr(runner, "evolve", evolve)
    monkeypatch.setattr(runner, "connected", connected)
    monkeypatch.setattr(runner, "nodes", list)
    monkeypatch.setattr(runner, "worker_resources", lambda *_: WorkerResources(1, 0))
    monkeypatch.setattr(runner, "autoscaler_runs", lambda: False)
    return calls


@pytest.fixture
def config(objects_dir: Path, tmp_path: Path) -> ExperimentConfig:
    """Configure two trials under a name."""
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    trial = small_config(objects_dir, epochs=4).model_dump()
    return ExperimentConfig(**trial, name="one", space=tmp_path / "space.yaml", storage=tmp_path / "runs", population=2)


Trained = list[tuple[ExperimentConfig, dict[str, int]]]


def test_the_same_command_starts_resumes_and_then_says_finished(
    config: ExperimentConfig, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = runner.start(config)
    assert run_dir == Path(config.storage) / "one"
    assert runner.start(config) == run_dir and [epochs for _, epochs in trained] == [
        {"trial_00": 0, "trial_01": 0},
        {"trial_00": 3, "trial_01": 3},
    ]
    before, _ = contents(run_dir), capsys.readouterr()
    assert runner.start(config) == runner.resume(run_dir) == run_dir and len(trained) == 2
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0] == said[1]
    assert said[0].startswith(f"finished: {run_dir}: best trial_01, k-NN fitness 40.0 %")
    assert contents(run_dir) == before


def test_a_run_that_was_stopped_before_its_summary_is_concluded_again(
    config: ExperimentConfig, trained: Trained
) -> None:
    runner.start(config)
    run_dir = runner.start(config)
    (run_dir / "summary.json").unlink()  # a report has been there since the first minute
    runner.start(config)
    assert (run_dir / "summary.json").is_file() and [epochs for _, epochs in trained[2:]] == [{}]


@pytest.mark.slow
def test_a_run_at_a_uri_is_resumed_on_another_machine(
    config: ExperimentConfig,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("adios_ray.data.claim.SETTLING_S", 0.0)  # no other driver claims it
    with s3_server() as server:
        config = config.model_copy(update={"storage": f"{server.uri}/runs"})
        place = f"{server.uri}/runs/one"
        for machine in ("first", "second", "third"):
            monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / machine))
            runner.start(config)
            assert not [path for path in (tmp_path / machine).rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert [epochs["trial_01"] for _, epochs in trained] == [0, 3]
        (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("finished")]
        assert said.startswith(f"finished: {place}: best trial_01") and said.endswith(f"report {place}/report.html")
        asked = read_arguments("", ["--resume", place, "--epochs", "8"], "pbt_in100", "asha_demo")
        assert runner.resume(place, asked) and trained[-1][1] == {"trial_00": 4, "trial_01": 4}
        assert read_experiment(place).epochs == 8 and read_experiment(place).storage == f"{server.uri}/runs"
        with claimed(Store(place), print, TRAINING, wait=False), pytest.raises(ClaimError, match="is being trained by"):
            runner.resume(place)
        Store(place).remove("checkpoints/trial_01")
        with pytest.raises(CheckpointError, match=f"{place} lacks the checkpoints checkpoints/trial_01/epoch_00008"):
            runner.resume(place, asked.model_copy(update={"epochs": 9}))
        begun = Store(f"{server.uri}/runs/killed")  # in its first copy, after a check of nodes
        for name in ("config.json", "environment.json", "events.jsonl", "logs/a.log", ".nodes-1/driver"):
            begun.put(tmp_path / "space.yaml", name)
        runner.start(config.model_copy(update={"name": "killed"}))
        assert trained[-1][0].name == "killed" and begun.size("population.json") is not None
        Store(f"{server.uri}/runs/photos").put(tmp_path / "space.yaml", "me.png")
        with pytest.raises(ConfigError, match="photos is not a run directory, but contains me.png"):
            runner.start(config.model_copy(update={"name": "photos"}))
        assert Store(f"{server.uri}/runs/photos").find() == ["me.png"]
        with pytest.raises(ConfigError, match="nothing is not a run directory"):
            runner.resume(f"{server.uri}/nothing")


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_run_may_not_change_is_refused_by_name_with_both_values(
    config: ExperimentConfig, trained: Trained
) -> None:
    run_dir = runner.start(config)
    before = contents(run_dir)
    other: dict[str, Any] = {"epochs": 2, "seed": 5, "population": 3, "wandb": "offline"}
    with pytest.raises(ConfigError) as refused:
        runner.start(config.model_copy(update=other))
    for text in ("epochs is 4 there and 2 here", "seed is 0 there and 5 here", "population is 2 there and 3 here"):
        assert text in str(refused.value)
    assert "wandb is" not in str(refused.value) and "--name" in str(refused.value)
    Path(config.space).write_text(yaml.safe_dump({**SPACE, "interval_epochs": 1}))
    with pytest.raises(ConfigError, match="interval_epochs of the search space is 2 there and 1 here"):
        runner.start(config)
    assert contents(run_dir) == before and len(trained) == 1
    runner.resume(run_dir)  # under its own copy of the space
    assert len(trained) == 2


def test_a_finished_run_is_trained_longer(config: ExperimentConfig, trained: Trained) -> None:
    run_dir = runner.start(config)
    runner.start(config)
    runner.start(config.model_copy(update={"epochs": 8, "wandb": "offline", "cpus_per_worker": 0.5}))
    asked, epochs = trained[-1]
    assert (asked.epochs, asked.wandb, asked.cpus_per_worker) == (8, "offline", 0.5)
    assert epochs == {"trial_00": 4, "trial_01": 4} and read_experiment(run_dir).epochs == 8
    with pytest.raises(ConfigError, match="epochs is 8 there and 4 here, and may only grow"):
        runner.start(config)


def test_only_trials_that_trained_to_the_end_train_longer_and_none_waits_at_a_barrier_for_ever() -> None:
    values = {"optimizer.encoder_lr": 0.1}
    members = {
        name: Member(values=values, number=number, epoch=epoch, finished=True)
        for number, (name, epoch) in enumerate({"a": 8, "b": 8, "stopped": 3}.items())
    }
    state = PopulationState(members=members, next_decision_epoch=8, epochs=8)
    state.extend(12, 2)
    assert state.unfinished(members) == ["a", "b"]
    assert (state.epochs, state.next_decision_epoch) == (12, 10)
    members["b"].epoch = 7  # of an interrupted run: the decision at epoch 8 is still made
    state = PopulationState(members=members, next_decision_epoch=8, epochs=8)
    state.extend(12, 2)
    assert state.next_decision_epoch == 8


def test_trials_of_a_longer_run_train_one_interval_before_a_decision() -> None:
    members = {
        "ended": Member(values={}, number=0, epoch=8, finished=True),
        "reopened": Member(values={}, number=1, epoch=3, reopened=True),
    }
    PopulationState(members=members, next_decision_epoch=8, epochs=8).extend(12, 2)
    assert (members["ended"].decided_epoch, members["ended"].restarted_epoch) == (8, 8)
    assert not members["reopened"].reopened


def test_a_run_and_its_data_are_found_where_they_are_now(
    config: ExperimentConfig, trained: Trained, objects_dir: Path, tmp_path: Path
) -> None:
    run_dir = runner.start(config)
    data, moved = tmp_path / "copied", tmp_path / "elsewhere" / "moved"
    shutil.copytree(objects_dir, data)
    moved.parent.mkdir()
    run_dir.rename(moved)
    own = read_experiment(moved)
    runner.resume(moved, own.model_copy(update={"data_dir": str(data)}))
    assert trained[-1][0].data_dir == str(data) and trained[-1][0].storage == str(moved.parent)
    pointers = [member.checkpoint for member in PopulationState.load(moved).members.values()]
    assert all(pointer is not None and pointer.path.parent.parent.parent == moved for pointer in pointers)
    other = make_objects(tmp_path / "other", counts={"train": 96, "val": 40, "test": 41})
    longer = {"data_dir": str(other), "epochs": 8}
    with pytest.raises(ConfigError, match=f"data_dir {other} is not the data set of this run"):
        runner.resume(moved, read_experiment(moved).model_copy(update=longer))


def check_schedules(moved: Path, before: Path) -> None:
    """Check that the schedule of a run that was moved begins with the weights that are beside it."""
    schedule = schedule_of(moved, "trial_00", moved)
    schedule.config["initial_weights"] = str(before / INITIAL_WEIGHTS)  # as it was written there
    schedule.save(moved / "schedule.json")
    assert load_schedule(moved / "schedule.json").trial().initial_weights == str(moved / INITIAL_WEIGHTS)
    schedule.config["initial_weights"] = str(kept := moved.with_name("kept.safetensors"))
    kept.touch()
    schedule.save(moved / "schedule.json")
    assert load_schedule(moved / "schedule.json") == schedule  # it is where it was
    kept.unlink()
    alone = moved.with_name("alone.json")
    schedule.save(alone)
    assert load_schedule(alone) == schedule


@pytest.mark.parametrize("remote", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_keeps_the_weights_that_its_trials_begin_with(
    remote: bool, config: ExperimentConfig, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adios_ray.data.claim.SETTLING_S", 0.0)  # no other driver claims it
    networks = Networks(config.trial(), 32, 4)
    weights = Weights(config.trial(), 32, 4, "elsewhere", networks.state_dict())
    save_weights(tmp_path / "given.safetensors", weights)
    asked = config.model_copy(update={"initial_weights": str(tmp_path / "given.safetensors")})
    with s3_server() if remote else nullcontext() as server:
        place = f"{server.uri}/runs" if server else str(tmp_path / "runs")
        runner.start(asked.model_copy(update={"storage": place}))
        (tmp_path / "given.safetensors").unlink()
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "another machine"))
        if not remote:
            (tmp_path / "runs").rename(tmp_path / "moved")
            place = str(tmp_path / "moved")
        runner.resume(f"{place}/one")
        assert read_experiment(f"{place}/one").initial_weights == asked.initial_weights
        assert trained[-1][0].initial_weights == asked.initial_weights
        run = RunStorage(f"{place}/one")
        path = run.fetch_initial_weights()
        if not remote:
            check_schedules(tmp_path / "moved" / "one", tmp_path / "runs" / "one")
        assert path is not None and (tmp_path / "another machine" in path.parents) == remote
        kept = load_weights(path)
        assert kept.origin == "elsewhere" and checksum(kept.tensors) == checksum(weights.tensors)


def test_a_run_without_its_checkpoints_is_refused_before_anything_is_written(
    config: ExperimentConfig, trained: Trained
) -> None:
    run_dir = runner.start(config)
    shutil.rmtree(run_dir / "checkpoints" / "trial_01")
    before = contents(run_dir)
    with pytest.raises(CheckpointError, match=r"lacks the checkpoints checkpoints/trial_01/epoch_00003:"):
        runner.start(config)
    assert contents(run_dir) == before and len(trained) == 1


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("missing", ["config.json", "space.yaml"])
def test_a_run_that_was_copied_in_part_is_refused_by_name_at_once(
    missing: str, remote: bool, config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "check_storage", str)  # which refuses a place in memory
    monkeypatch.setattr(runner, "check_data", lambda *_: None)
    monkeypatch.setattr("adios_ray.retry.TIMEOUT_S", 0.0)
    storage = f"memory://without-{missing}" if remote else str(tmp_path)
    for name in {"config.json", "space.yaml", "population.json"} - {missing}:
        with Store(f"{storage}/one").writing(name) as path:
            path.touch()
    before = Store(storage).find()
    refused = f"^{storage}/one has population.json but no {missing}: copy the whole run there$"
    with pytest.raises(ConfigError, match=refused):
        runner.start(config.model_copy(update={"storage": storage}))
    with pytest.raises(ConfigError, match=refused):
        runner.resume(f"{storage}/one")
    assert Store(storage).find() == before


@pytest.mark.parametrize(
    ("present", "finished", "resumes"),
    [
        (["trial_01/epoch_00005"], False, True),
        (["trial_00/epoch_00004"], False, True),
        (["trial_00/epoch_00004"], True, False),
        (["trial_01/epoch_00004"], False, False),  # the weights that it has replaced
    ],
)
def test_a_trial_resumes_from_its_checkpoint_or_the_one_that_it_continues(
    present: Sequence[str], finished: bool, resumes: bool, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    for name in present:
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / STATE_FILE).write_bytes(b"")
    donor = Pointer(path=run.checkpoint("trial_00", 4), sha256="")
    own = Pointer(path=run.checkpoint("trial_01", 5), sha256="").after(donor)
    members = {"trial_01": Member(values={}, number=1, checkpoint=own, epoch=5, finished=finished)}
    state = PopulationState(members=members, next_decision_epoch=6)
    refused = pytest.raises(CheckpointError, match="lacks the checkpoints .*trial_01/epoch_00005")
    with nullcontext() if resumes else refused:
        check_checkpoints(RunStorage(tmp_path), state)


@pytest.mark.parametrize(
    ("files", "complete"),
    [([], False), ([META_FILE], False), *(([name], False) for name in STATE_FILES)]
    + [([name, META_FILE], True) for name in STATE_FILES],
)
def test_a_checkpoint_that_is_not_complete_at_a_uri_is_missing(
    files: Sequence[str], complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    run = RunStorage(f"memory://{tmp_path.name}/run")
    path = RunDirectory(run.directory).checkpoint("trial_00", 3)
    for name in files:
        with Store(run.place).writing(f"checkpoints/trial_00/epoch_00003/{name}") as file:
            file.touch()
    member = Member(values={}, number=0, checkpoint=Pointer(path=path, sha256=""), epoch=3)
    state = PopulationState(members={"trial_00": member}, next_decision_epoch=4)
    refused = pytest.raises(CheckpointError, match="lacks the checkpoints checkpoints/trial_00/epoch_00003:")
    with nullcontext() if complete else refused:
        check_checkpoints(run, state)


def test_whole_paths_of_earlier_versions_are_found_after_a_move(config: ExperimentConfig, trained: Trained) -> None:
    run_dir = runner.start(config)
    state = json.loads((run_dir / "population.json").read_text())
    assert state["members"]["trial_00"]["checkpoint"]["path"] == "checkpoints/trial_00/epoch_00003"
    for name, member in state["members"].items():
        member["checkpoint"]["path"] = f"/gone/runs/one/checkpoints/{name}/epoch_00003"
    del state["epochs"], state["dataset"]
    (run_dir / "population.json").write_text(json.dumps(state))
    runner.start(config.model_copy(update={"epochs": 6}))
    assert trained[-1][1] == {"trial_00": 3, "trial_01": 3}
    assert PopulationState.load(run_dir).epochs == 6


def test_a_second_driver_is_refused_and_another_folder_is_no_run(config: ExperimentConfig, trained: Trained) -> None:
    run_dir = runner.start(config)
    with claimed(Store(run_dir), print, TRAINING, wait=False):
        with pytest.raises(ClaimError, match="is being trained by process"):
            runner.start(config)
        with pytest.raises(ClaimError, match="is being trained by process"):
            runner.resume(run_dir)
    (Path(config.storage) / "photos").mkdir()
    (Path(config.storage) / "photos" / "me.png").touch()
    with pytest.raises(ConfigError, match="photos is not a run directory, but contains me.png"):
        runner.start(config.model_copy(update={"name": "photos"}))
    assert [path.name for path in (Path(config.storage) / "photos").iterdir()] == ["me.png"]


def test_a_run_that_does_not_fit_leaves_nothing(
    config: ExperimentConfig, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("a trial needs more GPUs")

    monkeypatch.setattr(runner, "worker_resources", refuse)
    for name in ("one", None):
        with pytest.raises(ConfigError, match="more GPUs"):
            runner.start(config.model_copy(update={"name": name}))
        assert not Path(config.storage).exists()  # it made the directory
    assert not trained


def test_a_command_without_data_goes_on_with_the_runs_own(config: ExperimentConfig, trained: Trained) -> None:
    run = runner.start(config)
    assert runner.start(config.model_copy(update={"data_dir": None, "epochs": 6})) == run
    assert [each.data_dir for each, _ in trained] == 2 * [config.data_dir]


def test_a_refused_resumption_changes_nothing(
    config: ExperimentConfig, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner.start(config)
    runner.start(config)

    def refuse(*_: object) -> NoReturn:
        raise ConfigError("a node lacks the data")

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(runner, "evolve", evolution.evolve)
    monkeypatch.setattr(evolution, "check_nodes", refuse)
    monkeypatch.setattr(evolution, "remove_probes", lambda place: None)
    with pytest.raises(ConfigError, match="lacks the data"):
        runner.start(config.model_copy(update={"epochs": 9}))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("puts", range(6))
def test_an_extension_at_a_uri_is_repeated_after_a_crash_at_any_moment(
    puts: int, config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the extended snapshot and the old journal, or with an old conclusion, the run would have finished."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    place, space = f"memory://extended-{puts}/run", load_space(config.space)
    written = RunStorage(place)
    written.directory.mkdir(parents=True)
    state = PopulationState(next_decision_epoch=2, epochs=4)
    state.add("trial_00", {})
    write_config(written.directory, config.model_dump(mode="json"))
    state.save(written.directory)
    state.members["trial_00"].finished, state.members["trial_00"].epoch = True, 4
    state.journal(written.directory, ["trial_00"])
    RunDirectory(written.directory).summary.write_text("{}")
    written.push()
    shutil.rmtree(written.directory)

    def changed(allowed: int) -> None:
        run, done = RunStorage(place), 0
        run.directory.mkdir(parents=True, exist_ok=True)
        run.fetch_run()
        put = Store.put

        def counted(store: Store, *arguments: Any) -> None:
            nonlocal done
            done += 1
            if done > allowed:
                raise KeyboardInterrupt
            put(store, *arguments)

        asked = config.model_copy(update={"epochs": 6})
        now = read_experiment(run.directory)
        with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Store, "put", counted)
            save_changes(run, PopulationState.load(run.directory), now, asked, space)
        shutil.rmtree(run.directory)

    changed(puts)
    changed(99)
    found = RunStorage(place)
    found.directory.mkdir(parents=True)
    found.fetch_run()
    after = PopulationState.load(found.directory)
    assert after.epochs == 6 and after.unfinished(["trial_00"]) == ["trial_00"] and after.next_decision_epoch == 6
    assert not RunDirectory(found.directory).summary.exists()


def test_an_interruption_says_how_to_resume(
    config: ExperimentConfig, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evolve(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "evolve", evolve)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        runner.start(config)
    kept = f"what was reported is kept: resume with --resume {config.storage}/one"
    assert interrupted.value.__notes__ == [kept]
    assert not (Path(config.storage) / "one" / TRAINING.file).exists()
