"""The occlusion model, the price of its masks, and changes of their number."""
