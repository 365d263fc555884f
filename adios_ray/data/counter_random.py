"""Random numbers that are a function of what they are for, not of what was drawn before.

Every draw is a hash of (seed, stream, epoch, sample, draw). No generator has a state: a resumed run, another world
size or another number of loader threads sees the same numbers.
"""

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAMS = {"order": 1, "view_a": 2, "view_b": 3, "slot": 4, "mask": 5, "modules": 6}
_LARGEST_FLOAT32 = np.nextafter(np.float32(1), np.float32(0))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Finalizer of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniforms(seed: int, stream: str, epoch: int, samples: npt.NDArray[np.int64], draws: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape [len(samples), draws].

    Args:
        seed: The run's seed.
        stream: What the numbers are for: "order", "view_a", "view_b", "slot", "mask" or "modules".
        epoch: Epoch, from 0 (for "modules" the step).
        samples: Indices of the samples, int64 [B].
        draws: How many numbers each sample needs.
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, _STREAMS[stream], epoch):
        key = _mix(key + np.uint64(part) + _GOLDEN)
    rows = _mix(key + samples.astype(np.uint64) * _GOLDEN)
    columns = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(_mix(rows)[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def single_precision(draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round uniform numbers in [0, 1) to float32, still below 1: times N and truncated, they stay below N.

    Rounding alone turns what is above 1 - 2^-25 into 1, which one of 3e7 draws is.
    """
    return np.minimum(draws.astype(np.float32), _LARGEST_FLOAT32)


def module_seed(seed: int, step: int, rank: int) -> int:
    """Seed of what modules draw themselves (dropout, stochastic depth) in one step on one worker, in [0, 2^53)."""
    return int(uniforms(seed, "modules", step, np.array([rank]), 1)[0, 0] * 2**53)


def permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Order of the ``count`` samples in one epoch, int64 [count]."""
    keys = uniforms(seed, "order", epoch, np.arange(count, dtype=np.int64), 1)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)
