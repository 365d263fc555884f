"""Which training steps cannot be recorded as CUDA graphs; ``test_gpu.py`` records those that can."""

import pytest
from test_step import make_config, make_players
from timm.layers import DropPath
from torch import nn

from adios_ray.config import replaced
from adios_ray.errors import ConfigError
from adios_ray.training.graphs import check_recordable


@pytest.mark.parametrize("module", [nn.Dropout, DropPath])
def test_networks_that_draw_random_numbers_are_not_recorded(module: type[nn.Module]) -> None:
    networks, _ = make_players(make_config())
    networks.backbone.add_module("drop", module(0.0))  # draws nothing
    check_recordable(networks, 1)
    networks.backbone.add_module("drop", module(0.1))
    with pytest.raises(ConfigError, match=r"^cuda_graphs: backbone\.drop draws random numbers, which a recording"):
        check_recordable(networks, 1)


def test_an_objective_that_shuffles_micro_batches_is_not_recorded() -> None:
    config = make_config("mocov2")
    check_recordable(make_players(config)[0], 1)
    networks, _ = make_players(replaced(config, {"micro_batch_size": 2}))
    with pytest.raises(ConfigError, match=r"^cuda_graphs: mocov2 with micro_batch_size draws random numbers"):
        check_recordable(networks, 1)


def test_a_step_of_several_workers_is_not_recorded() -> None:
    networks, _ = make_players(make_config())
    check_recordable(networks, 1)
    with pytest.raises(ConfigError, match="^cuda_graphs needs one worker for each trial: leave cuda_graphs out"):
        check_recordable(networks, 2)
