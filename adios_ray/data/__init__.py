"""The data pipeline: images to Arrow shards, shards to batches, batches to augmented views."""
