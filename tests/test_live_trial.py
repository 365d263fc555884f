"""Live trials on a real cluster: in-place loads, two workers, killed processes, truncated checkpoint, shared GPU."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import soak
import torch
from small import small_config
from trainers import assert_identical
from waiting import TIMEOUT_S, until

from adios_ray.backend.line import Note
from adios_ray.backend.trial import REPLY
from adios_ray.checkpoints import STATE_FILE, Pointer, load_checkpoint
from adios_ray.config import TrialConfig
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.records import write_config
from adios_ray.trial_report import TrialReport

pytestmark = pytest.mark.ray
CPU = torch.device("cpu")


class Reported(NamedTuple):
    """A report of a trial's actor, with the actor's process ID."""

    report: TrialReport
    checkpoint: Pointer
    pid: int


class Driven:
    """Live trials that the test drives, in place of Tune and the population."""

    def __init__(self, run_dir: Path, workers: int) -> None:
        """Start the channel of a run."""
        from adios_ray.backend.channel import start_channel

        run_dir.mkdir()
        write_config(run_dir, {})
        RunDirectory(run_dir).make_folders()
        self.run_dir, self.workers = run_dir, workers
        self.channel = start_channel(run_dir.name, trials=4, workers=workers)
        self.actors: dict[str, Any] = {}

    def start(self, trial: str, config: TrialConfig) -> None:
        """Start a trial's actor with its Ray Train run."""
        import ray

        from adios_ray.backend.trial import LiveTrial, TrialSettings

        ray.get(self.channel.register.remote(trial, config, None, 0, False))
        settings = TrialSettings(
            trial=trial,
            run_dir=str(self.run_dir),
            channel=self.run_dir.name,
            workers=self.workers,
            cpus_per_worker=0.5,
            gpus_per_worker=0.0,
        )
        self.actors[trial] = ray.remote(LiveTrial).options(num_cpus=0).remote(config=settings)

    def report(self, trial: str) -> "Reported":
        """Train to the next report."""
        import ray

        result: dict[str, Any] = ray.get(self.actors[trial].train.remote(), timeout=TIMEOUT_S)
        report, checkpoint, _ = result[REPLY]
        return Reported(report, checkpoint, result["pid"])

    def load(self, trial: str, checkpoint: Pointer, config: TrialConfig) -> None:
        """Exploit in place."""
        import ray

        ray.get(self.channel.load.remote(trial, checkpoint, 1, config))

    def state(self, reported: "Reported") -> dict[str, Any]:
        """Load the state in a report's checkpoint."""
        return load_checkpoint(reported.checkpoint, CPU)

    def notes(self) -> list[Note]:
        """Take the notes of all trials."""
        import ray

        notes: list[Note] = ray.get(self.channel.take_notes.remote())
        return notes

    def stop(self) -> None:
        """Stop all trials, and remove what killed processes left."""
        import ray

        from adios_ray.backend.capacity import groups, remove_orphaned

        ray.get([actor.stop.remote() for actor in self.actors.values()], timeout=TIMEOUT_S)
        for actor in [*self.actors.values(), self.channel]:
            ray.kill(actor)

        def removed() -> bool:
            remove_orphaned(self.run_dir)
            return not groups(self.run_dir)

        until(removed)


@pytest.fixture
def driven(ray_cluster: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driven]:
    """Provide trials with one worker each, or with the number that the test requests."""
    trials = Driven(tmp_path / "run", getattr(request, "param", 1))
    yield trials
    trials.stop()


def test_an_exploit_keeps_the_processes_and_takes_the_donors_weights_bit_for_bit(
    driven: Driven, objects_dir: Path
) -> None:
    donors, mine = (small_config(objects_dir, epochs=1, seed=seed) for seed in (1, 2))
    driven.start("donor", donors)
    driven.start("trial", mine)
    donor, before = driven.report("donor"), driven.report("trial")
    assert donor.report.worker_pid != before.report.worker_pid
    changed = small_config(objects_dir, epochs=1, optimizer={"encoder_lr": 0.2})
    driven.load("trial", donor.checkpoint, changed)
    after = driven.report("trial")
    assert after.report.worker_pid == before.report.worker_pid
    assert after.pid == before.pid
    held, donated = driven.state(after), driven.state(donor)
    assert held.pop("config")["optimizer"]["encoder_lr"] == 0.2
    donated.pop("config")
    assert_identical(held, donated)
    assert after.report.fitness == donor.report.fitness


@pytest.mark.parametrize("driven", [2], indirect=True)
def test_two_workers_train_one_trial(driven: Driven, objects_dir: Path) -> None:
    config = small_config(objects_dir, backbone={"name": "vit_tiny_patch16_224"}, epochs=1, batch_size=48)
    driven.start("trial", config)
    report = driven.report("trial")
    assert report.report.epoch == 1 and 0 <= report.report.fitness <= 1

    from adios_ray.training.trainer import Trainer

    alone = Trainer(config, CPU)
    alone.train_to_report()
    for name, value in driven.state(report)["networks"].items():
        expected = alone.networks.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-4 * max(1.0, float(expected.abs().max())))


