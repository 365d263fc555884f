"""Wrong uses of the commands: one line that names the thing and its value, status 2, no worker, nothing on disk."""

import json
import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from made_up_run import make_run
from safetensors.torch import save_file
from small import make_objects, small_config

from adios_ray import cli
from adios_ray.arguments import parse_arguments
from adios_ray.checkpoints import STATE_FILE
from adios_ray.cli import EXAMPLES, FIRST_STEPS, Command, main
from adios_ray.data.claim import TRAINING, Holder, claimed
from adios_ray.data.manifest import SCHEMA_VERSION
from adios_ray.devices import CONTEXT_BYTES
from adios_ray.errors import ConfigError
from adios_ray.experiment import runner
from adios_ray.experiment.command import read_arguments
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.feasibility import needs
from adios_ray.experiment.resources import Node
from adios_ray.local_cache import CACHE_VARIABLE
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, save_weights
from adios_ray.store import Store
from adios_ray.tensor_files import pack_nested
from adios_ray.tracking import records
from adios_ray.training.cost import StepCost

SPACE = {
    "scheduler": "pbt",
    "parameters": {"optimizer.encoder_lr": {"low": 0.01, "high": 1.0, "scale": "log"}},
}


def spoiled_spaces() -> Iterator[tuple[str, str]]:
    """Yield files of search spaces that cannot be used."""
    rate = SPACE["parameters"]["optimizer.encoder_lr"]  # type: ignore[index]
    path = "optimizer.encoder_lr"
    changes: dict[str, dict[str, object]] = {
        "key": {**SPACE, "schedulr": "pbt"},
        "scheduler": {**SPACE, "scheduler": "pbtt"},
        "bounds": {**SPACE, "parameters": {path: {**rate, "low": 2.0}}},
        "scale": {**SPACE, "parameters": {path: {**rate, "scale": "logarithmic"}}},
        "path": {**SPACE, "parameters": {"optimizer.encoder_rate": rate}},
        "range": {**SPACE, "parameters": {"masking.slots": {"low": 1, "high": 4, "scale": "integer"}}},
        "option": {**SPACE, "grace_epochs": 3},
        "fixed": {**SPACE, "parameters": {"masking.width": {"values": [8, 16]}}},
        "empty_key": {"scheduler": "pbt"},
        "number": {**SPACE, "parameters": {1: rate}},
        "nothing": {"scheduler": "pb2", "parameters": {}},
        "common": {"scheduler": "none", "parameters": {"data_dir": {"values": ["a", "b"]}}},
        "backbones": {"scheduler": "none", "parameters": {"backbone.name": {"values": ["resnet_small", "resnet9999"]}}},
        "batches": {"scheduler": "none", "parameters": {"batch_size": {"values": [8, 10_000]}}},
    }
    for name, values in changes.items():
        yield name, yaml.safe_dump(values)
    yield "syntax", "scheduler: pbt\nparameters: {a: [}\n"
    yield "deep", "[" * 5000
    yield "twice", "scheduler: pbt\nparameters: {}\nscheduler: pb2\n"
    yield "list", "- 1\n- 2\n"
    yield "list_key", "scheduler: pbt\n? [a, b]\n: 3\n"
    yield "mapping_key", "{a: 1}: 1\n"
    yield "empty", ""
    yield "nan", yaml.safe_dump({**SPACE, "parameters": {path: {**rate, "low": math.nan}}})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what wrong uses refer to: data sets, runs, checkpoints and search spaces; return their folder."""
    folder = tmp_path_factory.mktemp("place")
    make_objects(folder / "data", counts={"train": 24, "val": 8, "test": 8})
    make_objects(folder / "no_test", counts={"train": 8, "val": 4})
    damaged = make_objects(folder / "damaged", counts={"train": 8, "val": 4, "test": 4})
    (damaged / "val-00000.arrow").write_bytes(b"damaged")
    incomplete = make_objects(folder / "incomplete", counts={"train": 8, "val": 4, "test": 4})
    (incomplete / "test-00000.arrow").unlink()
    (folder / "no_manifest").mkdir()
    (folder / "bad_manifest").mkdir()
    (folder / "bad_manifest" / "manifest.json").write_text("{")
    (folder / "spaces").mkdir()
    for name, text in spoiled_spaces():
        (folder / "spaces" / f"{name}.yaml").write_text(text)
    (folder / "spaces" / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    make_run(folder / "run", epochs=2)
    make_run(folder / "bad_run", epochs=2)
    (folder / "bad_run" / "results.csv").write_text("a,b\n1,2\n")
    (folder / "bad_config").mkdir()
    records.write_config(folder / "bad_config", {"epochs": "many"})
    (folder / "file").write_text("text")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "empty").mkdir()
    (folder / "images").mkdir()
    (folder / "images" / "note.txt").write_text("no image")
    (folder / "weights.safetensors").write_bytes(b"not safetensors")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / STATE_FILE).write_bytes(pack_nested({"networks": 1}))
    (folder / "schedule.json").write_text('{"stages": 3}')
    _write_more(folder)
    return folder


def _write_more(folder: Path) -> None:
    """Write places and files of other programs and versions, and runs with damaged files."""
    torch.save({"a": torch.zeros(2)}, folder / "other.pt")
    save_file({"a": torch.zeros(2)}, folder / "other.safetensors", metadata={"format": "pt"})
    for name in ("taken.safetensors", "taken.onnx", "taken.json", "taken.png"):
        (folder / name).mkdir()
    networks = Networks(small_config(folder / "data"), 32, 10)
    save_weights(folder / "made.safetensors", Weights(networks.config, 32, 10, "a test", networks.state_dict()))
    for name in ("old.onnx", "old.html", "photo.png"):
        (folder / name).write_text("another program's")
    newer = make_objects(folder / "newer", counts={"train": 8, "val": 4, "test": 4})
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(manifest | {"schema_version": SCHEMA_VERSION + 1}))
    make_run(folder / "binary_run", epochs=2)
    (folder / "binary_run" / "results.csv").write_bytes(b"\xff\xfe\n")
    make_run(folder / "bad_lineage", epochs=2)
    (folder / "bad_lineage" / "lineage.jsonl").write_text('{"epoch": 1, "tri\n')
    make_run(folder / "cut_population", epochs=2)
    records.write_config(folder / "cut_population", ExperimentConfig(epochs=2).model_dump(mode="json"))
    (folder / "cut_population" / "space.yaml").write_text(yaml.safe_dump(SPACE))
    (folder / "cut_population" / "population.json").write_text('{"members": {"trial_0')
    make_run(folder / "binary_space", epochs=2)
    (folder / "binary_space" / "space.yaml").write_bytes(b"\xff\xfe")
    (folder / "no_images" / "train" / "cat").mkdir(parents=True)
    (folder / "no_syntax.py").write_text("class Mine(\n")
    (folder / "no_name.py").write_text("class Mine(Objective):\n    pass\n")
    (folder / "no_copy.py").write_text("import shutil\nshutil.copyfile('file', 'file')\n")
    (folder / "broken").mkdir()
    (folder / "broken" / "only.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")


DEMO = "train --preset demo"
MINE = "train --data-dir data --batch-size 8 --backbone.name resnet_small"
CASES = {
    # arguments
    "": "a command is missing: choose one of train",
    "trian": "'trian' is no command; did you mean train?",
    "--versoin": "--versoin is not known",
    f"{DEMO} --batch-sizes 4": "--batch-sizes is not known; did you mean --batch-size?",
    f"{DEMO} --masking.slotz 4": "--masking.slotz is not known; did you mean --masking.slots?",
    f"{DEMO} --batch-size": "--batch-size needs a value: a whole number",
    f"{DEMO} --batch-size many": "--batch-size many must be a whole number",
    f"{DEMO} --optimizer.encoder-lr fast": "--optimizer.encoder-lr fast must be a number",
    f"{DEMO} --population 4 8": "'8' after 4 is not expected",
    f"{DEMO} --compile yes": "--compile takes no value, not 'yes'",
    f"{DEMO} extra": "'extra' after demo is not expected",
    f"{DEMO} --objective.hidden-dim 1000000000": "1000000000 must be less than or equal to 131072",
    f"{DEMO} --masking.width 100000000": "--masking.width 100000000 must be less than or equal to 4096",
    f"{DEMO} --population 1000000": "--population 1000000 must be less than or equal to 10000",
    "prepare --dataset objects --output out --image-size 1000000": "1000000 must be a multiple of 16 from 32 to 4096",
    "prepare --dataset objects --output out --num-images 99999999999": "must be less than or equal to 10000000",
    "doctor --seconds 5": "--seconds is for the measurement of a preset: give --preset",
    "doctor --objective vicreg --storage runs": "--objective is checked by itself: leave the other options out",
    f"{DEMO} --seed 1 --seed 2": "--seed is given twice",
    f"{DEMO} --compile --no-compile": "--compile is given twice",
    f"{DEMO} --batch-size 4 --batch_size=8": "--batch-size is given twice",
    f"{DEMO} --name=": "--name is empty: give a value, or leave it out",
    "runs --storage ''": "--storage is empty: give a value, or leave it out",
    "report run ''": "an argument is empty: give a value, or leave it out",
    "runs run": "'run' after runs is not expected: it belongs to no flag; write --storage run",
    "verify": "adios-ray verify needs PATH (Directory or URI of the data set)",
    "prepare --dataset objects": "adios-ray prepare needs --output",
    "prepare --dataset films --output out": "--dataset films is not one of imagenet100",
    "evaluate linear --rates 0.1 x --checkpoint a --data-dir data": "--rates 0.1 x must be numbers",
    "evaluate linear --rates x --checkpoint a --data-dir data": "--rates x must be numbers",
    "evaluate knn --neighbors 2.5 --checkpoint a --data-dir data": "--neighbors 2.5 must be whole numbers",
    "evaluate --checkpoint weights.safetensors": "adios-ray evaluate needs --data-dir",
    "evaluate --checkpoint a --data-dir data knn --neighbor 3": "--neighbor is not known; did you mean --neighbors?",
    "masks --checkpoint a --output out --stretch much": "--stretch much must be file or a whole number",
    "completion tcsh": "SHELL tcsh is not one of bash, zsh, fish",
    # configuration
    "train --preset dmeo": "there is no preset 'dmeo'; choose one of demo",
    f"{DEMO} --family paper": "--family paper chooses among published settings: give --preset too, one of clevr,",
    "train --preset in100s --backbone resnet50": "preset in100s: no published setting for simclr, resnet50",
    f"{DEMO} --objective simclrr": "--objective.name simclrr is not one of simclr",
    f"{DEMO} --backbone.name resnet9999": "backbone.name: timm has no model 'resnet9999'",
    f"{DEMO} --initial-weights data": "data is not a checkpoint",
    f"{DEMO} --batch-size 2147483648": "batch_size 2147483648 is more than the 4200 training images",
    f"{DEMO} --seed 99999999999999999999999": "--seed 99999999999999999999999 must be less than",
    f"{DEMO} --masking addios": "--masking.scheme addios is not one of adios",
    f"{DEMO} --scheduler PBT": "--scheduler PBT is not one of asha, median, none, pb2, pbt; did you mean pbt?",
    f"{DEMO} --precision half": "--precision half is not one of float32, bfloat16",
    f"{DEMO} --epochs 0": "--epochs 0 must be greater than or equal to 1",
    f"{DEMO} --batch-size 1": "--batch-size 1 must be greater than or equal to 2",
    f"{DEMO} --masking.slots 1": "--masking.slots 1 must be greater than or equal to 2",
    f"{DEMO} --masking.width 12": "--masking.width 12 must be a multiple of 8",
    f"{DEMO} --masking.sparsity-weight -1": "--masking.sparsity-weight -1.0 must be greater than or equal to 0",
    f"{DEMO} --optimizer.momentum 1": "--optimizer.momentum 1.0 must be less than 1",
    f"{DEMO} --image-size 72": "image size 72: the occlusion U-Net halves it 4 times",
    f"{DEMO} --objective.queue 5": "objective simclr does not use queue: leave it out",
    f"{DEMO} --masking.scheme none --masking.fill mix": "scheme none hides nothing that fill mix could replace",
    f"{DEMO} --name a/b": "--name 'a/b' must be letters",
    f"{DEMO} --name {'x' * 300}": "must be shorter: it has 300 characters of at most 128",
    f"{DEMO} --storage . --name file": "file is a file or a broken link, no run directory: remove it, or choose",
    f"{DEMO} --storage . --name dangling": "dangling is a file or a broken link, no run directory",
    f"{DEMO} --storage file": "/file is a file: name a directory",
    "report run other --output both.pdf": "--output both.pdf must end in .html",
    "masks --checkpoint a --output out --images 5": "--images 5 is a number, which is for --data-dir",
    f"{DEMO} --take-over": "--take-over needs the run to take over: give its --name, or --resume RUN",
    f"{DEMO} --name ..": "--name '..' must be letters",
    f"{DEMO} --population 1": "--population 1 leaves pbt nothing to compare: give 2 or more, or --space single",
    f"{DEMO} --masking.sparsity-weight 0": "masking.sparsity_weight must stay above 0",
    # search spaces
    f"{DEMO} --space nowhere": "search space nowhere is no file, nor one of asha_demo, ",
    f"{DEMO} --space asha-demo": "single; did you mean asha_demo?",
    f"{DEMO} --space nowhere.yaml": "search space nowhere.yaml cannot be read: No such file or directory",
    f"{DEMO} --space empty": "search space empty cannot be read: Is a directory",
    f"{DEMO} --space spaces/syntax.yaml": "search space spaces/syntax.yaml, line 2, column 18: no valid YAML",
    f"{DEMO} --space spaces/deep.yaml": "search space spaces/deep.yaml: no valid YAML: nested too deeply",
    f"{DEMO} --space spaces/list.yaml": "search space spaces/list.yaml is a list, expected a mapping of options",
    f"{DEMO} --space spaces/key.yaml": "spaces/key.yaml: unknown key 'schedulr'; did you mean scheduler?",
    f"{DEMO} --space spaces/scheduler.yaml": "spaces/scheduler.yaml: scheduler = 'pbtt' must be 'pbt', 'pb2'",
    f"{DEMO} --space spaces/bounds.yaml": "parameters.optimizer.encoder_lr: low 2.0 must be below high 1.0",
    f"{DEMO} --space spaces/scale.yaml": "optimizer.encoder_lr.scale = 'logarithmic' must be 'linear' or 'log'",
    f"{DEMO} --space spaces/path.yaml": "spaces/path.yaml: unknown configuration path 'optimizer.encoder_rate'; did",
    f"{DEMO} --space spaces/empty.yaml": "search space spaces/empty.yaml is empty, expected a mapping of options",
    f"{DEMO} --space spaces/binary.yaml": "search space spaces/binary.yaml is no text: name a YAML file",
    f"{DEMO} --space spaces/nan.yaml": "parameters.optimizer.encoder_lr.low = nan must be a finite number",
    f"{DEMO} --seed -1": "--seed -1 must be greater than or equal to 0",
    f"{DEMO} --optimizer.encoder-lr nan": "--optimizer.encoder-lr nan must be a finite number",
    f"{DEMO} --storage=": "--storage is empty: give a value, or leave it out",
    "train --preset in100s --data-dir=": "--data-dir is empty: give a value, or leave it out",
    f"{DEMO} --space spaces/nothing.yaml": "pb2 needs parameters to change: name some, or take scheduler none",
    f"{DEMO} --space spaces/twice.yaml": "spaces/twice.yaml, line 3, column 1: no valid YAML: scheduler is given twice",
    "replay --output out --run bad_config --trial trial_00": "bad_config is not a run directory",
    "prepare --dataset objects --output out --num-images -5": "--num-images -5 must be greater than or equal to 1",
    "prepare --dataset objects --output file --num-images 50": "file cannot be read: Not a directory",
    f"{DEMO} --space spaces/range.yaml": "masking.slots = 1 must be greater than or equal to 2",
    f"{DEMO} --space spaces/option.yaml": "spaces/option.yaml: grace_epochs is for asha and median, not for pbt",
    f"{DEMO} --space spaces/fixed.yaml": "masking.width cannot change while a trial trains, so pbt cannot search it",
    f"{DEMO} --space spaces/empty_key.yaml": "spaces/empty_key.yaml: parameters is missing",
    f"{DEMO} --space spaces/list_key.yaml": "spaces/list_key.yaml, line 2, column 3: no valid YAML: a key must be",
    f"{DEMO} --space spaces/mapping_key.yaml": "spaces/mapping_key.yaml, line 1, column 1: no valid YAML: a key must",
    f"{DEMO} --space spaces/number.yaml": "spaces/number.yaml: ",
    f"{DEMO} --space spaces/common.yaml": "data_dir must be the same for all trials, so it cannot be searched",
    f"{DEMO} --space spaces/backbones.yaml": "backbone.name = resnet9999 of the search space: ",
    f"{DEMO} --space spaces/batches.yaml": "batch_size = 10000 of the search space: batch_size 10000 is more than",
    f"{MINE} --space spaces/backbones.yaml": "backbone.name = resnet9999 of the search space: ",
    f"{DEMO} --evaluation.fitness lidar": "evaluation.fitness lidar needs no labels, and pbt cannot select by it",
    f"{DEMO} --evaluation.fitness rankme --scheduler asha": "evaluation.fitness rankme needs no labels, and asha",
    f"{DEMO} --evaluation.fitness lidar --scheduler none --search hyperopt": "hyperopt cannot select by it",
    f"{DEMO} --search grid": "search grid cannot be combined with pbt",
    # data
    "train": "no data: choose --preset demo",
    "train --preset in100s": "in100s needs --data-dir: make it with `adios-ray prepare --dataset imagenet100s --source",
    "train --data-dir nowhere": "/nowhere (manifest.json is missing): run adios-ray prepare",
    "train --data-dir no_manifest": "/no_manifest (manifest.json is missing): run adios-ray prepare",
    "train --data-dir bad_manifest": "/bad_manifest/manifest.json is not a manifest: not JSON: EOF",
    "train --data-dir no_test": "no_test has no 'test' split (it has train, val); prepare it with one",
    "train --data-dir damaged": "val-00000.arrow",
    "train --data-dir incomplete": "test-00000.arrow is missing",
    "train --data-dir data --backbone.name resnet_small --batch-size 64": "batch_size 64 is more than the 24",
    f"{MINE} --workers-per-trial 3": "batch_size 8 cannot be shared evenly by workers_per_trial 3",
    f"{MINE} --workers-per-trial 2 --gpus-per-worker 0.5": "each of a trial's 2 workers needs a whole GPU",
    f"{MINE} --gpus-per-worker 1.5": "must be a part of one GPU, or whole ones",
    f"{MINE} --cuda-graphs --workers-per-trial 2": "cuda_graphs needs one worker for each trial",
    f"{MINE} --cuda-graphs --objective mocov2 --micro-batch-size 4": (
        "cuda_graphs: mocov2 with micro_batch_size draws random numbers"
    ),
    "train --data-dir newer": "newer/manifest.json has schema version 3, not 2 or 1. It was made by a newer adios_ray",
    "verify newer": "newer/manifest.json has schema version 3, not 2 or 1. It was made by a newer adios_ray",
    "verify ~nobody-of-this-name/data": "~nobody-of-this-name/data: there is no such home directory",
    "prepare --dataset folder --source no_images --output out --image-size 32": "no images in",
    "prepare --dataset folder --source broken --output out --image-size 32 --val-images 0 --test-images 0": (
        "1 of 1 images were refused, more than 1.00% (only.jpg: "
    ),
    "prepare --dataset folder --source broken --output out --image-size 32 --val-images 0 --test-images 0 "
    "--on-bad-image fail": "only.jpg was refused: ",
    "prepare --dataset objects --output out --num-images 50 --train-images 100": "100 images asked for train, but",
    "verify nowhere": "/nowhere (manifest.json is missing): run adios-ray prepare",
    "verify data/manifest.json": "is a file, no data set: name the directory that has manifest.json",
    "verify incomplete": "test-00000.arrow is missing",
    "prepare --dataset folder --output out --image-size 32": "--dataset folder needs --source, the folder of images",
    "prepare --dataset folder --source nowhere --output out --image-size 32": "nowhere is not a folder",
    "prepare --dataset folder --source images --output out --image-size 32": "/images (looked for .jpg .jpeg .jpe ",
    "prepare --dataset folder --source images --output out --image-size 33": "--image-size 33 must be a multiple of 16",
    "prepare --dataset stl10 --source empty --output out": "/empty lacks train_X.bin, test_X.bin, unlabeled_X.bin",
    "prepare --dataset objects --output out --num-images 5": "--num-images 5 must be at least 10",
    # checkpoints
    f"{MINE} --initial-weights nowhere": "weights nowhere do not exist",
    f"{MINE} --initial-weights weights.safetensors": "weights.safetensors is not a safetensors file, or a damaged one",
    "evaluate --checkpoint nowhere --data-dir data": "weights nowhere do not exist",
    "evaluate --checkpoint checkpoint --data-dir data": "checkpoint is not a checkpoint of a run, as it has",
    "export --checkpoint weights.safetensors --output out.safetensors": "weights.safetensors is not a safetensors file",
    "export --checkpoint nowhere --output out.safetensors": "weights nowhere do not exist",
    "evaluate --checkpoint other.pt --data-dir data": "other.pt is not a safetensors file, or a damaged one",
    "evaluate --checkpoint other.safetensors --data-dir data": "other.safetensors is no weights file of adios_ray",
    "evaluate --checkpoint data --data-dir data": "data is not a checkpoint of a run, as it has no meta.json",
    "evaluate --checkpoint a --data-dir data --output taken.json": "--output taken.json is a directory; name a file",
    "export --checkpoint a --output taken.onnx": "--output taken.onnx is a directory; name a file",
    "export --checkpoint a --output file/out.onnx": "--output file/out.onnx cannot be written: ",
    "import-official empty --output taken.safetensors": "--output taken.safetensors is a directory; name a file",
    "report run run --output empty --images 0": "--output empty is a directory; name a file",
    "masks --checkpoint a --data-dir data --output masks.gif": "--output masks.gif must end in .png",
    "masks --checkpoint a --data-dir data --images 9 --output m.png": "--images 9 is more than the 8 validation images",
    "masks --checkpoint a --data-dir data --output taken.png": "--output taken.png is a directory; name a file",
    "import-official nowhere --output out.safetensors": "nowhere has no args.json: name a folder of the",
    "import-official empty --output out.safetensors": "empty has no args.json: name a folder of the",
    "masks --checkpoint nowhere --images images --output out": "weights nowhere do not exist",
    "export --checkpoint weights.safetensors --output weights.safetensors": "would change weights.safetensors,",
    "evaluate --checkpoint a --data-dir data --output data/r.json": "--output data/r.json would change data, which",
    "evaluate robustness --checkpoint a --data-dir data --variation b=no_test --output no_test/r.json": (
        "--output no_test/r.json would change no_test, which is read"
    ),
    "masks --checkpoint a --data-dir data --output data/m.png": "--output data/m.png would change data, which is read",
    "masks --checkpoint made.safetensors --images photo.png --output made.safetensors": "would change made.safetensors",
    "masks --checkpoint made.safetensors --images photo.png --output file": "--output file cannot be written: ",
    "masks --checkpoint made.safetensors --images photo.png --output /proc/m": "/proc/m cannot be written: /proc: No",
    "report run bad_run --output run/report.html": "--output run/report.html would change run, which is read",
    "export --checkpoint s3://b/a/ --output S3://b/a/e.safetensors": "S3://b/a/e.safetensors would change s3://b/a/,",
    "export --checkpoint a --output other.safetensors": "other.safetensors is there already, and of another kind",
    "export --checkpoint a --output old.onnx": "old.onnx is there already, and of another kind",
    "export --checkpoint a --output made.safetensors": "made.safetensors is there already, and of another kind",
    "import-official empty --output other.safetensors": "other.safetensors is there already, and of another kind",
    "evaluate --checkpoint a --data-dir data --output made.safetensors": "is there already, and of another kind",
    "evaluate --checkpoint a --data-dir data --output r.txt": "--output r.txt must end in .json",
    "evaluate --checkpoint a --data-dir data --output schedule.json": "schedule.json is there already, and of another",
    "masks --checkpoint a --data-dir data --output photo.png": "photo.png is there already, and of another kind",
    "report run run --output old.html": "old.html is there already, and of another kind: remove it, or name another",
    "masks --checkpoint a --data-dir data --output m.png --max-pixels 9": "--max-pixels is for --images; --data-dir",
    "masks --checkpoint nowhere --output out": "give --images, files or folders of images, or --data-dir",
    "reproduce nowhere": "is not the dump of a step that diverged",
    "reproduce run": "run is not the dump of a step that diverged: give the folder of one, RUN/diverged/TRIAL/epoch_",
    "reproduce weights.safetensors": "weights.safetensors is not the dump of a step that diverged: give the folder of",
    # runs
    "train --resume nowhere": "nowhere is not a run directory: it has no config.json",
    "train --resume empty": "empty is not a run directory: it has no config.json",
    "train --resume bad_config": "bad_config/config.json: epochs = 'many' must be a whole number",
    "train --resume run --name other": "--resume names the run directory: leave out --name and --storage",
    "train --resume run": "run is not a run directory: it has no population.json",
    "replay --output out": "give either --schedule FILE, or --run DIRECTORY with --trial NAME",
    "replay --output out --schedule schedule.json --trial trial_00": "give either --schedule FILE, or --run DIRECTORY",
    "replay --output out --run run --trial trial_00 --threads 0": "--threads 0 must be greater than or equal to 1",
    "replay --output out --run run --trial trial_00 --epochs 0": "--epochs 0 must be greater than or equal to 1",
    "replay --output out --schedule nowhere.json": "nowhere.json does not exist",
    "replay --output out --schedule schedule.json": "; a finished run's is RUN/schedule.json",
    "replay --output out --run run": "--run needs --trial",
    "report": "name at least one run directory",
    "report nowhere": "nowhere is not a run directory",
    "report bad_run --images 0": "bad_run/results.csv",
    "report binary_run --images 0": "binary_run/results.csv is damaged: no text at byte 0",
    "report binary_space --images 0": "binary_space/space.yaml is no valid YAML",
    "report bad_lineage --images 0": "bad_lineage/lineage.jsonl, line 1: not JSON",
    "report empty": "empty is not a run directory: it has no config.json",
    "train --resume cut_population": "cut_population/population.json: not JSON",
    "runs --storage file": "--storage file is no directory",
    "runs --storage nowhere": "--storage nowhere is no directory",
    "report a b --output s3://bucket/a.html --open": "--open s3://bucket/a.html is a URI",
    "report s3://bucket/run --open": "--open s3://bucket/run is a URI; only a local path can be used here",
    # cluster, disk, trackers
    f"{MINE} --storage file/runs": "file/runs cannot be written to: Not a directory",
    f"{MINE} --storage ~nobody-of-this-name/runs": "~nobody-of-this-name/runs: there is no such home directory",
    f"{MINE} --storage nope://bucket/runs": "nope://bucket/runs cannot be reached: Protocol not known: nope",
    f"{MINE} --storage s3:// --name a": "names no bucket: write s3://BUCKET/FOLDER",
    "verify \udcff": "/\\xff' is not UTF-8: rename the file or folder",
    "verify s3://": "s3:// names no bucket",
    "evaluate --checkpoint s3://bucket --data-dir data": "s3://bucket names a whole bucket: write s3://bucket/NAME",
    f"{MINE} --storage s3:/bucket/runs": "write s3://bucket/runs",
    f"{MINE} --wandb maybe": "--wandb maybe is not one of off, offline, online",
    f"{MINE} --wandb online": "wandb online needs a login",
    f"{MINE} --trackers jsonl jsonl": "must not contain a name twice",
    f"{MINE} --trackers mlflow": "--trackers mlflow is not one of tensorboard, jsonl",
    "doctor --objective vicregg": "--objective vicregg is not one of simclr",
    "doctor --objective json:dumps": "json has no subclass of Objective of the name 'dumps'",
    "doctor --objective nowhere:Mine": "nowhere cannot be imported: ModuleNotFoundError: No module named 'nowhere'\n",
    "doctor --objective ./unfinished.py:Mine": "--objective ./unfinished.py:Mine: MODULE:CLASS is a module's dotted",
    "doctor --objective :Mine": "--objective :Mine: MODULE:CLASS is a module's dotted name",
    "doctor --objective no_syntax:Mine": "SyntaxError: '(' was never closed (no_syntax.py, line 1)",
    "doctor --objective no_name:Mine": "NameError: name 'Objective' is not defined (",
    "doctor --objective no_copy:Mine": "no_copy cannot be imported: SameFileError: 'file' and 'file' are",
    "doctor --seconds -1": "--seconds -1.0 must be greater than or equal to 0",
}


def contents(folder: Path) -> set[str]:
    """List all files and folders."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("line", CASES)
