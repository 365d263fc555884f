"""The report in a real browser: headless Chromium, where there is one."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Tab, opened_tab
from made_up_run import MadeUpRun, make_run
from small import small_config
from waiting import until

from adios_ray.tracking import decisions, records
from adios_ray.tracking.decisions import Refusal
from adios_ray.tracking.report import inspection
from adios_ray.tracking.report.comparison import write_comparison
from adios_ray.tracking.report.inspection import inspect_best, read_inspection
from adios_ray.tracking.report.page import write_report
from adios_ray.tracking.report.run_data import read_run
from adios_ray.training.trainer import Trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt-get install chromium"),
]
WIDTHS = (360, 400, 1280, 2560)

CONTRAST = """(() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const low = [], texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || element.closest("svg") || !element.checkVisibility()) continue;
    const [a, b] = [rgba(getComputedStyle(element).color), behind(element)].map(luminance).sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(texts.currentNode.textContent.trim().slice(0, 40));
  }
  return low;
})()"""
"""Lists the texts whose contrast to what is behind them is below 4.5 to 1 (WCAG 2, level AA)."""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    """Start one browser for all tests of this file."""
    with opened_tab() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, objects_dir: Path) -> Path:
    """Write the report of a finished run with every section: refused copies, masks and features included."""
    run_dir = tmp_path_factory.mktemp("runs") / "everything"
    make_run(run_dir)
    run = read_run(run_dir)
    assert run.best is not None
    exploit = run.exploits[0]
    refusal = Refusal(time=exploit.time, epoch=5, trial="trial_01", donor="trial_00", difference=0.01, z=0.5, p=0.4)
    decisions.append_decision(run_dir, refusal)
    config = small_config(objects_dir)
    records.write_config(run_dir, {"seed": 0, "data_dir": str(objects_dir)})
    Trainer(config, torch.device("cpu")).save(run_dir / "checkpoints" / run.best[0] / "epoch_00012")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "VERSION", 1)
        inspect_best(read_run(run_dir), 24, said.append)
    for images in (24, 400, 24, 24):  # val has 40; kept the last time, but not of another version or number
        inspect_best(read_run(run_dir), images, said.append)
    expected = [f"features of {images}" for images in (24, 24, 40, 24)]
    assert [line.partition(" validation")[0] for line in said] == expected
    return write_report(run_dir)


def test_every_plot_is_drawn_and_no_width_scrolls_sideways(tab: Tab, page: Path) -> None:
    tab.problems.clear()
    tab.requests.clear()
    tab.open(page, WIDTHS[0])
    assert tab.problems == []
    assert [url for url in tab.requests if not url.startswith(("data:", "blob:"))] == [page.resolve().as_uri()]
    drawn = set(tab.run("Object.keys(page.charts)"))
    assert {"fitness", "parallel", "importance", "lineage", "survival", "slots", "time", "map", "confusion"} <= drawn
    marks = ".scatterlayer path, .barlayer path, .heatmaplayer image, .shapelayer path"
    empty = f"[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('{marks}')).map(c => c.id)"
    assert tab.run("document.querySelectorAll('.chart').length") == len(drawn) and tab.run(empty) == []
    tab.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for width in WIDTHS:
        tab.resize(width)
        assert tab.run(
            "[innerWidth, document.documentElement.scrollWidth <= document.documentElement.clientWidth]"
        ) == [
            width,
            True,
        ]
        wide = "[...document.querySelectorAll('.chart')].filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.id)"
        assert tab.run(wide) == []
        seen = "t.checkVisibility({opacityProperty: true, visibilityProperty: true})"
        ticks = f"[...document.querySelectorAll('#chart-time .xtick text')].filter(t => {seen}).map(t => t.textContent)"
        assert tab.run(ticks)[-1] == "100%"
    assert tab.run("document.querySelectorAll('#chart-time .legend').length") == 0  # it would scroll on narrow screens
    assert tab.run("document.getElementById('time-parts').textContent").startswith("trainingwaiting for data")
    for dark in (False, True):
        tab.resize(1280, dark=dark)
        assert tab.run(CONTRAST) == []


def test_controls_work_by_keyboard(tab: Tab, page: Path) -> None:
    tab.problems.clear()
    tab.open(page, 1280)
    # Every control is reached by the Tab key, in the order of the page.
    reached = []
    for _ in range(200):
        tab.press("Tab", 9)
        name = tab.run(
            "document.activeElement.id || document.activeElement.dataset.trial || document.activeElement.tagName"
        )
        if name == "BODY":
            break
        reached.append(name)
    controls = ["theme", "trial_00", "decision-before", "decision-after", "mask-epoch", "map-masked"]
    assert [name for name in reached if name in controls] == controls
    # The slider shows another epoch's masks.
    before = tab.run("document.getElementById('sheet').src")
    tab.run("document.getElementById('mask-epoch').focus()")
    tab.press("ArrowLeft", 37)
    assert tab.run("document.getElementById('sheet').src") != before
    assert tab.run("document.getElementById('sheet-text').textContent").startswith("epoch 11, ")
    # A trial is highlighted and released.
    faint = "document.querySelector('#chart-fitness').data.filter(t => t.opacity === 0.12).length"
    tab.run("document.querySelector('[data-trial=trial_01]').click()")
    assert tab.run(faint) == 3
    tab.run("document.querySelector('[data-trial=trial_01]').click()")
    assert tab.run(faint) == 0
    # Decisions are told one by one, with what changed.
    tab.run("document.getElementById('decision-after').click()")
    first = tab.run("document.getElementById('decision-text').textContent")
    assert first.startswith("1 of 5: epoch 3: ") and "N " in first
    assert tab.run("document.querySelectorAll('#chart-lineage .hoverlayer .hovertext').length") == 1
    # Masked versions leave the map.
    tab.run("document.getElementById('map-masked').click()")
    assert tab.run("document.querySelector('#chart-map').data.filter(t => t.masked && t.visible !== false).length") == 0
    # The theme changes the colors of page and charts.
    color = (
        "getComputedStyle(document.body).backgroundColor + document.querySelector('#chart-fitness').layout.font.color"
    )
    light = tab.run(color)
    tab.run("document.getElementById('theme').click()")
    assert tab.run(color) != light
    # A point of the map shows its image.
    tab.run("document.getElementById('chart-map').scrollIntoView({block: 'center'})")
    at = "JSON.parse(JSON.stringify(document.querySelector('#chart-map .points path').getBoundingClientRect()))"
    box = tab.run(at)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def shown() -> object:
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + time.monotonic() % 1, y=y)
        return tab.run("Boolean(document.querySelector('.peek:not([hidden])'))")

    until(shown)
    assert tab.run("getComputedStyle(document.querySelector('.peek')).backgroundImage").startswith("url(")
    assert tab.problems == []


@pytest.mark.parametrize("reports", [0, 1])
def test_runs_that_have_just_begun_have_no_errors(tab: Tab, tmp_path: Path, reports: int) -> None:
    run = MadeUpRun(tmp_path, trials=2, epochs=reports)
    run.write()
    tab.problems.clear()
    tab.open(write_report(tmp_path), 360)
    assert tab.problems == [] and tab.run("document.documentElement.scrollWidth") <= 360


def test_a_comparison_is_drawn(tab: Tab, page: Path, tmp_path: Path) -> None:
    tab.problems.clear()
    run = read_run(page.parent)
    other = replace(run, config={"optimizer": {"name_of_a_setting_with_a_long_path": "a long value " * 3}})
    tab.open(write_comparison([run, other], tmp_path / "comparison.html"), 360)
    assert tab.problems == [] and tab.run("document.documentElement.scrollWidth") <= 360
    assert tab.run("document.querySelectorAll('#chart-fitness .scatterlayer .trace').length") == 2
    inside = "getComputedStyle(c).display !== 'none' && c.getBoundingClientRect().right <= innerWidth"
    assert tab.run(f"[...document.querySelectorAll('.differences td')].every(c => {inside})")


def test_an_inspection_is_of_the_right_things(page: Path) -> None:
    found = read_inspection(page.parent)
    assert found is not None
    slots = found.harm.shape[1]
    assert found.thumbnails.shape == (24, 32, 32, 3) and found.points.shape == (24, 2) and slots > 0
    assert found.masked_points.shape == (24, slots, 2) and found.picked_masks.shape == (12, slots, 32, 32)
    mean = found.harm.mean(axis=1)
    assert mean[found.picked[0]] == mean.max() and mean[found.picked[6]] == mean.min()
    assert all(query not in nearest for query, nearest in enumerate(found.neighbors.tolist()))
    assert (found.spectrum[:-1] >= found.spectrum[1:]).all() and 1 <= found.info.rank <= 24
    assert ((found.predicted >= 0) & (found.predicted < len(found.info.classes))).all()
