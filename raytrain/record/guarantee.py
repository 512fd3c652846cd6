"""What is promised of the samples of an epoch.

The ledger (`raytrain.train.ledger`) keeps it: a bit a sample, merged over the ranks into every checkpoint. What a run
does again after a crash is not counted twice, since the checkpoint that it goes on from knows nothing of it.
"""

EXACTLY_ONCE = (
    "each sample exactly once an epoch, as counted from the checkpoint that a run goes on from, whatever died, and on "
    "any number of hosts, GPUs and CPU nodes"
)
