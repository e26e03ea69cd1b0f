"""A convolutional variational auto-encoder (Kingma and Welling, arXiv:1312.6114)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.case import Case, seeded


class VAE(nn.Module):
    """Encode images to a Gaussian, sample it, decode.

    `[N, C, S, S] -> reconstruction [N, C, S, S] in (0, 1), mu [N, latent], logvar [N, latent]`;
    S is a multiple of 4. Every call draws noise, in evaluation as in training.
    """

    def __init__(
        self, size: int = 28, channels: int = 1, width: int = 32, latent: int = 32
    ) -> None:
        super().__init__()
        if size % 4:
            raise ValueError(f"VAE: size must be a multiple of 4, got {size}")
        inner, features = size // 4, 2 * width * (size // 4) ** 2
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.mu = nn.Linear(features, latent)
        self.logvar = nn.Linear(features, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, features),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, inner, inner)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.encoder(x)
        mu, logvar = self.mu(features), self.logvar(features)
        return self.decoder(reparameterize(mu, logvar)), mu, logvar


def reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    """Draw from `N(mu, exp(logvar))`, differentiable in both.

    The noise is drawn in float32 whatever the dtype, so that a float64 copy of the model, under
    the same seed, sees the same noise.
    """
    noise = torch.randn_like(mu, dtype=torch.float32).to(mu.dtype)
    return mu + noise * torch.exp(0.5 * logvar)


def negative_elbo(x: Tensor, reconstruction: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The training loss, mean over the batch: Bernoulli reconstruction error plus the divergence
    of `N(mu, exp(logvar))` from the unit Gaussian, in nats."""
    error = F.binary_cross_entropy(reconstruction, x, reduction="sum")
    divergence = 0.5 * (logvar.exp() + mu.square() - 1 - logvar).sum()
    return (error + divergence) / x.shape[0]


def vae(
    batch: int = 64, *, size: int = 28, channels: int = 1, width: int = 32, latent: int = 32
) -> Case:
    with seeded(0):
        return VAE(size, channels, width, latent).eval(), (torch.rand(batch, channels, size, size),)
