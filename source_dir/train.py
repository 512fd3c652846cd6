"""What runs on the head of a cluster: python train.py JOB.yaml [raytrain train options].

The same file runs on a laptop. With RAY_ADDRESS set it trains on that cluster, otherwise on this machine.
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
