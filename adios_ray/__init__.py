"""ADIOS (adversarial masking for self-supervised learning) trained by a population that tunes itself."""
