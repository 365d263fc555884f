"""Inpainting in pixel space, the generative alternative (paper, Section 2.1, Equation 2, Figure 3)."""

from torch import Tensor, nn
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective

SMALLEST = 4
"""Side in pixels below which the decoder's first resolution is not halved further."""
GROUPS = 8
"""Groups of the decoder's GroupNorm; widths are multiples of it."""


class PixelInpainting(Objective):
    """Mean squared error between the decoded features of the masked image and the image before it was masked."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build the decoder: a linear layer to a few pixels, then blocks that double the side and halve the width."""
        super().__init__(config, features, image_size)
        doublings, size = 0, image_size
        while size % 2 == 0 and size > SMALLEST:
            doublings, size = doublings + 1, size // 2
        width = config.hidden_dim or 256
        layers: list[nn.Module] = [nn.Linear(features, width * size * size), nn.Unflatten(1, (width, size, size))]
        for _ in range(doublings):
            narrower = max(width // 2 // GROUPS * GROUPS, GROUPS)
            convolution = nn.Conv2d(width, narrower, 3, padding=1, bias=False)
            layers += [nn.Upsample(scale_factor=2), convolution, nn.GroupNorm(GROUPS, narrower), nn.ReLU()]
            width = narrower
        self.projector = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def target(self, projection: Tensor, images: Tensor) -> Tensor:
        """Return the images before they were masked, [B, 3, S, S]."""
        return images

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Compute the mean squared error of the masked view's reconstruction, over all pixels; ``u`` is not used."""
        return functional.mse_loss(v.online, v.target)