def test_a_trial_whose_processes_are_killed_resumes_from_its_last_whole_checkpoint(
    driven: Driven, objects_dir: Path
) -> None:
    from adios_ray.backend.capacity import groups

    config = small_config(objects_dir, epochs=4)
    driven.start("trial", config)
    reports = [driven.report("trial")]
    assert [(group.placed, group.orphaned) for group in groups(driven.run_dir)] == [(True, False)]
    (victim,) = soak.processes("worker")
    victim.suspend()  # it does not pass on what it prints last
    with open(f"/proc/{victim.pid}/fd/2", "a") as file:
        file.write("last words\n")
    victim.kill()
    reports.append(driven.report("trial"))
    assert Note("trial", "worker 0 printed", "last words", "output") in driven.notes()
    second = reports[-1].checkpoint.path / STATE_FILE
    before = driven.state(reports[-1])
    second.write_bytes(second.read_bytes()[:1000])
    kill_worker()
    reports.append(driven.report("trial"))
    assert_identical(driven.state(reports[-1]), before)
    reports += [driven.report("trial") for _ in range(2)]
    assert [report.report.epoch for report in reports] == [1, 2, 2, 3, 4]
    assert [len({report.report.worker_pid for report in part}) for part in (reports[:3], reports[2:])] == [3, 1]
    assert len({report.pid for report in reports}) == 1
    failed, skipped = (note for note in driven.notes() if note.kind != "output")
    assert failed.text.startswith("its workers failed (") and failed.text.endswith("started again, attempt 2 of 6")
    assert "The actor died unexpectedly" in failed.details
    assert f"epoch_00002/{STATE_FILE} is damaged" in skipped.text and skipped.text.endswith("from trial/epoch_00001")

    from adios_ray.training.trainer import Trainer

    alone = Trainer(config, CPU)
    while not alone.done:
        alone.train_to_report()
    assert_identical(driven.state(reports[-1])["networks"], dict(alone.networks.state_dict()))


def kill_worker() -> None:
    """Kill the workers of all trials."""
    for victim in soak.processes("worker"):
        victim.kill()


def test_what_is_given_no_gpu_sees_none(ray_cluster: None) -> None:
    import ray

    def visible() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    seen = [ray.remote(num_cpus=0, num_gpus=gpus)(visible).remote() for gpus in (0, 0.5)]
    assert ray.get(seen) == ["", "0"]


def _failures_of_fits(make_worker: Callable[[], Any], *settings: Any) -> list[list[str]]:
    """Run trials' trainers at the same time, each in its own process, with other workers until their end.

    Args:
        make_worker: Returns what each worker does; called in each of these processes.
        *settings: Settings of each trial, all of one run directory.
    """
    import ray

    class Actor:  # local, so that it is pickled by value
        def fit(self, settings: Any) -> list[str]:
            """Fit once more after each failure, in the same process; return the names of the failures."""
            import ray
            from ray.train import ControllerError

            from adios_ray.backend import trial
            from adios_ray.backend.capacity import own_groups
            from adios_ray.run_storage import RunStorage

            trial.run_worker, failures = make_worker(), list[str]()
            placed, own = list[Sequence[str]](), ray.get_runtime_context().get_node_id()
            with own_groups(RunStorage(settings["run_dir"]), print):
                while True:
                    try:
                        result = trial.build_trainer(settings, None, dict, placed.append).fit()
                    except ControllerError as error:
                        failures.append(type(error.controller_failure).__name__)
                    else:
                        assert result.error is None and placed == (1 + len(failures)) * [[own]]
                        return failures

    run_dir = Path(settings[0]["run_dir"])
    write_config(run_dir, {})
    RunDirectory(run_dir).make_folders()
    actors = [ray.remote(Actor).options(num_cpus=0).remote() for _ in settings]
    fits = [actor.fit.remote(each) for actor, each in zip(actors, settings, strict=True)]
    failures: list[list[str]] = ray.get(fits, timeout=TIMEOUT_S)
    return failures


def test_a_trial_whose_worker_dies_in_its_start_finds_its_resources_free(ray_cluster: None, tmp_path: Path) -> None:
    from adios_ray.backend.trial import TrialSettings

    class Deadly:  # local, so that it is pickled by value
        def __init__(self, died: Path) -> None:
            self.died = died

        def __setstate__(self, state: dict[str, Path]) -> None:
            """Kill the first worker that receives this."""
            import os

            self.died = state["died"]
            if not self.died.exists():
                self.died.touch()
                os.kill(os.getpid(), 9)

        def __call__(self, config: dict[str, Any]) -> None:
            """Train nothing."""

    whole_cluster = TrialSettings(
        trial="trial_00", run_dir=str(tmp_path), channel="", workers=1, cpus_per_worker=4.0, gpus_per_worker=0
    )
    assert _failures_of_fits(partial(Deadly, tmp_path / "died"), whole_cluster) == [["ActorDiedError"]]


def test_two_trials_share_a_gpu(ray_cluster: None, tmp_path: Path) -> None:
    from adios_ray.backend.trial import TrialSettings

    def meet(config: dict[str, Any]) -> None:
        import ray

        mine, deadline = Path(config["run_dir"]) / config["trial"], time.monotonic() + TIMEOUT_S
        mine.write_text(str(ray.get_gpu_ids()))
        while len(list(mine.parent.glob("trial_??"))) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("the other trial was not given its resources")
            time.sleep(0.05)

    settings = [
        TrialSettings(
            trial=name, run_dir=str(tmp_path), channel="", workers=1, cpus_per_worker=0.5, gpus_per_worker=0.5
        )
        for name in ("trial_00", "trial_01")
    ]
    assert _failures_of_fits(lambda: meet, *settings) == [[], []]
    assert [(tmp_path / each["trial"]).read_text() for each in settings] == ["[0]", "[0]"]
    assert list(RunDirectory(tmp_path).actors.iterdir()) == []
