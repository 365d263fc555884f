"""Backbones, the networks that one trial trains, and their weights in files: own, exported, and the authors'."""
