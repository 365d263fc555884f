"""Weighted k-nearest-neighbour classification of frozen features (specification of the paper's Section 4.1)."""

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 512


def knn_votes(
    train_features: Tensor, train_labels: Tensor, features: Tensor, neighbours: int, temperature: float
) -> Tensor:
    """Votes of the nearest training features by cosine similarity s, each weighing exp(s / temperature).

    Args:
        train_features: [M, F].
        train_labels: Zeros and ones [M, C].
        features: [Q, F].
        neighbours: How many neighbours vote; all M where there are fewer.
        temperature: > 0.

    Returns:
        Shares of the votes [Q, C] in [0, 1].
    """
    bank = functional.normalize(train_features, dim=1)
    votes = []
    for chunk in functional.normalize(features, dim=1).split(CHUNK):
        similarity, nearest = (chunk @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        share = weights / weights.sum(dim=1, keepdim=True)
        votes.append(torch.einsum("qk,qkc->qc", share, train_labels[nearest].to(share.dtype)))
    return torch.cat(votes)


def accuracy(votes: Tensor, labels: Tensor) -> float:
    """Share of right answers of single-label votes [Q, C] against classes [Q], 0 to 1."""
    return float((votes.argmax(dim=1) == labels).float().mean())


def macro_f1(votes: Tensor, labels: Tensor) -> float:
    """Mean over classes of F1 of multi-label votes [Q, C] (yes above one half) against zeros and ones, 0 to 1."""
    predicted, present = votes > 0.5, labels > 0
    hits = (predicted & present).sum(dim=0)
    named = predicted.sum(dim=0) + present.sum(dim=0)
    return float((2 * hits / named.clamp(min=1)).mean())
