"""The authors' search on ImageNet100: hyperopt suggests initial values for many trials, and ASHA stops the poor ones.

Paper: Tables 9-12 list what the authors' search found. Searched here as there: encoder and occlusion learning rate,
lambda, N, weight decay, width of the U-Net, and the strengths of the color jitter.

    python experiments/asha_hyperopt_in100.py --preset demo --population 8
        rendered images, 8 trials on 2 CPU cores: about 5 minutes
    python experiments/asha_hyperopt_in100.py --preset in100s --data-dir data/in100s --population 64
    python experiments/asha_hyperopt_in100.py --preset in100s --data-dir data/in100s --population 64 --search random
    python experiments/asha_hyperopt_in100.py --resume runs/RUN
"""

import sys

from adios_ray.experiment.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__, space="asha_hyperopt_in100", demo_space="asha_demo"))
