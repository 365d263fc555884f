"""Population based training (PBT) of ADIOS: lambda, both learning rates and N adapt while the trials train.

Paper (Tables 1 and 2, k-NN or linear top-1 on ImageNet100): SimCLR with ResNet-18 at 96 pixels 54.1 -> 55.1 with
ADIOS; BYOL at 224 pixels 74.3 -> 80.8 with ADIOS-s. Each of those numbers follows a search of its own.

    python experiments/pbt_in100.py --preset demo
        rendered images, a population of 4 on 2 CPU cores: about 5 minutes
    python experiments/pbt_in100.py --preset in100s --data-dir data/in100s --population 8
    python experiments/pbt_in100.py --preset in100 --data-dir data/in100 --population 8 --gpus-per-worker 0.5
    python experiments/pbt_in100.py --resume runs/RUN
"""

import sys

from adios_ray.experiment.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__, space="pbt_in100", demo_space="pbt_demo"))
