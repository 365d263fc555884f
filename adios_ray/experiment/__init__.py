"""A run from its configuration and checks over the population's training to the final evaluation."""
