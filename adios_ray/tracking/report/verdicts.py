"""Verdicts about a run in words, each with its evidence: one function each, from the run's records.

A function yields nothing where there is nothing to say. Thresholds have names; a verdict never rests on a difference
that its standard error explains.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from scipy.stats import norm

from adios_ray.config import EVOLVING
from adios_ray.console import counted
from adios_ray.measures import share_error
from adios_ray.tracking import lineage
from adios_ray.tracking.comparison import estimated_fluctuation, familywise
from adios_ray.tracking.formatting import HEADINGS, label, value_text
from adios_ray.tracking.report.mask_statistics import slot_overlaps, slot_statistics
from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.report.significance import SIGNIFICANT, p_of
from adios_ray.tracking.results import Row

COPIES_FROM = 0.8
"""Soft intersection over union from which on two slots are copies."""
EMPTY_BELOW, FULL_ABOVE = 0.01, 0.9
"""Mean mask values of a slot that hides nothing, and of one that hides everything."""
BLURRED_FROM = 0.95
"""Entropy, as a share of the largest, from which on masks are a blur."""
AT_BOUND = 0.02
"""Distance from a bound, as a share of the range on the parameter's scale, that counts as being at it."""
SLOW_DATA, MUCH_IDLE = 0.05, 0.25
"""Shares of the time that are worth a word."""
OTHERS_BEHIND_LUCK = 3
"""Other trials that show by how much two halves of the images differ without luck."""

Remedy = Literal["train longer", "another seed", "wider bounds"]
"""Kinds of commands that act on a finding."""


class Verdict(NamedTuple):
    """A finding about a run.

    Attributes:
        kind: good: as it should be; look: worth a change; wrong: results cannot be relied on.
        sentence: The verdict.
        evidence: The numbers behind it.
        advice: What to do; "" if nothing.
        remedy: The kind of command that does it; None without one.
    """

    kind: Literal["good", "look", "wrong"]
    sentence: str
    evidence: str
    advice: str = ""
    remedy: Remedy | None = None


def verdicts(run: RunData) -> list[Verdict]:
    """List all verdicts about a run, the gravest first; none is good where it rests on scores without labels."""
    found = [verdict for judge in JUDGES for verdict in judge(run)]
    if not run.measure.is_share:
        found = [verdict for verdict in found if verdict.kind != "good"]  # every good one is of scores
    order = ("wrong", "look", "good")
    return sorted(found, key=lambda verdict: order.index(verdict.kind))


def gain_over_control(run: RunData) -> Iterator[Verdict]:
    """Say whether the best trial is better than the one that kept the configured values."""
    summary = run.summary
    if summary is None:
        return
    if summary.control == summary.best_trial:
        yield Verdict(
            "look",
            "The search found nothing better than the configured values",
            f"{summary.control}, which kept them, is the best of {summary.population} trials",
            "search longer, or around other values",
        )
        return
    if summary.gain is None or not summary.gain_standard_error:
        return
    gain = run.measure.difference_text(summary.gain, summary.gain_standard_error)
    z = summary.gain / summary.gain_standard_error
    evidence = f"{summary.compared}: {gain}, {z:.1f} standard errors over images"
    if p_of(z) >= SIGNIFICANT:
        yield Verdict(
            "look",
            "The winner is not distinguishable from the control",
            evidence,
            "repeat with other seeds, or with more validation images",
            "another seed",
        )
    elif z > 0:
        # An error over images says nothing about another seed, and the winner was chosen among several trainings.
        yield Verdict(
            "good",
            f"The winner's weights are better than the control's by {gain}",
            evidence,
            "repeat with other seeds before crediting the search: the best of several trainings with the same values "
            "is ahead of one, too",
        )
    else:
        yield Verdict(
            "look",
            "The winner is worse than the control on the test split",
            evidence,
            "take the configured values; more validation images choose better",
        )


