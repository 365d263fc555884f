"""Evaluation of frozen features (fitness, k-NN, scores without labels) and of masks against instance maps."""
