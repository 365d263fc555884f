"""PB2 on STL-10: in a population too small for random perturbations, a Gaussian process chooses the values.

Paper (Table 1, k-NN top-1, ResNet-18): SimCLR 83.7 -> 85.8 with ADIOS; BYOL 83.6 -> 84.8.

    python experiments/pb2_stl10.py --preset demo
        rendered images, a population of 4 on 2 CPU cores: about 5 minutes
    python experiments/pb2_stl10.py --preset stl10 --data-dir data/stl10
    python experiments/pb2_stl10.py --resume runs/RUN
"""

import sys

from adios_ray.experiment.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__, space="pb2_stl10", demo_space="pb2_demo"))