def alike_trials(run: RunData) -> Iterator[Verdict]:
    """Say whether the best and the worst score at one epoch differ by more than the noise, as tested before a copy."""
    known = [row for row in run.rows_at_one_epoch() if row.standard_error]
    if len(known) < 2:
        return
    worst, *_, best = sorted(known, key=lambda row: row.fitness)
    fluctuation = estimated_fluctuation(run.history(row) for row in known)
    difference = run.difference(best, worst).with_fluctuation(fluctuation)
    p, text = familywise(difference.z or 0.0, len(known), difference.freedom), run.measure.text
    assumed = "are assumed to " if fluctuation.freedom == math.inf else ""
    evidence = (
        f"the scores of {len(known)} trials at epoch {best.epoch} are between "
        f"{text(worst.fitness)} and {text(best.fitness)}, "
        f"the standard error of one is {text(fmean(row.standard_error or 0.0 for row in known))} over images, "
        f"and reports {assumed}fluctuate by {run.measure.difference_text(math.sqrt(fluctuation.variance))} "
        f"(p {p:.2g}, {'on the same images' if difference.paired else 'as if of different images'})"
    )
    if p < SIGNIFICANT:
        yield Verdict("good", "The trials differ by more than the noise", evidence)
    elif not difference.paired:
        advice = "scores of the same images differ by less than such a test can see: compare them on the test split"
        yield Verdict("look", "The last scores do not tell the trials apart", evidence, advice)
    elif run.evolves:
        finished, so_far = "ended alike: which of them won is chance", "are alike so far: which of them leads is chance"
        yield Verdict("look", f"The trials {finished if run.summary else so_far}", evidence, "", "another seed")
    else:
        advice = "more validation images make the noise smaller; wider bounds make the differences larger"
        yield Verdict("look", "Selection moved within the noise", evidence, advice, "another seed")


def selection_within_noise(run: RunData) -> Iterator[Verdict]:
    """Say whether copies were decided by differences that the noise explains."""
    decided = [exploit.p for exploit in run.exploits if exploit.copies and exploit.p is not None]
    if not decided:
        return
    unsure = [p for p in decided if p >= SIGNIFICANT]
    evidence = (
        f"{len(decided) - len(unsure)} of {len(decided)} copies were of a donor that was better at p < {SIGNIFICANT}; "
        f"{len(run.refusals)} were refused"
    )
    if 2 * len(unsure) >= len(decided):
        advice = "a smaller significance in the search space, or more validation images"
        yield Verdict("look", "Selection moved within the noise", evidence, advice, "another seed")
    else:
        yield Verdict("good", "Selection followed differences above the noise", evidence)


def no_exploits(run: RunData) -> Iterator[Verdict]:
    """Say that no weights were copied although the scheduler copies."""
    epochs = max((row.epoch for row in run.rows), default=0)
    interval = int((run.space or {}).get("interval_epochs", 1))
    if not run.evolves or any(exploit.copies for exploit in run.exploits) or epochs < 2 * interval:
        return
    evidence = [f"{epochs} epochs"]
    if run.refusals:
        evidence.append(f"{counted(len(run.refusals), 'copy')} refused because the donor was not better by enough")
    if run.exploits:
        evidence.append(f"{counted(len(run.exploits), 'change')} of values with a trial's own weights")
    search = "" if run.exploits else f"the run {'was' if run.summary else 'is so far'} a random search; "
    advice = f"{search}train longer, or raise significance in the search space"
    yield Verdict("look", "No trial copied another", ", ".join(evidence), advice)


def one_family(run: RunData) -> Iterator[Verdict]:
    """Say that all trials that can copy descend from one."""
    finals = {trial: rows[-1].epoch for trial, rows in run.remaining.items() if trial not in run.controls}
    founders = {lineage.ancestry(run.exploits, trial, epoch + 1)[0].trial for trial, epoch in finals.items()}
    copies = sum(exploit.copies for exploit in run.exploits)
    if len(finals) >= 4 and len(founders) == 1 and copies:
        yield Verdict(
            "look",
            f"All trials descend from {founders.pop()}",
            f"{len(finals)} trials{' besides controls' if run.controls else ''}, {counted(copies, 'copy')}",
            "a smaller quantile_fraction or a longer interval_epochs keeps more families alive",
        )


def values_at_bounds(run: RunData) -> Iterator[Verdict]:
    """Say which of the best trial's values ended, or are so far, at a bound of its range."""
    if not run.ancestral_rows:
        return
    winner = run.ancestral_rows[-1]
    finals = run.final_rows()
    for path, bounds in run.bounds.items():
        value, end = winner.values.get(path), _bound_reached(run, winner, path)
        # Few integers are always near a bound: they are at it only if they equal it, of at least four.
        if end is None or (isinstance(value, int) and bounds.high - bounds.low < 3):
            continue
        bound = bounds.low if end == "lower" else bounds.high
        others = sum(_bound_reached(run, row, path) == end for row in finals)
        yield Verdict(
            "look",
            f"{_name(path)} ran against its {end} bound",
            f"the {_best(run)}'s last value is {value_text(value)}, the bound {value_text(bound)}; "
            f"{others} of {len(finals)} trials {'ended there' if run.summary else 'are there so far'}",
            f"give it more room: change {'low' if end == 'lower' else 'high'} in a copy of the run's space.yaml, "
            "and search with --space COPY",
            "wider bounds",
        )


