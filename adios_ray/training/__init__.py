"""One trial's training: the adversarial step, its optimizers, checkpoints, and the loop of a Ray Train worker."""
