"""Masks: the occlusion model and its penalties, changes of the number of slots, and schemes that are not learned."""
