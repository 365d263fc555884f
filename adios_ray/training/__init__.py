"""One trial's training: the adversarial step, its optimisers, checkpoints, and the loop of a Ray Train worker."""
