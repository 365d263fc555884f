"""Trials on a Ray cluster: their processes, their resources, and the messages between them and the driver."""
