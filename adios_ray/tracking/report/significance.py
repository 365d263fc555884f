"""Significance of differences between the scores of a report."""

from scipy.stats import norm, t

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
