"""The training, evaluation and export jobs, and what they share: flags, weights, checkpoints."""
