"""The program ``adios-ray``, also as ``python -m adios_ray``."""

import sys


def main() -> int:
    """Run the command line; return its exit status."""
    try:
        # Here, because it takes most of a second, in which Ctrl-C would print a traceback.
        from adios_ray.cli import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
