"""The command line: its outputs, its messages, and its failures."""

import io
import itertools
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from encoded_images import picture
from PIL import Image

import adios_ray
from adios_ray import retry
from adios_ray.arguments import parse_arguments
from adios_ray.cli import main
from adios_ray.commands.doctor import Doctor
from adios_ray.data.plan import ShardJob
from adios_ray.data.shards import open_shards
from adios_ray.errors import AGAIN
from adios_ray.ray_private import JOB_CONFIG_VARIABLE
from adios_ray.store import Store


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write ten images without classes; return their folder."""
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def options(**given: object) -> list[str]:
    """Return options of ``prepare`` that are valid for a folder, except for those given.

    True names an option that has no value; None leaves one out.
    """
    right = {"dataset": "folder", "source": "images", "output": "out", "image_size": 32}
    words = ["prepare"]
    for name, value in {**right, **given}.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": 40}, "--image-size 40 must be a multiple of 16 from 32 to 4096"),
        ({"image_size": 16}, "--image-size 16 must"),
        ({"image_size": 0}, "--image-size 0 must"),
        ({"image_size": -32}, "--image-size -32 must"),
        ({"max_bad_fraction": 1.5}, "--max-bad-fraction 1.5 must be less than or equal to 1"),
        ({"max_bad_fraction": "nan"}, "--max-bad-fraction nan must be less than or equal to 1"),
        ({"source": None}, "--dataset folder needs --source"),
        ({"num_images": 5}, "--num-images and --seed are for rendered sets"),
        ({"seed": 0}, "--num-images and --seed are for rendered sets"),
        ({"dataset": "scenes"}, "--dataset scenes is rendered and takes no --source"),
        ({"dataset": "objects", "source": None, "num_images": 3}, "--num-images"),
        ({"variation": "no_fg"}, "--variation is for --dataset objects, not for folder"),
        ({"source": "nowhere"}, "nowhere is not a folder"),
        ({"output": "images"}, "is not empty and not an unfinished data set"),
        ({"output": "images/0.png"}, "Not a directory"),
        ({"train_images": 11}, "11 images asked for train"),
        ({"val_images": -1}, "--val-images -1 must be greater than or equal to 0"),
        ({"max_pixels": 0}, "--max-pixels 0 must be greater than or equal to 1"),
        ({"group_by": "("}, "--group-by '(' is neither folder nor a regular expression: missing ), unterminated"),
        ({"group_by": r"video\d"}, "the pattern 'video\\\\d' that groups images does not match "),
        *(
            (
                {"dataset": "objects", "source": None, **option},
                "--group-by, --drop-duplicates and --check-content are for files, not for --dataset objects",
            )
            for option in ({"group_by": "folder"}, {"drop_duplicates": True}, {"check_content": True})
        ),
        *(
            (
                {"dataset": "objects", "source": None, **option},
                "--max-pixels and --stretch are for encoded images, not for --dataset objects",
            )
            for option in ({"max_pixels": 9}, {"stretch": "file"})
        ),
        ({"dataset": "parquet", "layout": "flat"}, "--layout is for --dataset folder, not for parquet"),
        (
            {"dataset": "cifar10", "allow_missing_classes": True},
            "--allow-missing-classes is for --dataset folder, parquet, webdataset, not for cifar10",
        ),
    ],
)
def test_bad_options_are_one_line(
    given: dict[str, object],
    message: str,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(images.parent)
    assert main(options(**given)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize(
    "words", [["verify", "memory://set"], options(output="memory://out"), options(source="memory://images")]
)
def test_storage_that_does_not_answer_is_given_up_within_seconds(
    words: list[str], images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = threading.Event()
    for method in ("read", "names", "size", "find"):
        monkeypatch.setattr(Store, method, lambda *arguments: answer.wait(10))
    monkeypatch.setattr(retry, "ANSWER_S", 0.1)
    monkeypatch.chdir(images.parent)
    start = time.monotonic()
    assert main(words) == 2 and time.monotonic() - start < 5
    answer.set()
    error = capsys.readouterr().err
    assert error.startswith("error: memory://") and "no answer within 0 s" in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["prepare"], ["prepare", "--nonsense", "1"], options(dataset="films")])
def test_a_command_line_that_cannot_be_read(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_explains_every_option_of_prepare(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["prepare", "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    for name in ("train", "val", "test", "num"):
        assert f"--{name}-images" in said
    assert "from each class" in said and "(required)" in said
    assert [line for line in said.splitlines() if line.strip("│ ").startswith("stl10: 100,000")], "a list of lines"


@pytest.mark.parametrize(
    "command", ["train", "prepare", "replay", "report", "doctor", "export", "evaluate linear", "masks"]
)
def test_help_fills_its_lines(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    said = capsys.readouterr().out.splitlines()
    assert not [line for line in said if len(line) > 80 and not line.startswith("  adios-ray")], "only examples"
    lines = [line[2:-2].rstrip() for line in said if len(line) == 80]  # of boxes
    assert not [line for line in lines if "(default: )" in line or "{None" in line or "STR|" in line]
    pairs = [(line, after) for line, after in itertools.pairwise(lines) if line[:6] == after[:6] == " " * 6]
    assert pairs
    for line, after in pairs:
        assert len(line) + 1 + len(after.split()[0]) > 76, f"a needless break: {line}|{after}"


def test_help_of_a_script_keeps_its_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    description = "Do this.\n\nIn two ways:\n\n    python a.py --one\n        quickly\n    python a.py --two\n\nOr not."
    with pytest.raises(SystemExit):
        parse_arguments(Doctor, ["--help"], description=description)
    said = capsys.readouterr().out
    assert "\nDo this.\n\nIn two ways:\n\nOr not.\n" in said
    assert said.endswith("examples:\n  python a.py --one\n      quickly\n  python a.py --two\n")


def test_no_help_offers_none_for_a_setting_that_is_not_given(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train"], ["prepare"], ["evaluate", "transfer"], ["replay"], ["doctor"], ["masks"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert "None" not in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adios-ray {adios_ray.__version__}\n"


def test_before_the_first_training_there_are_no_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "runs has no runs: adios-ray train makes them\n" and not list(tmp_path.iterdir())


def test_the_command_line_starts_without_ray_and_torch() -> None:
    code = "import sys, adios_ray.cli; sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_is_a_program_that_may_be_interrupted_while_it_imports() -> None:
    helped = subprocess.run([sys.executable, "-m", "adios_ray", "runs", "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and helped.stdout.startswith("usage: adios-ray runs")
    code = """
