"""The commands of ``adios-ray``, by what they work on."""
