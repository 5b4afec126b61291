"""Recorded configs of older versions."""

from __future__ import annotations

from typing import Any

OPTIMIZER = ("momentum", "weight_decay")  # of a client, where its recipe was called LocalSGD
OWN = {"epochs": "epochs", "local_lr": "lr"}  # of an attack, and what they are in its `client`


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """A recorded config in today's words: older runs have an attacker's epochs and rate beside what it poisons."""
    benign = config.get("client") or {}

    def recipe(node: Any) -> Any:
        if not isinstance(node, dict) or not str(node.get("_target_")).endswith(".LocalSGD"):
            return node
        optimizer = {"_target_": "flame.round.optimizers.SGD", **{k: node[k] for k in OPTIMIZER if k in node}}
        rest = {k: v for k, v in node.items() if k not in OPTIMIZER}
        return {**rest, "_target_": "flame.round.client.LocalTraining", "optimizer": optimizer}

    def attack(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        found = {"client" if k == "sgd" else k: attack(v) if k == "backdoor" else recipe(v) for k, v in node.items()}
        own = {new: found.pop(old) for old, new in OWN.items() if old in found}
        own = {k: benign[k] if v is None and k in benign else v for k, v in own.items()}
        return {**found, "client": own} if own else found

    return {**config, **{k: part(config[k]) for k, part in (("client", recipe), ("attack", attack)) if k in config}}
