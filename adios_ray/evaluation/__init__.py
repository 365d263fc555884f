"""Evaluation of frozen features: fitness, k-NN, clustering, multi-label probe, and scores without labels."""