def _best(run: RunData) -> str:
    """Name the best trial's part: only a finished run has a winner."""
    return "winner" if run.summary else "leader"


def _bound_reached(run: RunData, row: Row, path: str) -> Literal["lower", "upper"] | None:
    """Tell which bound of a searched number a report's value is at."""
    value = row.values.get(path)
    if not isinstance(value, int | float):
        return None
    position = run.bounds[path].position(value)
    return "lower" if position <= AT_BOUND else "upper" if position >= 1 - AT_BOUND else None


def _name(path: str) -> str:
    return f"The {HEADINGS[path][0].lower()}{HEADINGS[path][1:]}" if path in HEADINGS else label(path)


def copied_slots(run: RunData) -> Iterator[Verdict]:
    """Say which slots of the winner hide the same pixels."""
    if run.last_masks is None:
        return
    masks = run.last_masks.masks
    overlaps = slot_overlaps(masks)
    family = list(range(masks.shape[1]))  # of each slot, the first of those that are copies of each other
    pairs = [(a, b) for a, b in itertools.combinations(family, 2) if overlaps[a, b] >= COPIES_FROM]
    for a, b in pairs:
        family = [family[a] if root == family[b] else root for root in family]
    for root, number in Counter(family).items():
        if number > 1:
            members = [slot for slot, of in enumerate(family) if of == root]
            least = min(overlaps[a, b] for a, b in itertools.combinations(members, 2))
            *names, last = (str(slot + 1) for slot in members)
            yield Verdict(
                "wrong",
                f"Slots {', '.join(names)} and {last} are copies",
                f"their masks overlap by at least {least:.0%} (soft IoU over {len(masks)} images)",
                "fewer slots, or let the search choose their number",
            )


def degenerate_slots(run: RunData) -> Iterator[Verdict]:
    """Say which slots of the winner hide nothing or everything, and whether the masks are a blur."""
    if run.last_masks is None or run.last_masks.masks.shape[1] == 1:
        return
    found = slot_statistics(run.last_masks.masks)
    for number, size in enumerate(found.sizes, start=1):
        if size < EMPTY_BELOW or size > FULL_ABOVE:
            state = "is empty" if size < EMPTY_BELOW else "hides almost everything"
            evidence = f"its mean mask value is {size:.1%}"
            yield Verdict("wrong", f"Slot {number} {state}", evidence, "a larger sparsity weight λ, or fewer slots")
    if found.entropy >= BLURRED_FROM:
        yield Verdict(
            "wrong",
            "The masks are a blur: every pixel is shared by all slots",
            f"entropy {found.entropy:.0%} of the largest",
            "train longer, raise the occlusion model's rate, or lower the sparsity weight λ",
        )


def slow_data(run: RunData) -> Iterator[Verdict]:
    """Say that training waited for data."""
    trained = [row for row in run.rows if row.images_per_s > 0]
    if trained and (share := fmean(row.data_wait_fraction for row in trained)) >= SLOW_DATA:
        speed, worst = fmean(row.images_per_s for row in trained), max(row.data_wait_fraction for row in trained)
        yield Verdict(
            "look",
            f"Data wait {share:.0%}: training waits for images",
            f"mean of {len(trained)} reports, at worst {worst:.0%}; {speed:.0f} images/s per trial",
            "more CPUs per worker, or the data set on a local disk",
        )


def idle_trials(run: RunData) -> Iterator[Verdict]:
    """Say that trials waited for each other."""
    spans = [(row.idle_s, after) for row, after in _spans(run) if after > 0]
    total = sum(after for _, after in spans)
    if total and (share := sum(min(idle, after) for idle, after in spans) / total) >= MUCH_IDLE:
        synchronous = bool((run.space or {}).get("synchronous")) and run.scheduler in EVOLVING
        yield Verdict(
            "look",
            f"Trials were idle {share:.0%} of the time",
            f"between a report and the next step, over {len(spans)} reports: decisions, loading, other trials",
            "synchronous: false decides for each trial as it comes" if synchronous else "report less often",
        )


def _spans(run: RunData) -> Iterator[tuple[Row, float]]:
    """Pair each report except a trial's first with the seconds since the one before."""
    for rows in run.by_trial.values():
        for before, row in itertools.pairwise(rows):
            yield row, (row.time - before.time).total_seconds()


