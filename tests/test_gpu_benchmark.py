"""The rows of ``benchmarks/gpu.py`` and its idle share, checked without a GPU."""

import pytest
import torch
from gpu import Options, config_of, idle_share, rows_of, title


@pytest.mark.parametrize("full", [False, True])
def test_every_row_is_a_valid_training_with_a_name_of_its_own(full: bool) -> None:
    rows = rows_of(Options(full=full), torch.device("cuda"))
    configs = {config_of(row, torch.device("cuda")).model_dump_json() for row in rows}
    assert len(rows) == len(configs) == len({title(row) for row in rows}) > 20


def test_what_streams_do_at_the_same_time_counts_once() -> None:
    # Busy from 1 to 4 and from 6 to 7, of the time from 1 to 7.
    assert idle_share([(1, 3), (1.5, 2), (2, 4), (6, 7)]) == pytest.approx(2 / 6)
