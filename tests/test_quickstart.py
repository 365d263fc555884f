"""The notebook runs from its first cell to its last, and reads as it was committed."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import ray
from nbclient import NotebookClient
from PIL import Image

import adios_ray

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "quickstart.ipynb"


def pictures(notebook: Any) -> Iterator[np.ndarray]:
    """Decode the pictures among a notebook's outputs."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if encoded := output.get("data", {}).get("image/png"):
                yield np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"))


def printed(notebook: Any) -> str:
    """Join what a notebook's cells printed."""
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def test_the_committed_notebook_has_been_run_and_is_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(list(pictures(notebook))) == 2 and "on validation" in printed(notebook)
    assert NOTEBOOK.stat().st_size < 1_500_000 and "/tmp" not in NOTEBOOK.read_text()


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_the_notebook_trains_evaluates_and_shows_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The cluster of all tests: to start another one takes seconds.
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (run_dir,) = (tmp_path / "runs").glob("pbt_demo-*")
    run = adios_ray.load_run(run_dir)
    table, summary = run.results.to_pandas(), run.summary
    assert set(table.trial) == {f"trial_0{i}" for i in range(4)} and (table.groupby("trial").epoch.max() == 6).all()
    assert summary is not None and run.best_checkpoint.is_dir()
    assert f"{summary.best_trial}: fitness {summary.best_fitness:.3f} on validation" in printed(notebook)
    assert re.search(r"'top1': '0\.\d+ ± ", printed(notebook)) and "torch.Size([2, 128])" in printed(notebook)
    shown = list(pictures(notebook))
    assert len(shown) == 2 and all(picture.std() > 10 for picture in shown)
