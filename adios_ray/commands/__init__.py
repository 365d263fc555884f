"""The commands of ``adios-ray``, grouped by what they work on: data sets, training, weights.

Commands import torch and Ray inside their methods, so that ``--help`` and errors in options appear at once.
"""
