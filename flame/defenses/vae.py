"""A variational autoencoder (Kingma and Welling, ICLR 2014) that a defense can train in every round.

It has Snowball's form (`flame/defenses/snowball.py`) and takes from its authors' code what the paper leaves open: two
hidden layers each way, Kaiming weights, log variances through a softplus and so never below 0, Adam at 1e-3 on batches
of 8, the error a mean over 10 draws. All draws come from one generator and one thread computes, with gradients on
whatever the caller has set, so that equal generators give equal bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from flame.round.device import one_thread
from flame.round.optimizers import BareAdam

BATCH = 8
LEARNING_RATE = 1e-3
SAMPLES = 10  # draws of the latent vector that a reconstruction error is the mean over


class VAE(nn.Module):
    """p -> hidden -> hidden -> mean and log variance of the latent vector, and back to p values in (0, 1)."""

    def __init__(self, size: int, hidden: int, latent: int, stream: Generator) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_hidden(size, hidden, stream), *_hidden(hidden, hidden, stream))
        self.mean, self.spread = _linear(hidden, latent, stream), _linear(hidden, latent, stream)
        decoder = (*_hidden(latent, hidden, stream), *_hidden(hidden, hidden, stream), _linear(hidden, size, stream))
        self.decoder = nn.Sequential(*decoder, nn.Sigmoid())

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, p] in [0, 1], normal noise [B, latent] -> x again [B, p], mean and log variance [B, latent]."""
        features = self.encoder(x)
        mean, log_variance = self.mean(features), F.softplus(self.spread(features))
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance

    def noise(self, count: int, stream: Generator) -> Tensor:
        """[count, latent] float32, standard normal."""
        return torch.randn(count, self.mean.out_features, dtype=torch.float32, generator=stream)


def loss(x: Tensor, again: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """[], summed over the batch: squared error of `again` [B, p], and divergence of the latent vector from N(0, 1)."""
    return (again - x).square().sum() + (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2


@one_thread()
@torch.enable_grad()
def fit(model: VAE, x: Tensor, epochs: int, stream: Generator) -> None:
    """Train on x [N, p] in [0, 1], in place; the optimiser starts anew."""
    optimiser = BareAdam(model.parameters(), LEARNING_RATE, fused=True)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=stream).split(BATCH):
            optimiser.zero_grad()
            loss(x[batch], *model(x[batch], model.noise(len(batch), stream))).backward()
            optimiser.step()


@one_thread()
@torch.no_grad()
def errors(model: VAE, x: Tensor, stream: Generator) -> Tensor:
    """[N], squared error of the reconstruction of x [N, p], at most p."""
    draws = [(model(x, model.noise(len(x), stream))[0] - x).square().sum(dim=1) for _ in range(SAMPLES)]
    return torch.stack(draws).mean(dim=0)


def _hidden(inputs: int, outputs: int, stream: Generator) -> tuple[nn.Module, nn.Module]:
    return _linear(inputs, outputs, stream), nn.ReLU()


def _linear(inputs: int, outputs: int, stream: Generator) -> nn.Linear:
    """Kaiming weights and torch's own range of biases, drawn from `stream` instead of the global generator."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=stream)
    nn.init.uniform_(layer.bias, -(inputs**-0.5), inputs**-0.5, generator=stream)
    return layer
