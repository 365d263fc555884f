"""Train a single network with the schedule that a population found, also longer or on other data.

A finished run has ``schedule.json``, its best trial's schedule across all its donors. With the run's own data the
weights are the same bit for bit (on the same machine); with ``--epochs 800`` each stage begins at the same share of a
longer training.

    python experiments/replay_schedule.py --schedule runs/RUN/schedule.json --output runs/replayed
    python experiments/replay_schedule.py --schedule runs/RUN/schedule.json --output runs/longer --epochs 800 \
        --data-dir data/stl10
    python experiments/replay_schedule.py --run runs/RUN --trial trial_02 --output runs/second
"""

import sys

from adios_ray.arguments import parse_arguments
from adios_ray.commands.training import Replay
from adios_ray.errors import exit_status

if __name__ == "__main__":
    sys.exit(exit_status(lambda: parse_arguments(Replay, description=__doc__).run()))
