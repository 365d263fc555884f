"""Rendered data sets: images that are drawn instead of read."""
