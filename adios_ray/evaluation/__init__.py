"""Evaluation of frozen features (fitness, k-NN, probes, clustering, scores without labels) and of masks."""
