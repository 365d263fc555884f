"""What the documents name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "adios_ray"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_walks_of_the_architecture_name_functions_that_exist() -> None:
    rows = re.findall(r"^\| (`\w+/[^|]*) \| ([^|]*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    walks = [cell for row in rows for cell in row if ".py`" in cell]
    assert len(walks) >= 15
    for cell in walks:
        for file, functions in re.findall(r"`([\w/]+\.py)`((?:,? `\w+`)*)", cell):
            source = (PACKAGE / file).read_text()
            for function in re.findall(r"`(\w+)`", functions):
                assert re.search(rf"def {function}\(", source), f"{file} has no {function}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_a_document_exist(document: Path) -> None:
    text = document.read_text()
    named = re.findall(r"`((?:adios_ray|experiments|benchmarks|tests|search_spaces|docs)/[\w./-]+)`", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (document.parent / link).exists()]
    assert not missing
