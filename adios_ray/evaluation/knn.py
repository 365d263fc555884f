"""Weighted k-nearest-neighbor classification of frozen features (paper, Section 3.1).

The k images of a bank that are nearest to a query vote for their classes, each with weight exp(s / temperature), where
s is its cosine similarity to the query; the sweep also votes by Euclidean distance. Queries and bank are processed in
blocks, so that the memory needed beside the arguments does not grow with their numbers or with the number of classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.errors import EvaluationError

VALUES = 2**25
"""Most elements of any tensor that is allocated (128 MiB in single precision)."""
QUERIES = 512
"""Most queries in a block; with these, a bank of 65,536 images is one block."""
EPSILON = 1e-12
"""Smallest norm to divide by, as in ``functional.normalize``."""
NEIGHBORS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Numbers of neighbors in the authors' sweep."""
TEMPERATURES = (0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)
"""Temperatures in the authors' sweep."""
DISTANCE_OFFSET = 1e-5
"""Added to Euclidean distances, whose inverses are the weights."""


Distance = Literal["cosine", "euclidean"]


class KnnScore(NamedTuple):
    """Accuracy of k-NN for one setting of a sweep.

    Attributes:
        distance: Distance that orders the neighbors.
        neighbors: How many neighbors vote.
        temperature: Weights are exp(cosine similarity / temperature); None for the Euclidean distance, whose weights
            are 1 / (distance + 1e-5).
        top1: Share of queries whose class has most votes, 0 to 1.
        top5: Share of queries whose class is among the five with most votes, 0 to 1.
    """

    distance: Distance
    neighbors: int
    temperature: float | None
    top1: float
    top5: float


class Votes(NamedTuple):
    """How the neighbors of Q queries vote on the queries' own classes.

    Attributes:
        shares: Share of the votes for the query's class, [Q] in [0, 1].
        correct: Whether the query's class has most votes, bool [Q]; in a tie the lowest class wins.
    """

    shares: Tensor
    correct: Tensor


def knn_votes(
    bank: Tensor, bank_labels: Tensor, features: Tensor, labels: Tensor, neighbors: int, temperature: float
) -> Votes:
    """Let the neighbors of each query vote on its class.

    Args:
        bank: Features of the voting images, [M, F].
        bank_labels: Their classes, int64 [M], from 0.
        features: Queries, [Q, F].
        labels: Their classes, int64 [Q].
        neighbors: How many neighbors vote; all M where there are fewer.
        temperature: > 0.
    """
    classes = int(bank_labels.max()) + 1
    shares, correct = [], []
    for block, weights, nearest in _neighborhoods(bank, features, neighbors, temperature, width=classes):
        voted, truth = bank_labels[nearest], labels[block]
        votes = weights.new_zeros(len(weights), classes)
        # One neighbor at a time: a scatter-add of repeated indices has no fixed order on GPUs, which can turn a tie.
        for number, weight in zip(voted.T, weights.T, strict=True):
            votes.scatter_add_(1, number[:, None], weight[:, None])
        correct.append(votes.argmax(dim=1) == truth)
        shares.append((weights * (voted == truth[:, None])).sum(dim=1).clamp(max=1))  # rounding can exceed 1
    return Votes(torch.cat(shares), torch.cat(correct))


def knn_label_shares(bank: Tensor, bank_labels: Tensor, features: Tensor, neighbors: int, temperature: float) -> Tensor:
    """Compute the share of a query's neighbors' votes that each label gets, [Q, C] in [0, 1] (multi-label).

    Args:
        bank: Features of the voting images, [M, F].
        bank_labels: Zeros and ones, [M, C].
        features: Queries, [Q, F].
        neighbors: How many neighbors vote; all M where there are fewer.
        temperature: > 0.
    """
    width = bank_labels.shape[1] * min(neighbors, len(bank))
    parts = [
        torch.einsum("qk,qkc->qc", weights, bank_labels[nearest].to(weights.dtype))
        for _, weights, nearest in _neighborhoods(bank, features, neighbors, temperature, width)
    ]
    return torch.cat(parts).clamp(max=1)


def macro_f1(predicted: Tensor, present: Tensor) -> float:
    """Average the F1 score over classes, 0 to 1, for bool [Q, C]; 0 for a class neither present nor predicted."""
    hits, named = (predicted & present).sum(dim=0), predicted.sum(dim=0) + present.sum(dim=0)
    return float((2 * hits / named.clamp(min=1)).mean())