import importlib.abc, runpy, sys
class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tyro":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
runpy.run_module("adios_ray", run_name="__main__")
"""
    interrupted = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (interrupted.returncode, interrupted.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("dry_run", "function", "line"),
    [(None, "prepare._run", f"interrupted; {AGAIN}"), (True, "plan.make_plan", "interrupted")],
)
def test_an_interruption_says_how_to_resume_where_there_is_something_to(
    dry_run: bool | None,
    function: str,
    line: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"adios_ray.data.{function}", interrupted)
    assert main(options(source=images, output=tmp_path / "out", dry_run=dry_run)) == 130
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_prepare_and_verify(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = options(source=images, output=tmp_path / "out", val_images=2, test_images=1)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 splits, 1 class: train 7, test 1, val 2 (val and test carved out of train)\n")
    assert "10 found = 10 read + 0 refused + 0 passed over\n" in said
    assert "out: test 1, train 7, val 2 images, 0 refused" in said and said.count("\n") == 3
    assert main(arguments) == 0 and "is already there: test 1, train 7" in capsys.readouterr().out
    dataset = open_shards(tmp_path / "out")
    assert dataset.manifest.recipe["source"] == str(images.resolve())
    reds = np.concatenate(
        [images[:, 0, 0, 0] for name in ("train", "val", "test") for images in dataset.split(name).images]
    )
    assert sorted(reds) == list(range(10))
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "3 shards, 10 images" in capsys.readouterr().out
    (tmp_path / "out" / "val-00000.arrow").unlink()
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert "val-00000.arrow is missing" in capsys.readouterr().err


def plant_videos(folder: Path) -> None:
    """Write two classes, ant of ten videos and bee of two, of three images each."""
    for name, videos in (("ant", 10), ("bee", 2)):
        for video in range(videos):
            (folder / name / f"video{video}").mkdir(parents=True)
            for number in range(3):
                shade = (100 * (name == "bee") + video, number, 0)
                Image.new("RGB", (40, 40), shade).save(folder / name / f"video{video}" / f"{number}.png")


def test_images_in_larger_files_have_no_folder_to_group_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for number in range(20):
            content = picture(number)
            member = tarfile.TarInfo(f"video{number // 4}/{number}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    command = options(dataset="webdataset", source=tmp_path, output=tmp_path / "out", dry_run=True)
    assert main([*command, "--group-by", "folder"]) == 2
    error = capsys.readouterr().err
    assert "--group-by folder is for files of single images; give an expression for names such as unlabeled/" in error
    assert main([*command, "--group-by", r"video\d"]) == 0
    assert "train 12, test 4, val 4" in capsys.readouterr().out


def test_names_are_printed_without_their_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(jobs: Sequence[ShardJob], planned: int, task: Callable[[dict[str, str]], object], check: object) -> None:
        for job in jobs:  # without Ray
            task({"job": job.model_dump_json()})

    monkeypatch.setattr("adios_ray.data.prepare._run", run)
    source, frames = tmp_path / "images", [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    for name in ("new\nline", "b\x1b[31m"):
        (source / "train" / name).mkdir(parents=True)
        frames[0].save(source / "train" / name / "a\r\u2028.gif", save_all=True, append_images=frames[1:])
    (source / "train" / "new\nline" / "cut\n.png").write_bytes(b"no image")
    (source / "note\n.txt").touch()
    counts = {"val_images": 0, "test_images": 0}
    command = options(source=source, output=tmp_path / "out", max_bad_fraction=1, **counts)
    assert main([*command, "--dry-run"]) == 0
    found, *classes = capsys.readouterr().out.splitlines()[-3:]
    assert found == r"passed over, not an image: 1 (note\n.txt)"
    assert classes == [r"  b\x1b[31m: train 1", r"  new\nline: train 2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert r"refused: train/new\nline/cut\n.png: not an image in" in said
    assert r"first is used: 2 images, such as train/" in said and r"/a\r\u2028.gif" in said
    assert r"have another label: train/b\x1b[31m/a\r\u2028.gif and train/new\nline/a\r\u2028.gif" in said
    assert not set(said) & set("\r\x1b\u2028")


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant_videos(tmp_path / "videos")
    alone = """\