@pytest.mark.slow
def test_a_wrong_use_is_one_line(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_worker(*_: object, **__: object) -> NoReturn:
        pytest.fail("Ray was started")

    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # of modules that a command imports
    monkeypatch.setattr("ray.init", no_worker)
    monkeypatch.setattr("adios_ray.tracking.trackers.wandb.check_login", cli_without_login)
    before = contents(place)
    status = main(shlex.split(line))
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert CASES[line] not in line, "a message that repeats the line names no reason"
    assert CASES[line] in said and "input_value" not in said and "Errno" not in said
    assert status == 2 and contents(place) == before


def cli_without_login() -> None:
    """Refuse as where there is no token, without looking for the developer's own."""
    from adios_ray.errors import ConfigError

    raise ConfigError("wandb online needs a login: run `wandb login` or set WANDB_API_KEY")


def test_a_user_without_a_home_directory_is_told_to_set_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless(path: Path) -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert main(["train", "--preset", "demo"]) == 2
    assert capsys.readouterr().err == ("error: ~: there is no such home directory: write the whole path, or set HOME\n")


@pytest.mark.slow
def test_a_run_that_another_process_writes_is_left_to_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "cut_population"
    with claimed(Store(run), print, TRAINING):
        before = contents(place)
        assert main(["train", "--resume", str(run)]) == 1 and contents(place) == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"error: {run} is being trained by process " in said and "stop it first" in said


@pytest.mark.parametrize(
    ("cache", "reason"), [("file", "Not a directory"), ("~nobody-of-this-name", "there is no such home directory")]
)
@pytest.mark.slow
def test_a_cache_that_cannot_be_used_is_named_before_any_work(
    cache: str, reason: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = Networks(small_config(Path("data")), 32, 10)
    save_weights(place / "good.safetensors", Weights(networks.config, 32, 10, "a test", networks.state_dict()))
    monkeypatch.chdir(place)
    monkeypatch.setenv(CACHE_VARIABLE, cache)
    monkeypatch.setattr("adios_ray.evaluation.features.extract_features", lambda *_: pytest.fail("extracted"))
    before = contents(place)
    assert main("evaluate knn --checkpoint good.safetensors --data-dir data --neighbors 5".split()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and reason in said and CACHE_VARIABLE in said and contents(place) == before


@pytest.mark.parametrize("line", [example for lines in EXAMPLES.values() for example in lines] + list(FIRST_STEPS))
@pytest.mark.slow
def test_every_example_of_the_help_is_a_command(line: str) -> None:
    program, command, *words = line.partition(">")[0].split()
    assert program == cli.PROGRAM
    if command != "train":
        parse_arguments(Command, [command, *words])
    elif "--resume" not in words:  # which needs the run
        read_arguments("", words, "pbt_in100", "pbt_demo")


@pytest.mark.slow
def test_completion_knows_commands_and_the_settings_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("--masking.slots", "import-official", "doctor", "in100s"))
    function = re.findall(r"^complete -o default -F (\w+) adios-ray$", script, re.MULTILINE)[0]

    def candidates(line: str) -> list[str]:
        words = line.split(" ")
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; {function}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        asked = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        return asked.stdout.split("\n")[:-1]

    assert candidates("adios-ray train --pres") == ["--preset"]
    assert set(candidates("adios-ray train --preset in100")) == {"in100", "in100s"}
    assert candidates("adios-ray evaluate --check") == ["--checkpoint"]
    assert candidates("adios-ray report runs/p") == [""]  # of no candidate; bash then completes the path


def test_runs_are_listed_with_state_and_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "done", trials=2, epochs=2)
    make_run(tmp_path / "cut", trials=2, epochs=1)
    (tmp_path / "cut" / "summary.json").unlink()
    make_run(tmp_path / "broken", trials=2, epochs=1)
    (tmp_path / "broken" / "results.csv").write_text("a,b\n1,2\n")
    assert main(["runs", "--storage", str(tmp_path)]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["done"].startswith("finished, best trial_0") and " on test, 0 s ago" in lines["done"]
    assert lines["cut"].startswith("interrupted, best trial_0") and " on val, " in lines["cut"]
    assert lines["broken"].startswith("damaged, ") and "results.csv" in lines["broken"]
    assert main(["runs", "--storage", str(tmp_path / "done")]) == 2
    advice = f"--storage {tmp_path}/done is a run: name the directory that holds it, {tmp_path}"
    assert capsys.readouterr().err == f"error: {advice}\n"


def test_one_odd_folder_hides_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good", "unknown", "text", "unreadable"):
        make_run(tmp_path / name, trials=2, epochs=1)
    records.write_config(tmp_path / "unknown", {"evaluation": {"fitness": "beauty"}})
    records.write_config(tmp_path / "text", {"evaluation": "x"})
    (tmp_path / "unreadable" / "results.csv").unlink()
    (tmp_path / "unreadable" / "results.csv").mkdir()
    (tmp_path / "model").mkdir()
    records.write_config(tmp_path / "model", {"architectures": ["ResNetModel"], "evaluation": "x"})
    assert main(["runs", "--storage", str(tmp_path)]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == {"good", "unknown", "text", "unreadable"}
    assert lines.pop("good").startswith("finished, ")
    assert all(line.startswith("damaged, ") for line in lines.values())
    assert "'beauty' is not one of knn, probe, " in lines["unknown"] and "text/config.json: evaluation" in lines["text"]
    assert "unreadable/results.csv" in lines["unreadable"]


def test_a_cluster_that_does_not_answer_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> NoReturn:
        raise ConfigError("the cluster does not answer")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "connected", refuse)
    assert main(["train", "--preset", "demo"]) == 2
    assert "the cluster does not answer" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_doctor_marks_a_missing_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert main(["doctor", "--data-dir", "nowhere"]) == 1
    captured = capsys.readouterr()
    assert f"! data: no data set in {tmp_path}/nowhere" in captured.out and "1 problem, marked with !" in captured.err


def test_runs_at_a_uri_are_listed_as_local_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = MemoryFileSystem()
    for name in ("done", "alive", "cut"):
        make_run(tmp_path / name, trials=2, epochs=1)
        if name != "done":
            (tmp_path / name / "summary.json").unlink()
            (tmp_path / name / TRAINING.file).write_text(Holder(token="token").model_dump_json())
    remote.put(str(tmp_path), "/runs", recursive=True)
    try:
        remote.pipe_file("/runs/objects/manifest.json", b"{}")  # a data set is no run
        for file in ("results.csv", TRAINING.file):
            remote.store[f"/runs/cut/{file}"].modified = datetime.now(UTC) - timedelta(hours=2)
        assert main(["runs", "--storage", "memory://runs"]) == 0
    finally:
        remote.rm("/runs", recursive=True)
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == {"done", "alive", "cut"}
    assert lines["done"].startswith("finished, best trial_0") and lines["alive"].startswith("running, ")
    assert lines["cut"].startswith("interrupted, ") and lines["cut"].endswith("2 h 0 min ago")


def test_a_run_needs_the_cores_seconds_of_its_trials() -> None:
    config = ExperimentConfig(epochs=10, population=4)
    step = StepCost(seconds_per_image=0.36, state_bytes=5, memory_bytes=7)
    assert needs(config, 100, step, [Node(2, 0)]) == pytest.approx((0.2, 28, 40, 4))
    assert needs(config, 100, step, [Node(16, 2)]) == pytest.approx((0.2, CONTEXT_BYTES + 7, 40, 2))
    shared = config.model_copy(update={"gpus_per_worker": 0.25})  # of a card, each trial may use a quarter
    assert needs(shared, 100, step, [Node(16, 1)]).memory_bytes == pytest.approx(4 * (CONTEXT_BYTES + 7))
