"""Backbones, heads, and the networks that one trial trains."""
