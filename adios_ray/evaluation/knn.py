"""Weighted k-nearest-neighbor classification of frozen features (paper, Section 4.1).

The k images of a bank that are nearest to a query vote for their classes, each with weight exp(s / temperature), where
s is its cosine similarity to the query. Queries and bank are processed in blocks, so that the memory needed beside the
arguments does not grow with their numbers or with the number of classes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

VALUES = 2**25
"""Most elements of any tensor that is allocated (128 MiB in single precision)."""
QUERIES = 512
"""Most queries in a block; with these, a bank of 65,536 images is one block."""
EPSILON = 1e-12
"""Smallest norm to divide by, as in ``functional.normalize``."""


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, features: Tensor, labels: Tensor, neighbors: int, temperature: float
) -> float:
    """Compute the share of queries whose class has most votes, 0 to 1; in a tie the lowest class wins.

    Args:
        bank: Features of the voting images, [M, F].
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
        # One neighbor at a time: a scatter-add of repeated indices has no fixed order on GPUs, which can turn a tie.
        for number, weight in zip(bank_labels[nearest].T, share.T, strict=True):
            votes.scatter_add_(1, number[:, None], weight[:, None])
        right += (votes.argmax(dim=1) == truth).sum()
    return float(right) / len(features)


def knn_macro_f1(
    bank: Tensor, bank_labels: Tensor, features: Tensor, labels: Tensor, neighbors: int, temperature: float
) -> float:
    """Average the F1 score over classes for multi-label queries, 0 to 1; above half of the votes is a yes.

    Args:
        bank: Features of the voting images, [M, F].
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
    """Yield blocks of q queries: labels [q, ...], weights of votes [q, k] that sum to 1, bank rows that vote [q, k].

    ``width`` is the number of elements that the caller allocates for each query.
    """
    count = min(neighbors, len(bank))
    queries = max(min(QUERIES, VALUES // max(width, 2 * count)), 1)
    norms = bank.norm(dim=1).clamp(min=EPSILON)
    for part, truth in zip(features.split(queries), labels.split(queries), strict=True):
        similarity, nearest = _nearest(functional.normalize(part, dim=1), bank, norms, count, VALUES // queries)
        # Relative to the nearest neighbor, as in a softmax: exp() of s / temperature alone can overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        yield truth, weights / weights.sum(dim=1, keepdim=True), nearest


def _nearest(queries: Tensor, bank: Tensor, norms: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """Find the nearest bank rows, block by block: cosine similarities [q, k] in descending order, and row numbers."""
    similarity = queries.new_empty(len(queries), 0)
    nearest = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    first = 0
    for rows, lengths in zip(bank.split(block), norms.split(block), strict=True):
        # The bank is divided by its norms here, in the small product: a normalized copy would double its memory.
        near, chosen = (queries @ rows.T).div_(lengths).topk(min(count, len(rows)), dim=1)
        similarity, nearest = torch.cat([similarity, near], dim=1), torch.cat([nearest, chosen + first], dim=1)
        if first:
            similarity, kept = similarity.topk(min(count, similarity.shape[1]), dim=1)
            nearest = nearest.gather(1, kept)
        first += len(rows)
    return similarity, nearest
