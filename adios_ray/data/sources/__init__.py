"""Sources of images for ``prepare``: readers of published data sets and of folders."""