def knn_sweep(
    bank: Tensor,
    bank_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    neighbors: Sequence[int] = NEIGHBORS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[KnnScore]:
    """Compute top-1 and top-5 accuracy for several numbers of neighbors, temperatures and both distances.

    The neighbors are searched once for each distance. In a tie the lower class wins. A class without votes is never
    among the five; where bank and queries have at most five classes together, top-5 accuracy is 1 by definition, as in
    linear evaluation.

    Args:
        bank: Features of the voting images, [M, F].
        bank_labels: Their classes, int64 [M].
        features: Queries, [Q, F].
        labels: Their classes, int64 [Q].
        neighbors: Numbers of neighbors that vote, each >= 1; all M where there are fewer.
        temperatures: Temperatures of the cosine similarity, each > 0.

    Returns:
        One score for each temperature and number of neighbors, in the order given, then one for each number of
        neighbors by Euclidean distance.

    Raises:
        EvaluationError: Features or labels have the wrong shape, no rows or values that are not finite, or a setting
            is out of range.
    """
    check_settings(neighbors, temperatures)
    _check(bank, bank_labels, features, labels)
    few_classes = len(torch.cat([bank_labels, labels]).unique()) <= 5
    by_cosine = _right(_cosine_votes(bank, features, max(neighbors), temperatures), bank_labels, labels, neighbors)
    by_distance = _right(_euclidean_votes(bank, features, max(neighbors)), bank_labels, labels, neighbors)

    def score(distance: Distance, temperature: float | None, count: int, right: Tensor) -> KnnScore:
        """Divide the numbers [2] of queries that are right by the number of queries."""
        top1, top5 = (hits / len(features) for hits in right.tolist())
        return KnnScore(distance, count, temperature, top1, 1.0 if few_classes else top5)

    scores = [
        score("cosine", temperature, count, by_cosine[count][number])
        for number, temperature in enumerate(temperatures)
        for count in neighbors
    ]
    return scores + [score("euclidean", None, count, by_distance[count][0]) for count in neighbors]


def check_settings(neighbors: Sequence[int], temperatures: Sequence[float]) -> None:
    """Check the settings of a sweep.

    Raises:
        EvaluationError: If one is out of range, or there is none.
    """
    if not neighbors or min(neighbors) < 1:
        raise EvaluationError(f"neighbors = {list(neighbors)}; at least one number, each >= 1, is needed")
    if not temperatures or not all(0 < temperature < math.inf for temperature in temperatures):
        raise EvaluationError(f"temperatures = {list(temperatures)}; at least one, each > 0 and finite, is needed")


def _check(bank: Tensor, bank_labels: Tensor, features: Tensor, labels: Tensor) -> None:
    """Raise EvaluationError for features and labels that ``knn_sweep`` cannot use."""
    for name, rows, classes in (("bank", bank, bank_labels), ("queries", features, labels)):
        if rows.ndim != 2 or classes.shape != rows.shape[:1] or not rows.numel():
            shapes = f"features of shape {list(rows.shape)} with labels of shape {list(classes.shape)}"
            raise EvaluationError(f"{name} of k-NN: {shapes}; [M, F] and [M] with M, F >= 1 are needed")
        # Norms instead of the features themselves, whose mask would have as many elements as the bank.
        if not rows.norm(dim=1).isfinite().all():
            raise EvaluationError(f"{name} of k-NN: features are not finite")
    if bank.shape[1] != features.shape[1]:
        raise EvaluationError(f"k-NN: {bank.shape[1]} features in the bank, {features.shape[1]} in the queries")


def _right(
    votes: Iterator[tuple[slice, Tensor, Tensor]], bank_labels: Tensor, labels: Tensor, neighbors: Sequence[int]
) -> dict[int, Tensor]:
    """Count queries whose class comes first, and among the first five, for each number of neighbors.

    Args:
        votes: Blocks of q queries: which, weights of votes in W settings [q, W, k], bank rows that vote [q, k].
        bank_labels: Classes of the bank, [M].
        labels: Classes of the queries, [Q].
        neighbors: Numbers of neighbors, at most k of which vote.

    Returns:
        For each number of neighbors, counts [W, 2].
    """
    right: dict[int, Tensor] = dict.fromkeys(neighbors, torch.zeros((), dtype=torch.int64, device=bank_labels.device))
    for block, weights, nearest in votes:
        classes, truth = bank_labels[nearest], labels[block]
        # Votes are kept for the at most k classes of a query's own neighbors, instead of for all classes. In ascending
        # order, so that the lower of two columns is that of the lower class.
        column = _ranks_of_values(classes)
        agrees = classes == truth[:, None]
        lower = torch.arange(classes.shape[1], device=classes.device) < column.where(agrees, -1).amax(1, keepdim=True)
        total, own, last = torch.zeros_like(weights), weights.new_zeros(weights.shape[:2]), classes.shape[1]
        # One neighbor at a time, as in knn_votes; after each number of neighbors that is asked for, ranks are taken.
        for number, (chosen, agreeing, weight) in enumerate(
            zip(column.T, agrees.T, weights.unbind(dim=2), strict=True), start=1
        ):
            total.scatter_add_(2, chosen[:, None, None].expand(-1, weight.shape[1], 1), weight[:, :, None])
            own += weight * agreeing[:, None]
            if asked := [count for count in right if min(count, last) == number]:
                ahead = (total > own[:, :, None]) | ((total == own[:, :, None]) & lower[:, None])
                rank = ahead.sum(dim=2).where(own > 0, last + 5)
                found = torch.stack([(rank < 1).sum(dim=0), (rank < 5).sum(dim=0)], dim=1)
                right.update({count: right[count] + found for count in asked})
    return right


def _ranks_of_values(values: Tensor) -> Tensor:
    """Replace the distinct values of each row by 0, 1, ... in ascending order, [q, k]."""
    ascending, order = values.sort(dim=1)
    rank = functional.pad((ascending.diff(dim=1) > 0).cumsum(dim=1), (1, 0))
    return torch.empty_like(rank).scatter_(1, order, rank)


def _cosine_votes(
    bank: Tensor, features: Tensor, neighbors: int, temperatures: Sequence[float], width: int = 0
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of q queries, W temperatures: which, weights > 0 [q, W, k], bank rows that vote [q, k].

    ``width`` is the number of elements that the caller allocates for each query.
    """
    count = min(neighbors, len(bank))
    queries = _block(count, max(width, len(temperatures) * count))
    norms = bank.norm(dim=1).clamp(min=EPSILON)
    divisors = torch.tensor(temperatures, dtype=features.dtype, device=features.device)[:, None]
    for block in _blocks(len(features), queries):
        unit = functional.normalize(features[block], dim=1)
        similarity, nearest = _nearest(_cosine, unit, bank, norms, count, VALUES // queries)
        # Relative to the nearest neighbor, as in a softmax: exp() of s / temperature alone can overflow.
        weights = ((similarity - similarity[:, :1])[:, None] / divisors).exp()
        # A vote that underflows still counts: a weight of 0 would mean that the class has none.
        yield block, weights.clamp(min=torch.finfo(weights.dtype).tiny), nearest


def _euclidean_votes(bank: Tensor, features: Tensor, neighbors: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of q queries: which, weights > 0 [q, 1, k], bank rows that vote [q, k]."""
    count = min(neighbors, len(bank))
    queries = _block(count, max(count, features.shape[1]))
    squares = bank.norm(dim=1).square()
    for block in _blocks(len(features), queries):
        part = features[block]
        _, nearest = _nearest(_less_squared_distance, part, bank, squares, count, VALUES // queries)
        # From differences: by the expanded square, copies of a query can be at 1e-3 of its norm instead of 0.
        exact = torch.stack([(bank[rows] - part).norm(dim=1) for rows in nearest.T], dim=1)
        distance, order = exact.sort(dim=1)
        yield block, 1 / (distance + DISTANCE_OFFSET)[:, None], nearest.gather(1, order)


def _neighborhoods(
    bank: Tensor, features: Tensor, neighbors: int, temperature: float, width: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield what ``_cosine_votes`` does for one temperature, with weights [q, k] that sum to 1."""
    for block, weights, nearest in _cosine_votes(bank, features, neighbors, [temperature], width):
        yield block, weights[:, 0] / weights[:, 0].sum(dim=1, keepdim=True), nearest


def _block(count: int, width: int) -> int:
    """Return how many queries a block has, with this many neighbors and allocated elements for each query."""
    return max(min(QUERIES, VALUES // max(width, 2 * count)), 1)


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Cut ``count`` queries into blocks of ``size``, of which the last may be smaller."""
    return (slice(first, first + size) for first in range(0, count, size))


def _cosine(queries: Tensor, rows: Tensor, norms: Tensor) -> Tensor:
    """Compute cosine similarities [q, m] of normalized queries and bank rows with these norms [m]."""
    # The bank is divided by its norms here, in the small product: a normalized copy would double its memory.
    return (queries @ rows.T).div_(norms)


def _less_squared_distance(queries: Tensor, rows: Tensor, squares: Tensor) -> Tensor:
    """Compute |query|^2 - |query - row|^2, [q, m], of bank rows with these squared norms [m]."""
    return torch.addmm(squares, queries, rows.T, beta=-1, alpha=2)


def _nearest(
    similarity_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    queries: Tensor,
    bank: Tensor,
    statistic: Tensor,
    count: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Find the nearest bank rows, block by block: similarities [q, k] in descending order, and row numbers.

    ``similarity_of`` is given the queries, rows of the bank and their values of the statistic [M].
    """
    similarity = queries.new_empty(len(queries), 0)
    nearest = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    first = 0
    for rows, values in zip(bank.split(block), statistic.split(block), strict=True):
        near, chosen = similarity_of(queries, rows, values).topk(min(count, len(rows)), dim=1)
        similarity, nearest = torch.cat([similarity, near], dim=1), torch.cat([nearest, chosen + first], dim=1)
        if first:
            similarity, kept = similarity.topk(min(count, similarity.shape[1]), dim=1)
            nearest = nearest.gather(1, kept)
        first += len(rows)
    return similarity, nearest