3 splits, 2 classes: train 28, test 4, val 4 (val and test carved out of train)
  ant: train 24, test 3, val 3
  bee: train 4, test 1, val 1
"""
    by_video = """\
3 splits, 2 classes: train 30, test 3, val 3 (val and test carved out of train)
1 class too small to be in val and test, kept in train: bee
  ant: train 24, test 3, val 3
  bee: train 6, test 0, val 0
"""
    for group, expected in ((None, alone), ("folder", by_video), (r"\w+/video\d", by_video)):
        assert main(options(source=tmp_path / "videos", output=tmp_path / "out", dry_run=True, group_by=group)) == 0
        assert capsys.readouterr().out == expected
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_videos_stay_together_copies_are_dropped_and_content_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_videos(tmp_path / "videos")
    changed = tmp_path / "videos" / "ant" / "video0" / "0.png"
    changed.write_bytes((changed.parent / "1.png").read_bytes())
    arguments = options(source=tmp_path / "videos", output=tmp_path / "out", group_by="folder", drop_duplicates=True)
    assert main(arguments) == 0
    dataset = open_shards(tmp_path / "out")
    stored = {split: [str(item) for item in dataset.split(split).source_ids] for split in ("train", "val", "test")}
    assert sum(map(len, stored.values())) == 35  # of 36, one is a copy
    videos = [{item.rpartition("/")[0] for item in items} for items in stored.values()]
    assert len(set.union(*videos)) == sum(map(len, videos)) == 12
    capsys.readouterr()
    status = changed.stat()
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main(arguments) == 0
    assert main([*arguments, "--check-content"]) == 2
    assert "1 changed (ant/video0/0.png)" in capsys.readouterr().err


def test_a_uri_that_cannot_be_read_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: str) -> None:
        raise ConnectionRefusedError("no answer")

    monkeypatch.setattr("adios_ray.data.sources.folder.source", fail)
    command = ["prepare", "--dataset", "folder", "--source", "memory://x/y", "--image-size", "32", "--output", "out"]
    assert main(command) == 2
    assert capsys.readouterr().err == "error: memory://x/y cannot be read: ConnectionRefusedError: no answer\n"


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("replay --schedule s.json --output runs/x", "--output runs/x"),
        ("prepare --dataset objects --output data/x", "--output data/x"),
        ("prepare --dataset stl10 --source stl10 --download --output /data/x", "--source stl10"),
        ("import-official released --output x.safetensors", "--output x.safetensors"),
        ("export --checkpoint w.safetensors --output x.onnx", "--output x.onnx"),
        ("evaluate knn --checkpoint w.safetensors --data-dir data/x --output x.json", "--output x.json"),
        ("evaluate knn --checkpoint w.safetensors --data-dir data/x --ray", "--data-dir data/x"),
        ("evaluate robustness --checkpoint w --data-dir /x --variation a=/a b=b --ray", "--variation b"),
        ("masks --checkpoint w.safetensors --images photos --output x", "--output x"),
        ("report /runs/a /runs/b --output x.html", "--output x.html"),
        ("report /runs/a runs/b", "RUN runs/b"),
        ("train --resume runs/a", "--resume runs/a"),
    ],
)
def test_relative_paths_that_a_job_would_lose_are_refused(
    line: str, lost: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB_CONFIG_VARIABLE, '{"metadata": {"job_submission_id": "7"}}')
    assert main(line.split()) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {lost} is relative, and job 7 works in a copy") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "export --checkpoint absent.safetensors --output {tmp_path}/x.onnx",
        "evaluate knn --checkpoint absent.safetensors --data-dir absent",
        "verify absent",
    ],
)
def test_a_job_may_read_relative_paths(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB_CONFIG_VARIABLE, '{"metadata": {"job_submission_id": "7"}}')
    assert main(line.format(tmp_path=tmp_path).split()) == 2
    assert "is relative" not in capsys.readouterr().err
