"""Weighted k-nearest-neighbor classification of frozen features (paper, Section 4.1).

Each image of a bank votes for its own classes by exp(s / temperature), where s is its cosine similarity to the query,
and the nearest ones vote. Queries and bank are worked on in parts, so that the memory beside the arguments does not
grow with their numbers or with the number of classes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

VALUES = 2**25
"""Elements of the largest tensor that is made (128 MiB in single precision)."""
QUERIES = 512
"""Queries in a part at most; with these, a bank of 65,536 images is one part."""
EPSILON = 1e-12
"""Smallest norm that a vector is divided by, as in ``functional.normalize``."""


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, features: Tensor, labels: Tensor, neighbors: int, temperature: float
) -> float:
    """Share of queries whose class has most votes, 0 to 1; of equal votes the lowest class wins.

    Args:
        bank: Features of the images that vote, [M, F].
        bank_labels: Their classes, int64 [M], from 0.
        features: Queries, [Q, F].
        labels: Their classes, int64 [Q].
        neighbors: How many neighbors vote; all M where there are fewer.
        temperature: > 0.
    """
    classes = int(bank_labels.max()) + 1
    right = labels.new_zeros(())
    for truth, share, nearest in _neighborhoods(bank, features, labels, neighbors, temperature, width=classes):
        votes = share.new_zeros(len(share), classes)
        # One neighbor after the other: GPUs add what falls on one place in no fixed order, which can turn a tie.
        for number, weight in zip(bank_labels[nearest].T, share.T, strict=True):
            votes.scatter_add_(1, number[:, None], weight[:, None])
        right += (votes.argmax(dim=1) == truth).sum()
    return float(right) / len(features)


def knn_macro_f1(
    bank: Tensor, bank_labels: Tensor, features: Tensor, labels: Tensor, neighbors: int, temperature: float
) -> float:
    """Mean over classes of the F1 score of multi-label queries (yes above half of the votes), 0 to 1.

    Args:
        bank: Features of the images that vote, [M, F].
        bank_labels: Zeros and ones, [M, C].
        features: Queries, [Q, F].
        labels: Zeros and ones, [Q, C].
        neighbors: How many neighbors vote; all M where there are fewer.
        temperature: > 0.
    """
    classes = labels.shape[1]
    width = classes * min(neighbors, len(bank))
    hits = named = torch.zeros(classes, dtype=torch.int64, device=labels.device)
    for truth, share, nearest in _neighborhoods(bank, features, labels, neighbors, temperature, width):
        votes = torch.einsum("qk,qkc->qc", share, bank_labels[nearest].to(share.dtype))
        predicted, present = votes > 0.5, truth > 0
        hits = hits + (predicted & present).sum(dim=0)
        named = named + predicted.sum(dim=0) + present.sum(dim=0)
    return float((2 * hits / named.clamp(min=1)).mean())


def _neighborhoods(
    bank: Tensor, features: Tensor, labels: Tensor, neighbors: int, temperature: float, width: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield parts of the queries: labels [q, ...], shares of the votes [q, k] that sum to 1, and who votes, [q, k].

    ``width`` is how many elements the caller makes of one query.
    """
    count = min(neighbors, len(bank))
    queries = max(min(QUERIES, VALUES // max(width, 2 * count)), 1)
    norms = bank.norm(dim=1).clamp(min=EPSILON)
    for part, truth in zip(features.split(queries), labels.split(queries), strict=True):
        similarity, nearest = _nearest(functional.normalize(part, dim=1), bank, norms, count, VALUES // queries)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        yield truth, weights / weights.sum(dim=1, keepdim=True), nearest


def _nearest(queries: Tensor, bank: Tensor, norms: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities of the nearest in the bank, [q, k] in falling order, and their rows; by blocks of rows."""
    similarity = queries.new_empty(len(queries), 0)
    nearest = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    first = 0
    for rows, lengths in zip(bank.split(block), norms.split(block), strict=True):
        near, chosen = (queries @ rows.T).div_(lengths).topk(min(count, len(rows)), dim=1)
        similarity, nearest = torch.cat([similarity, near], dim=1), torch.cat([nearest, chosen + first], dim=1)
        if first:
            similarity, kept = similarity.topk(min(count, similarity.shape[1]), dim=1)
            nearest = nearest.gather(1, kept)
        first += len(rows)
    return similarity, nearest
