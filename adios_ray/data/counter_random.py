"""Counter-based random numbers: every draw is a SplitMix64 hash of (seed, stream, epoch, sample, draw).

There is no generator state. A resumed run, another world size or another number of loader threads sees the same
numbers.
"""

import numpy as np
import numpy.typing as npt

# SplitMix64's increment, 2^64 / golden ratio, odd: consecutive counters are far apart before they are mixed.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAMS = {"order": 1, "view_a": 2, "view_b": 3, "slot": 4, "mask": 5, "modules": 6, "evaluation": 7}
_LARGEST_FLOAT32 = np.nextafter(np.float32(1), np.float32(0))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply the finalizer of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniforms(seed: int, stream: str, epoch: int, samples: npt.NDArray[np.int64], draws: int) -> npt.NDArray[np.float64]:
    """Draw uniform numbers in [0, 1), float64 [B, draws].

    Args:
        seed: The run's seed.
        stream: Purpose of the numbers: "order", "view_a", "view_b", "slot", "mask", "modules" or "evaluation".
        epoch: Epoch, from 0 (for "modules" the step).
        samples: Indices of the samples, int64 [B].
        draws: Numbers per sample.
    """
    # An array of one, not a scalar: the sums wrap around on purpose, and NumPy warns only about scalars.
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, _STREAMS[stream], epoch):
        key = _mix(key + np.uint64(part) + _GOLDEN)
    rows = _mix(key + samples.astype(np.uint64) * _GOLDEN)
    columns = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(_mix(rows)[:, None] + columns[None, :])
    # The upper 53 bits fill a float64's significand exactly, so no value rounds up to 1.
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def single_precision(draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round uniform numbers in [0, 1) to float32 below 1, so that floor(u * N) stays below N.

    Plain rounding turns values above 1 - 2^-25 into 1; one draw in 3e7 is that large.
    """
    return np.minimum(draws.astype(np.float32), _LARGEST_FLOAT32)


def module_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed for modules' own draws (dropout, stochastic depth) in one step on one worker, in [0, 2^53)."""
    return int(uniforms(seed, "modules", step, np.array([rank]), 1)[0, 0] * 2**53)


def permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Return the order of the ``count`` samples in one epoch, int64 [count]."""
    keys = uniforms(seed, "order", epoch, np.arange(count, dtype=np.int64), 1)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)
