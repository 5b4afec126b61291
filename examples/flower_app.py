"""A Flower app as its PyTorch quickstart has it, defended: the two lines marked FLAME are all that is new.

Ten clients share scikit-learn's digits; client 0 trains on wrong labels and sends five times its update.

    pip install 'flwr[simulation]'
    python examples/flower_app.py    # about half a minute: who is accepted and the accuracy, round by round
"""

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits
from torch import nn

from flame.flower import RobustStrategy  # FLAME

CLIENTS, ROUNDS, TEST = 10, 3, 297

client_app, server_app = ClientApp(), ServerApp()


def make_net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


@client_app.train()
def train(msg: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    x, y = (part[TEST + client :: CLIENTS] for part in data())
    start = msg.content["arrays"].to_torch_state_dict()
    net = make_net()
    net.load_state_dict(start)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(20):
        loss = F.cross_entropy(net(x), 9 - y if client == 0 else y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = net.state_dict()
    if client == 0:
        state = {key: start[key] + 5 * (value - start[key]) for key, value in state.items()}
    metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(y)})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=msg)


def test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    x, y = (part[:TEST] for part in data())
    net = make_net()
    net.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord({"accuracy": (net.eval()(x).argmax(1) == y).float().mean().item()})


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    strategy = RobustStrategy(defense="flame_weights_only", inner=strategy)  # FLAME
    result = strategy.start(grid, ArrayRecord(make_net().state_dict()), num_rounds=ROUNDS, evaluate_fn=test)
    for number, outcome in strategy.outcomes.items():
        accuracy = result.evaluate_metrics_serverapp[number]["accuracy"]
        print(f"round {number}: {len(outcome.accepted)} of {len(outcome.ids)} accepted, accuracy {accuracy:.2f}")


if __name__ == "__main__":
    run_simulation(server_app, client_app, num_supernodes=CLIENTS, backend_config={"client_resources": {"num_cpus": 1}})
