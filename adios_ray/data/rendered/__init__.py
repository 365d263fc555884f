"""Image sets that are drawn instead of read."""
