"""The commands of ``adios-ray``, by what they work on."""


class UsageError(ValueError):
    """Options that do not go together or are out of range."""
