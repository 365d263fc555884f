"""One trial's training, without Ray: the adversarial step, the optimizers, and the trainer that resumes exactly."""
