"""A bare PyTorch federation on scikit-learn's digits, defended: the three lines marked FLAME are all that is new.

    python examples/defend_your_loop.py

Client 0 trains on wrong labels and sends five times its update. Each round prints who is accepted, and the accuracy.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flame import Aggregator  # FLAME

CLIENTS, ROUNDS, TEST = 10, 5, 297


def train(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.state_dict()


digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
defend = Aggregator("flame_weights_only")  # FLAME
for number in range(ROUNDS):
    start, sent = net.state_dict(), []
    for client in range(CLIENTS):
        own = slice(TEST + client, None, CLIENTS)
        state = train(copy.deepcopy(net), x[own], y[own] if client else 9 - y[own])
        sent.append(state if client else {key: start[key] + 5 * (state[key] - start[key]) for key in state})
    new, outcome = defend(start, sent)  # FLAME, in the place of an average
    net.load_state_dict(new)
    accuracy = (net.eval()(x[:TEST]).argmax(1) == y[:TEST]).float().mean().item()
    net.train()
    print(f"round {number}: accepted {outcome.accepted}, accuracy {accuracy:.2f}")
