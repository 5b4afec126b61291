"""What the accuracy on a test set hides: single classes, and single clients (`evaluate` in conf/config.yaml).

For a triggered set, "class" is what an image shows, and "correct" the label that the attacker wants for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flame.data.watched import ATTACKS
from flame.round.evaluate import Answers, Evaluation

WORST = 10  # one of so many clients is in the worst tenth, rounded up


def client_set(client: int) -> str:
    """The name of a client's images among the evaluation sets."""
    return f"client {client}"


def class_rows(evaluations: Mapping[str, Evaluation], classes: int) -> list[dict[str, Any]]:
    """A row for each set whose answers were counted and each class that it has: what classes.csv says of it."""
    return [
        {"set": name, **row}
        for name, found in evaluations.items()
        if found.answers is not None
        for row in _rows(found.answers, classes)
    ]


def _rows(answers: Answers, classes: int) -> list[dict[str, Any]]:
    confusion, images, correct = Counter[tuple[int, int]](), Counter[int](), Counter[int]()
    for (truth, wanted, answered), count in answers.items():
        confusion[truth, answered] += count
        images[truth] += count
        correct[truth] += count * (wanted == answered)
    return [
        {
            "class": truth,
            "images": images[truth],
            "correct": correct[truth],
            "accuracy": f"{correct[truth] / images[truth]:.6g}",
            **{f"answered_{answered}": confusion[truth, answered] for answered in range(classes)},
        }
        for truth in sorted(images)
    ]


def source_accuracy(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """eval/source_ma, what a backdoor costs the class it comes from: accuracy on its clean test images.

    Only where all triggered images are of one class, and answers were counted.
    """
    counted = {name: found.answers for name, found in evaluations.items() if found.answers}
    sources = {truth for truth, _, _ in counted.get("backdoor", {})}
    if len(sources) != 1:
        return {}
    told = {key: count for key, count in counted.get("clean", {}).items() if key[0] in sources}
    right = sum(count for (_, wanted, answered), count in told.items() if wanted == answered)
    return {"eval/source_ma": right / sum(told.values())} if told else {}


def client_accuracies(evaluations: Mapping[str, Evaluation], groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """For each group of clients the mean over them of the accuracy on a client's images, and that of the worst tenth.

    eval/<group>_clients_ma and eval/<group>_clients_worst; clients count alike, whatever they hold.
    """
    metrics: dict[str, float] = {}
    for group, clients in groups.items() if evaluations else ():
        shares = torch.tensor([evaluations[client_set(client)].accuracy for client in clients], dtype=torch.float64)
        worst = shares.sort().values[: math.ceil(len(shares) / WORST)]
        metrics |= {f"eval/{group}_clients_ma": float(shares.mean())}
        metrics |= {f"eval/{group}_clients_worst": float(worst.mean())}
    return metrics


def alarm_rates(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Of windows of traffic, eval/true_alarms and eval/false_alarms: the shares of attacks and of benign ones.

    The clean test set has both (`flame/data/watched.py`), so that MA is the mean of the first and one minus the second.
    """
    if ATTACKS not in evaluations:
        return {}
    both, attacks = evaluations["clean"], evaluations[ATTACKS]
    quiet = (both.correct - attacks.correct) / (both.count - attacks.count)
    return {"eval/true_alarms": attacks.accuracy, "eval/false_alarms": 1 - quiet}
