"""A training step as one CUDA graph: the device runs its kernels without waiting for the host to launch them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from adios_ray import parallel
from adios_ray.config import TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.errors import ConfigError
from adios_ray.models.networks import Networks
from adios_ray.training.optimizers import Optimizers
from adios_ray.training.step import StepResult, momentum_rate, train_step, update_networks

WARM_UP_STEPS = 3
"""Steps before the recording, in which kernels are compiled and chosen, and optimizers make their state."""


class GraphedStep:
    """Takes the first steps one kernel at a time, then records a step, then replays it.

    What may differ from step to step is copied into the recording's own tensors: the batch, the learning rates and the
    rate of the momentum networks. Anything else (other values of the configuration, other state of the optimizers)
    needs a new instance.
    """

    def __init__(self, networks: Networks, optimizers: Optimizers, config: TrialConfig) -> None:
        """Check that a step can be recorded.

        Raises:
            ConfigError: If it cannot; says why.
        """
        check_recordable(networks, parallel.world_size())
        self.networks, self.optimizers, self.config = networks, optimizers, config
        self._stream = _recording_stream(networks.probe.weight.device)
        self._graph, self._steps = torch.cuda.CUDAGraph(), 0
        self._groups = [group for own in optimizers.all().values() for group in own.param_groups]
        self._rates: Tensor
        self._batch: Batch
        self._result: StepResult

    def __call__(self, batch: Batch, progress: float) -> StepResult:
        """Take a step, as ``train_step`` does; the result is overwritten by the next one."""
        rates = [*(float(group["lr"]) for group in self._groups), momentum_rate(self.networks, progress)]
        self._steps += 1
        if self._steps <= WARM_UP_STEPS:
            # On the stream of the recording: autograd remembers the streams on which gradients are accumulated.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                result = update_networks(self.networks, self.optimizers, batch, self.config, rates[-1])
            torch.cuda.current_stream().wait_stream(self._stream)
            return result
        given = torch.tensor(rates).pin_memory()
        if self._steps == WARM_UP_STEPS + 1:
            self._rates = given.to(batch.a.device)
            tensors = {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}
            own: dict[str, Any] = {name: value.clone() for name, value in tensors.items()}
            self._batch = batch._replace(**own)
            self._record()
        self._rates.copy_(given, non_blocking=True)
        for recorded, value in zip(self._batch, batch, strict=True):
            if isinstance(recorded, Tensor) and isinstance(value, Tensor):
                recorded.copy_(value)
        self._graph.replay()
        return self._result

    def _record(self) -> None:
        """Record a step that reads the instance's own batch and rates; nothing is computed."""
        kept = [dict(group) for group in self._groups]
        for group, rate in zip(self._groups, self._rates[:-1], strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        # Of this thread alone: the loader's may allocate pinned memory meanwhile.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._result = update_networks(self.networks, self.optimizers, self._batch, self.config, self._rates[-1])
        for group, before in zip(self._groups, kept, strict=True):
            group.update(before)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which this process records its steps: cuBLAS keeps memory for each, as long as it lives."""
    return torch.cuda.Stream(device)


def step_function(
    networks: Networks, optimizers: Optimizers, config: TrialConfig
) -> Callable[[Batch, float], StepResult]:
    """Return a function of batch and progress that takes a step: recorded, where configured and on a GPU.

    It is for these optimizers, their present state and these values of the configuration.

    Raises:
        ConfigError: If the step is to be recorded and cannot be.
    """
    if config.cuda_graphs and networks.probe.weight.is_cuda:
        return GraphedStep(networks, optimizers, config)
    return lambda batch, progress: train_step(networks, optimizers, batch, config, progress)


def check_recordable(networks: Networks, workers: int) -> None:
    """Check that nothing in a step of a trial of so many workers differs from replay to replay, or needs the host.

    Raises:
        ConfigError: If several workers train one trial, or if networks draw random numbers.
    """
    if workers > 1:
        raise ConfigError("cuda_graphs needs one worker for each trial: leave cuda_graphs out, or workers_per_trial")
    drawing = [name for name, module in networks.named_modules() if _draws(module)]
    if drawing or networks.shuffles_targets:
        cause = drawing[0] if drawing else f"{networks.config.objective.name} with micro_batch_size"
        raise ConfigError(f"cuda_graphs: {cause} draws random numbers, which a recording would repeat: leave it out")


def _draws(module: nn.Module) -> bool:
    """Tell whether a module is dropout or timm's stochastic depth, with a probability above 0."""
    probability = getattr(module, "p", 0.0) if "Dropout" in type(module).__name__ else getattr(module, "drop_prob", 0.0)
    return bool(probability)
