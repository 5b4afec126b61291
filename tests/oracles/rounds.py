"""Random rounds that look like federated ones, without training: what replayed defenses and their oracles are fed.

The net is conv-BN-conv-BN-linear with 2,066 trainable parameters (2,042 and no statistics without BN). Scales are those
of an early round: an update is about a tenth of the model, cosine distances of models are 4e-4 to 2e-2, far enough from
float32's resolution (6e-8) that float32 and float64 code accept the same clients (measured: 800 of 800 comparisons).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

State = dict[str, Tensor]
BATCH = 32  # training images a step; a client's counters grow by one for each


@dataclass(frozen=True)
class Round:
    """One recorded round: the global model and what n clients made of it, as plain state_dicts."""

    global_state: State
    client_states: list[State]
    trainable: list[str]  # keys of the trainable tensors, in state_dict order
    samples: list[int]  # [n] training images of each client
    malicious: list[int]  # positions of the compromised clients, ascending


def random_round(seed: int, n: int, with_bn: bool = True) -> Round:
    """A round of n >= 1 clients, n // 5 of them malicious (at random positions), the same for the same seed."""
    stream = Generator().manual_seed(seed)
    model = net(with_bn)
    trainable = [name for name, _ in model.named_parameters()]
    start = {key: _start(key, value, stream) for key, value in model.state_dict().items()}
    common, attack = ({k: _normal(v, stream) for k, v in start.items()} for _ in range(2))
    malicious = sorted(torch.randperm(n, generator=stream)[: n // 5].tolist())
    samples = torch.randint(2 * BATCH, 9 * BATCH, (n,), generator=stream).tolist()
    clients = []
    for i in range(n):
        direction, length = (attack, 2.5) if i in malicious else (common, 1.0)
        length *= 0.7 + 0.6 * torch.rand((), generator=stream).item()
        steps = -(-samples[i] // BATCH)
        clients.append({k: _trained(k, v, direction[k], length, steps, stream) for k, v in start.items()})
    return Round(start, clients, trainable, samples, malicious)


def net(with_bn: bool) -> nn.Module:
    """The model of these rounds, for images of 3 x 6 x 6."""
    layers = nn.Sequential()
    for i, (inputs, outputs) in enumerate(((3, 8), (8, 16)), start=1):
        layers.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, bias=not with_bn))
        if with_bn:
            layers.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
    layers.add_module("flat", nn.Flatten())
    layers.add_module("fc", nn.Linear(64, 10))
    return layers


def _normal(like: Tensor, stream: Generator) -> Tensor:
    return torch.randn(like.shape, generator=stream)


def _start(key: str, value: Tensor, stream: Generator) -> Tensor:
    """A global model after a few rounds: no tensor at its initial value, variances positive, counters small."""
    if not value.is_floating_point():
        return torch.tensor(7)
    if key.endswith("running_var"):
        return (0.3 * _normal(value, stream)).exp()
    if value.dim() > 1:
        return _normal(value, stream) / value[0].numel() ** 0.5
    return value.detach() * ("weight" in key) + 0.1 * _normal(value, stream)


def _trained(key: str, value: Tensor, direction: Tensor, length: float, steps: int, stream: Generator) -> Tensor:
    """What local training makes of one tensor: shared drift and the client's own, relative to the tensor's size."""
    if not value.is_floating_point():
        return value + steps
    drift = length * (0.05 * direction + 0.05 * _normal(value, stream))
    if key.endswith("running_var"):
        return value * drift.exp()
    return value + drift * value.square().mean().sqrt()