def diverged(run: RunData) -> Iterator[Verdict]:
    """Say which trials diverged or collapsed."""
    counts = Counter(row.trial for row in run.rows if math.isnan(row.fitness))
    if counts:
        names = ", ".join(f"{trial} ({number}×)" for trial, number in counts.most_common(4))
        more = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
        yield Verdict(
            "look",
            f"{counted(len(counts), 'trial')} diverged or collapsed",
            f"reports without a score: {names}{more}",
            "lower learning rates in the search space; diverged/ has the steps of those that diverged",
        )


def chosen_without_labels(run: RunData) -> Iterator[Verdict]:
    """Say that the best of several trials was chosen by a score that needs no labels."""
    if run.measure.is_share or len(run.by_trial) < 2:
        return
    yield Verdict(
        "wrong",
        f"The best of {len(run.by_trial)} trials was chosen by a score without labels",
        f"evaluation.fitness is {run.measure.label}: where it was measured, such scores preferred the worse trainings",
        "label some images, or take the trial with the configured values",
    )


def still_rising(run: RunData) -> Iterator[Verdict]:
    """Say that the winner was still getting better at the end of a finished run."""
    rows = [row for row in run.ancestral_rows if math.isfinite(row.fitness)]
    if run.summary is None or len(rows) < 5 or not rows[-1].standard_error:
        return
    earlier = rows[math.floor(0.75 * (len(rows) - 1))]
    rise, error = rows[-1].fitness - earlier.fitness, rows[-1].standard_error
    if rise > 2 * error:
        text = run.measure.difference_text
        yield Verdict(
            "look",
            "The winner was still getting better at the end",
            f"{text(rise)} more since epoch {earlier.epoch}, standard error {text(error)}",
            "train longer: replay the schedule over more epochs",
            "train longer",
        )


def selected_by_luck(run: RunData) -> Iterator[Verdict]:
    """Say that the best trial loses more than the others on the images that took no part in decisions.

    The two halves of the validation images are not equally hard: the gap between a trial's scores on them says nothing
    by itself. Those of the other trials at the same epoch show how large it is without luck, and how much it varies.
    """
    row = run.ancestral_rows[-1] if run.ancestral_rows else None
    if row is None or not run.evolves:
        return
    others = [other for other in run.rows if other.epoch == row.epoch and other.trial != row.trial]
    gaps = [gap for other in others if math.isfinite(gap := other.fitness - other.holdout_fitness)]
    if len(gaps) < OTHERS_BEHIND_LUCK or not (spread := stdev(gaps)):
        return
    more = row.fitness - row.holdout_fitness - fmean(gaps)
    z = more / (spread * math.sqrt(1 + 1 / len(gaps)))
    if more > 0 and p_of(z, len(gaps) - 1) < SIGNIFICANT:
        text, points = run.measure.text, run.measure.difference_text
        yield Verdict(
            "look",
            f"The {_best(run)} is partly lucky: it loses more than the others on images that no decision used",
            f"{text(row.fitness)} on those of decisions, {text(row.holdout_fitness)} on the others: {points(more)} "
            f"more than {len(gaps)} other trials lose at epoch {row.epoch}, {z:.1f} standard errors by their spread",
            "rely on the second number; fewer decisions or more validation images select less noise",
        )


def at_chance(run: RunData) -> Iterator[Verdict]:
    """Say that the winner's accuracy is no better than guessing."""
    summary = run.summary
    if summary is None or summary.chance is None or not math.isfinite(summary.test_accuracy):
        return  # images have several labels, or the measure of fitness needs none
    guess = max(summary.chance, summary.majority or 0.0)
    # Of the accuracy of guesses, which is not that of the fitness.
    error = share_error(guess, summary.test_images) if summary.test_images else 0.0
    if summary.test_accuracy <= guess + norm.isf(SIGNIFICANT) * error:
        what = "always naming the most frequent class" if summary.imbalanced else "chance"
        yield Verdict(
            "wrong",
            "The winner guesses",
            f"accuracy {run.measure.text(summary.test_accuracy)} on test, "
            f"{what} {run.measure.text(guess, error or None)}",
            "look at images and labels in the report's map of features, train longer, or lower the rates",
        )


JUDGES: tuple[Callable[[RunData], Iterator[Verdict]], ...] = (
    gain_over_control,
    alike_trials,
    selection_within_noise,
    no_exploits,
    one_family,
    values_at_bounds,
    copied_slots,
    degenerate_slots,
    slow_data,
    idle_trials,
    diverged,
    chosen_without_labels,
    still_rising,
    selected_by_luck,
    at_chance,
)
"""All judges, in the order in which verdicts of one kind are listed."""
