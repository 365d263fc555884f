"""Evaluation of frozen features: fitness, k-NN, and scores without labels."""
