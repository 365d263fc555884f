"""Significance of differences between the scores of a report."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import chi2, f, norm, t

from adios_ray.tracking.outcomes import Outcomes
from adios_ray.tracking.results import Row

SIGNIFICANT = 0.05
"""Level of all tests here."""


def p_of(z: float, freedom: int | None = None) -> float:
    """Compute the probability of a difference of at least so many standard errors, in either direction, by chance.

    Two-sided, since what is compared here is ranked by the same scores.

    Args:
        z: The difference over its standard error.
        freedom: Degrees of freedom of the standard error (Student's t); None if it is known well.
    """
    return 2 * float(norm.sf(abs(z)) if freedom is None else t.sf(abs(z), freedom))


def sureness(z: float, freedom: int | None = None) -> str:
    """Say in words how sure a difference of ``z`` standard errors is; see ``p_of``."""
    p = p_of(z, freedom)
    if p < 0.001:
        return f"sure ({z:.1f} standard errors)"
    if p < SIGNIFICANT:
        return f"fairly sure ({z:.1f} standard errors, p {p:.2g})"
    return f"not sure: within the noise ({z:.1f} standard errors, p {p:.2g})"


def p_paired(outcomes: Sequence[Outcomes]) -> float:
    """Test whether trials have the same mean over the same images: analysis of variance with repeated measures.

    What makes an image hard for all trials cancels out. Degrees of freedom are corrected where some trials agree more
    than others, as a copy and its donor do (Greenhouse and Geisser 1959).
    """
    table = np.stack(outcomes)  # [trials, images]
    images, rest = table.shape[1], np.cov(table - table.mean(axis=0))
    if not (variance := float(np.trace(rest))):
        return 1.0 if np.ptp(table.mean(axis=1)) == 0 else 0.0
    between = images * float(((table.mean(axis=1) - table.mean()) ** 2).sum())
    freedom = variance**2 / float((rest**2).sum())
    return float(f.sf(between / variance, freedom, freedom * (images - 1)))


def p_unpaired(rows: Sequence[Row]) -> float:
    """Test the same by the scores' standard errors as if they were independent (chi-square), which sees less."""
    weights = np.array([row.standard_error or math.inf for row in rows]) ** -2.0
    values = np.array([row.fitness for row in rows])
    center = np.average(values, weights=weights)
    return float(chi2.sf((weights * (values - center) ** 2).sum(), len(rows) - 1))
