"""What is promised of the samples of an epoch."""

EXACTLY_ONCE = "each sample exactly once an epoch, as counted from the checkpoint that a run goes on from"
