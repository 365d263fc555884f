"""Parts that the report's figures share: colors, text, layout and axes."""

import html
from typing import Any

Figure = dict[str, Any]

PALETTE = ("#0077bb", "#ee7733", "#009988", "#ee3377", "#33bbee", "#aa4499", "#bbaa22", "#cc3311")
GRAY = "#9aa0a6"


def plotly_text(text: str) -> str:
    """Escape text so that plotly shows it literally, neither as markup nor as a template."""
    return html.escape(text).replace("%", "&#37;")


def figure_layout(height: int, **more: Any) -> Figure:
    """Make a layout of this height in pixels, with narrow margins and without a legend."""
    margin = {"l": 8, "r": 14, "t": 10, "b": 8}
    return {"height": height, "margin": margin, "showlegend": False, "hovermode": "closest", **more}


def epochs_to(last: int, ticks: int) -> Figure:
    """Make an axis of epochs from 0 to the last, with at most so many ticks, which stand at whole epochs."""
    # The same explicit range everywhere, so that epochs line up between charts; plotly would fit each to its own data.
    steps = (mantissa * 10**decade for decade in range(9) for mantissa in (1, 2, 5))
    step = next(step for step in steps if last <= ticks * step)
    axis = {"title": {"text": "epoch", "standoff": 6}, "tickformat": "d", "zeroline": False, "automargin": True}
    return {**axis, "range": [-0.01 * last, 1.025 * last], "dtick": step}


def value_axis(**more: Any) -> Figure:
    """Make a vertical axis."""
    return {"zeroline": False, "automargin": True, "nticks": 7, **more}
