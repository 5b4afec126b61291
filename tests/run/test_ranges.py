"""Every number that a part or a run takes has a range, and each range is probed at its bounds and just beyond them.

A rule is an interval, such as `(0, 1]` or `>= 0`; `whole` in front for whole numbers, `null or` where null is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from inspect import Parameter, isfunction, signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Generator

from attacks.base import Attack
from flame.data.datasets import subset
from flame.data.samples import Dataset, Holders, Samples, Shards
from flame.partition.deal import deal
from flame.partition.examined import examined
from flame.run.build import ConfigError, _check_run_level, _population, make
from flame.run.config import register

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("attack", "augment", "client", "defense", "engine", "model", "partition", "server", "tracker")
POISONING = {"poisoned_data_rate": "[0, 1]"}
CLIENT = {
    "_target_": "flame.round.client.LocalTraining",
    "lr": 0.1,
    "optimizer": {"_target_": "flame.round.optimizers.SGD", "momentum": 0.0, "weight_decay": 0.0},
    "epochs": 1,
    "batch_size": 8,
}
MOMENTS = {"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "(0, inf)", "weight_decay": "[0, inf)"}
LAYERS = {**dict.fromkeys(("embedding", "hidden", "layers"), "whole >= 1"), "dropout": "[0, 1)"}
WARMUP = {"warmup": "whole [0, 29]"}

PARTS: Mapping[str, Mapping[str, str]] = {  # what a YAML makes -> its numbers
    "attacks.a3fl.A3FL": {
        **POISONING,
        "search_epochs": "whole >= 0",
        "step": "> 0",
        "rival_every": "whole >= 1",
        "balance": ">= 0",
    },
    "attacks.alie.ALIE": {"z": "null or > 0"},
    "attacks.alter_min.AlterMin": {"rho": "[0, inf)", "every": "whole >= 1", "boost": "(0, inf)"},
    "attacks.anticipate.Anticipate": {"horizon": "whole >= 1", "steps": "whole >= 1", "clients": "whole >= 1"},
    "attacks.badnets.BadNets": POISONING,
    "attacks.blended.Blend": {"opacity": "(0, 1]"},
    "attacks.cerp.CerP": {**POISONING, "lr": "> 0", "radius": ">= 0", "alpha": ">= 0", "beta": ">= 0"},
    "attacks.chameleon.Chameleon": {"weight": "> 0", "temperature": "> 0"},
    "attacks.constrain_and_scale.ConstrainAndScale": {"alpha": "[0, 1]"},
    "attacks.darkfed.DarkFed": {
        "shadow_images": "whole >= 2",
        "kept": "(0, 1]",
        "poisoned_share": "[0, 1]",
        "magnitude": ">= 0",
        "orthogonality": ">= 0",
        "smoothing": "(0, 1)",
    },
    "attacks.dba.DBA": {**POISONING, "parts": "whole >= 1"},
    "attacks.edge_case.EdgeCase": {**POISONING, "share": "(0, 1)", "neighbours": "whole >= 1"},
    "attacks.fang.Fang": {"threshold": "> 0"},
    "attacks.flame_aware.FlameAware": {"budget": "> 0", "reach": "null or > 0"},
    "attacks.gaussian.Gaussian": {"std": ">= 0"},
    "attacks.iba.IBA": {
        **POISONING,
        "least_epsilon": "(0, 76.5]",
        "decay": "[0, 1)",
        "success": "[0, 1]",
        "search_epochs": "whole >= 1",
        "search_lr": "> 0",
        "ratio": "(0, 1]",
    },
    "attacks.iba.Noise": {"width": "whole >= 1", "epsilon": "(0, 255]"},
    "attacks.ipm.IPM": {"epsilon": "> 0"},
    "attacks.label_flip.LabelFlip": POISONING,
    "attacks.line_search.LineSearch": {
        "evaluations": "whole >= 1",
        "start": "[0, inf)",
        "step": "(0, inf)",
        "ratio": "(0.5, 1)",
    },
    "attacks.lp.LP": {
        "threshold": "(0, 1]",
        "gain": "> 0",
        "validation_share": "(0, 1)",
        "fit_accuracy": "[0, 1]",
        "fit_epochs": "whole >= 1",
    },
    "attacks.mimic.Mimic": {"warmup": "whole >= 1"},
    "attacks.mixing.MultiTask": {"alpha": "[0, 1]"},
    "attacks.mixing.WithClean": {"share": "[0, 1]"},
    "attacks.neurotoxin.Neurotoxin": {"ratio": "(0, 1]"},
    "attacks.pgd.PGD": {"radius": "> 0"},
    "attacks.rop.ROP": {"z": "null or (0, inf)", "angle": "[0, 360)", "pi": "[0, 1]", "reference": "[0, 1]"},
    "attacks.scaling.Scaling": {"gamma": "null or > 0", "norm_bound": "null or > 0"},
    "attacks.rare_word.RareWord": POISONING,
    "attacks.semantic.Semantic": {**POISONING, "share": "(0, 1)"},
    "attacks.sentence.Sentence": POISONING,
    "attacks.sentence_parts.SentenceParts": {**POISONING, "parts": "whole >= 1"},
    "attacks.sign_flip.SignFlip": {"factor": "> 0"},
    "attacks.sparse.Sparse": {
        "scale": "(0, inf)",
        "z": "null or (0, inf)",
        "keep": "(0, 1]",
        "steps": "whole >= 1",
        "batches": "whole >= 1",
        "batch_size": "whole >= 2",
    },
    "attacks.threedfed.ThreeDFed": {
        "alpha": "[0, 1]",
        "gain": ">= 1",
        "indicator": "> 0",
        "silence": "(0, 1)",
        "group_size": "whole >= 2",
        "neurons": "whole >= 0",
        "mask_std": "> 0",
        "mask_energy": ">= 0",
        "mask_size": ">= 0",
        "mask_balance": ">= 0",
        "least_mask": "[0, 1]",
        "decoy_reach": ">= 0",
    },
    "attacks.traffic_backdoor.TrafficBackdoor": POISONING,
    "attacks.triggers.Bars": {"size": "whole >= 1", "gap": "whole >= 0", "value": "whole [0, 255]"},
    "attacks.triggers.Pattern": {"value": "whole [0, 255]"},
    "attacks.triggers.Square": {"size": "whole >= 1", "value": "whole [0, 255]"},
    "flame.defenses.afa.AFA": {"xi": "(0, inf)", "delta_xi": "[0, inf)", "prior": "(0, inf)", "block": "(0.5, 1]"},
    "flame.defenses.alignins.AlignIns": {
        "sparsity": "(0, 1]",
        "sign_radius": "(0, inf)",
        "direction_radius": "(0, inf)",
    },
    "flame.defenses.arc.ARC": {"malicious_share": "[0, 0.5)"},
    "flame.defenses.auror.Auror": {"threshold": "> 0", "find_rounds": "whole >= 1", "vote": "[0.5, 1)"},
    "flame.defenses.bucketing.Bucketing": {"size": "whole >= 1"},
    "flame.defenses.bulyan.Bulyan": {"malicious_share": "[0, 0.25)"},
    "flame.defenses.caf.CAF": {"malicious_share": "[0, 0.5)"},
    "flame.defenses.centered_clipping.CenteredClipping": {"bound": "(0, inf)", "iterations": "whole >= 1"},
    "flame.defenses.crfl.CRFL": {"bound": "(0, inf)", "growth": "[0, inf)", "noise_std": "[0, inf)"},
    "flame.defenses.deepsight.DeepSight": {
        "tau": "(0, 1]",
        "min_cluster_size": "whole >= 2",
        "min_samples": "whole >= 1",
        "seeds": "whole >= 1",
        "samples": "whole >= 1",
    },
    "flame.defenses.dnc.DnC": {
        "malicious_share": "[0, 0.5)",
        "filter_factor": ">= 0",
        "coordinates": "whole >= 1",
        "passes": "whole >= 1",
    },
    "flame.defenses.feddlad.FedDLAD": {"reference": "(0, 1]", "pardoned": "[0, 1]", "fence": "[0, inf)"},
    "flame.defenses.fedredefense.FedREDefense": {
        **dict.fromkeys(("per_class", "steps", "first_iterations", "iterations"), "whole >= 1"),
        **dict.fromkeys(("rate", "lr_images", "lr_labels", "lr_rate", "threshold"), "(0, inf)"),
    },
    "flame.defenses.flare.Flare": {"root_samples": "whole >= 2", "label": "whole >= 0", "tau": "(0, inf)"},
    "flame.defenses.fldetector.FLDetector": {
        "window": "whole >= 1",
        "most_clusters": "whole >= 2",
        "references": "whole >= 1",
    },
    "flame.defenses.flshield.FLShield": {"siblings": "[0, 1]", "images_per_class": "whole >= 1"},
    "flame.defenses.flip.FLIP": {"answer_confidence": "[0, 1)"},
    "flame.defenses.fltrust.FLTrust": {"root_samples": "whole >= 1"},
    "flame.defenses.foolsgold.FoolsGold": {"confidence": "(0, inf)"},
    "flame.defenses.freqfed.FreqFed": {"low": "(0, 2]"},
    "flame.defenses.indicator.Indicator": {"images": "whole >= 2", "threshold": "(0, 1]", "start": "whole >= 0"},
    "flame.defenses.indicator.Planting": {
        "epochs": "whole >= 1",
        "lr": "(0, inf)",
        "momentum": "[0, 1)",
        "weight_decay": "[0, inf)",
        "gamma": "(0, 1]",
        "mu": "[0, inf)",
    },
    "flame.defenses.krum.Krum": {"malicious_share": "[0, 0.5)", "keep": "null or whole >= 1"},
    "flame.defenses.lasa.LASA": {"sparsity": "[0, 1)", "norm_radius": "(0, inf)", "sign_radius": "(0, inf)"},
    "flame.defenses.masa.MASA": {
        "root_samples": "whole >= 2",
        "share": "[0, 1]",
        "epochs": "whole >= 1",
        "lr": "(0, inf)",
        "momentum": "[0, 1)",
        "clip_norm": "(0, inf)",
        "threshold": "(0, inf)",
    },
    "flame.defenses.multi_metrics.MultiMetrics": {"share": "(0, 1]"},
    "flame.defenses.nnm.NNM": {"malicious_share": "[0, 0.5)"},
    "flame.defenses.norm_clip.NormClip": {"bound": "(0, inf)", "noise_std": "[0, inf)"},
    "flame.defenses.rfa.RFA": {"iterations": "whole >= 1", "smoothing": "(0, inf)"},
    "flame.defenses.rflbat.RFLBAT": {
        "first_filter": "[1, inf)",
        "second_filter": "[1, inf)",
        "most_clusters": "whole >= 1",
        "references": "whole >= 1",
    },
    "flame.defenses.rlr.RLR": {"threshold": "[0, 1]"},
    "flame.defenses.signguard.SignGuard": {"lower": "[0, 1]", "upper": ">= 1", "coordinates": "(0, 1]"},
    "flame.defenses.snowball.Snowball": {"suspects": "whole >= 1", "elected": "(0, 1]", "start": "whole >= 0"},
    "flame.defenses.snowball.TopDown": {
        "target": "(0, 1]",
        "step": "(0, 1]",
        "hidden": "whole >= 1",
        "latent": "whole >= 1",
        "first_epochs": "whole >= 1",
        "epochs": "whole >= 1",
    },
    "flame.defenses.smea.SMEA": {"malicious_share": "[0, 0.5)"},
    "flame.defenses.steps.aggregate.Aggregate": {"server_lr": "(0, inf)"},
    "flame.defenses.steps.clip.Clip": {"epsilon": "[0, 1)"},
    "flame.defenses.steps.noise.Noise": {"factor": "[0, inf)", "epsilon": "> 0", "delta": "(0, 1]"},
    "flame.defenses.steps.vector.Cluster": {
        "min_cluster_size": "null or whole >= 2",
        "min_samples": "null or whole >= 1",
    },
    "flame.defenses.trimmed_mean.TrimmedMean": {"trim": "[0, 0.5]"},
    "flame.partition.held.natural": {"min_samples": "whole >= 1"},
    "flame.partition.rules.dirichlet": {"alpha": "(0, inf)", "min_size": "whole >= 1"},
    "flame.partition.rules.label_groups": {"q": "[0, 1]"},
    "flame.partition.rules.main_label": {"q": "[0, 1]", "samples_per_client": "whole [1, 40]"},
    "flame.partition.rules.shards": {"shards_per_client": "whole >= 1"},
    "flame.partition.sizes.iid_imbalanced": {"sigma": "[0, inf)", "min_size": "whole >= 1"},
    "flame.partition.sizes.quantity_skew": {"alpha": "(0, inf)", "exponent": "[0, inf)", "min_size": "whole >= 1"},
    "flame.round.augment.CropFlip": {"pad": "whole >= 0", "flip": "[0, 1]"},
    "flame.round.client.LocalTraining": {
        "lr": "(0, inf)",
        "epochs": "(0, 1]",
        "batch_size": "whole >= 1",
        "max_steps": "null or whole >= 1",
        "clip_norm": "null or (0, inf)",
        "label_smoothing": "[0, 1)",
        "proximal": "[0, inf)",
        "noise_std": "[0, inf)",
    },
    "flame.round.hardening.Hardening": {
        **dict.fromkeys(("share", "success", "drawn"), "[0, 1]"),
        **dict.fromkeys(("lr", "cost", "repeat_cost"), "(0, inf)"),
        **dict.fromkeys(("warmup_steps", "steps", "repeat_steps"), "whole >= 1"),
        "largest": "(0, 1]",
    },
    "flame.round.optimizers.SGD": {"momentum": "[0, 1)", "weight_decay": "[0, inf)"},
    "flame.round.optimizers.Adam": MOMENTS,
    "flame.round.optimizers.AdamW": MOMENTS,
    "flame.round.rates.Constant": WARMUP,
    "flame.round.rates.Step": {**WARMUP, "every": "whole [1, 29]", "gamma": "(0, 1]"},
    "flame.round.rates.MultiStep": {**WARMUP, "gamma": "(0, 1]"},
    "flame.round.rates.Linear": {**WARMUP, "end": "[0, 1]", "falls": "null or whole [1, 30]"},
    "flame.round.rates.Cosine": {**WARMUP, "end": "[0, 1]", "falls": "null or whole [1, 30]"},
    "flame.round.server.Adaptive": {"beta1": "[0, 1)", "beta2": "[0, 1)", "tau": "(0, inf)"},
    "flame.round.server.Momentum": {"beta": "[0, 1)"},
    "flame.round.server.Server": {"lr": "(0, inf)"},
    "flame.round.smoothing.Smoothing": {"copies": "whole >= 1", "noise_std": "[0, inf)", "alpha": "(0, 1)"},
    "models.cnn.CNN": {"dropout": "[0, 1)"},
    "models.gru.GRU": LAYERS,
    "models.lstm.LSTM": LAYERS,
    "models.text_cnn.TextCNN": dict.fromkeys(("width", "kernel", "layers"), "whole >= 1"),
    "models.vgg19_bn.VGG19BN": {"dropout": "[0, 1)"},
    "models.vit_tiny.ViTTiny": dict.fromkeys(("patch_size", "width", "depth", "heads"), "whole >= 1"),
}
ELSEWHERE = (  # the data set says: tests/attacks, tests/models
    *("rounds", "target_class", "source_class", "facilitator_class", "row", "column"),
    *("in_channels", "num_classes", "image_size", "classes", "widths", "tokens"),
    *("lr_tenths", "milestones"),  # lists of shares
    *("workers", "per_gpu", "at_once"),  # of engines: RUN, tests/engine/test_stacked.py
)
UNBOUNDED = {("attacks.blended.Blend", "seed"), ("attacks.iba.Noise", "seed")}
BESIDE: Mapping[tuple[str, str], Mapping[str, Any]] = {  # what else must be set so that only this number is in question
    ("attacks.anticipate.Anticipate", "horizon"): {"attack.clients": 5},
    ("attacks.anticipate.Anticipate", "steps"): {"attack.clients": 5},
    ("attacks.iba.Noise", "epsilon"): {"attack.least_epsilon": 5e-324},
    ("flame.defenses.steps.noise.Noise", "epsilon"): {"defense.noise.factor": None, "defense.noise.delta": 0.5},
    ("flame.defenses.steps.noise.Noise", "delta"): {"defense.noise.factor": None, "defense.noise.epsilon": 1.0},
    ("flame.partition.rules.dirichlet", "alpha"): {"partition.min_size": 1},
    ("flame.partition.sizes.iid_imbalanced", "sigma"): {"partition.min_size": 1},
    ("flame.partition.sizes.quantity_skew", "alpha"): {"partition.min_size": 1},
    ("flame.partition.sizes.quantity_skew", "exponent"): {"partition.min_size": 1, "partition.alpha": None},
    ("flame.partition.rules.main_label", "q"): {"partition.samples_per_client": 5},
    ("models.vit_tiny.ViTTiny", "width"): {"model.heads": 1},
}
RUN: Mapping[str, str] = {  # a run of 3 rounds with 10 clients, 5 a round, of 1,442 images
    "attack_rounds.after_ma": "null or (0, 1)",
    "attack_rounds.every": "whole >= 1",
    "attack_rounds.start": "whole [0, 2]",
    "attack_rounds.stop": "null or whole >= 1",
    "checkpoint.rounds": "whole >= 0",
    "checkpoint.seconds": ">= 0",
    "clients": "whole >= 5",
    "clients_per_round": "whole [1, 10]",
    "engine.per_gpu": "null or whole >= 1",
    "engine.workers": "whole >= 1",
    "evaluate.clients": "whole [0, 8]",
    "evaluate_every": "whole >= 1",
    "memo.gb": ">= 0",
    "poisoned_model_rate": "[0, 1)",
    "record.every": "whole >= 0",
    "report_last": "whole >= 1",
    "rounds": "whole >= 1",
    "seed": f"whole [{-(2**63)}, {2**63 - 1}]",
    "spill.share": "[0, 1]",
    "threads": "whole >= 1",
    "train_samples": "null or whole [1, 1442]",
}


def probes(rule: str) -> tuple[list[Any], list[Any]]:
    """What the rule lets in, and what it does not: its bounds, the next numbers on both sides, and NaN."""
    null, whole = rule.startswith("null or "), "whole" in rule
    text = rule.removeprefix("null or ").removeprefix("whole ")
    if text.startswith(">"):
        sign, low = text.split()
        text = f"{'[' if sign == '>=' else '('}{low}, "
    low, high = text[1:-1].split(", ") if text[-1] in ")]" else (text[1:-2], "")
    closed = (text[0] == "[", text[-1] == "]")
    inside: list[Any] = [None] if null else []
    outside: list[Any] = [] if whole else [math.nan]
    for bound, end, isin in ((low, -1, closed[0]), (high, 1, closed[1])):
        if bound:
            value = int(bound) if whole else float(bound)
            (inside if isin else outside).append(value)
            if math.isfinite(value):
                beyond = value + end if whole else math.nextafter(value, end * math.inf)
                within = value - end if whole else math.nextafter(value, -end * math.inf)
                (outside if isin else inside).append(beyond if isin else within)
    return inside, outside


def test_probes_by_hand() -> None:
    tiny = 5e-324
    assert probes("(0, 1]") == ([tiny, 1.0], [pytest.approx(math.nan, nan_ok=True), 0.0, math.nextafter(1, 2)])
    assert probes("null or whole >= 1") == ([None, 1], [0])
    assert probes("whole [0, 255]") == ([0, 255], [-1, 256])
    assert probes("(0, inf)")[1][1:] == [0.0, math.inf] and probes("> 0")[0] == [tiny]


def walk(node: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """(target, key, dotted path) of each number that the parts of a composed option take, written there or left out."""
    for name, value in node.items() if isinstance(node, dict) else ():
        yield from walk(value, f"{path}.{name}")
    if isinstance(node, dict) and "_target_" in node:
        target = resolve_name(node["_target_"])
        plain = isfunction(target) or hasattr(target, "__dataclass_fields__")
        hints = get_type_hints(target if plain else target.__init__)
        for key, parameter in signature(target).parameters.items():
            kinds = {*get_args(hints[key]), hints[key]}
            if kinds & {int, float} and (key in node or parameter.default is not Parameter.empty):
                yield node["_target_"], key, f"{path}.{key}"


@pytest.fixture(scope="module")
def sites() -> dict[tuple[str, str], tuple[dict[str, Any], str]]:
    """(target, key) -> an option that has it, composed, and the dotted path."""
    register()
    found: dict[tuple[str, str], tuple[dict[str, Any], str]] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for group in GROUPS:
            for path in sorted((CONF / group).rglob("*.yaml")):
                if group in ("defense", "partition") and "_target_" not in path.read_text():
                    continue  # a variant: its numbers are those of the option that it starts from
                name = path.relative_to(CONF).with_suffix("")
                option = OmegaConf.to_container(compose(str(name)), resolve=False)
                assert isinstance(option, dict)
                for target, key, where in walk(option[group], group):
                    found.setdefault((target, key), (option[group], where))
    return found


def test_every_number_of_every_part_has_a_rule(sites: dict[tuple[str, str], Any]) -> None:
    known = {(target, key) for target, rules in PARTS.items() for key in rules} | UNBOUNDED
    assert {site for site in sites if site[1] not in ELSEWHERE} == known


def refusal(group: str, option: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What making the part says; empty if it is made."""
    around = {"dataset": {"channels": 1, "classes": 2, "image_size": 32, "tokens": 2}, "client": CLIENT, "rounds": 30}
    around |= {"defense": {"_target_": "flame.defenses.fedavg.FedAvg", "weights": "uniform"}}
    cfg = OmegaConf.create({**around, group: deepcopy(dict(option))})
    for path, value in settings.items():
        OmegaConf.update(cfg, path, value, force_add=True)
    try:
        part = make(cfg, group)
        if group == "partition":
            at = torch.arange(40)
            images = Samples(torch.zeros(40, 1, 1, 1, dtype=torch.uint8), at % 4)
            deal(Dataset("any", images, images, (0.5,), (0.5,), 4, Holders(at % 4, tuple("abcd"))), part, 4, 0, 0)
    except (ConfigError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("target", "key"), [(target, key) for target, rules in PARTS.items() for key in rules])
def test_parts_at_the_bounds_of_their_ranges(sites: dict[tuple[str, str], Any], target: str, key: str) -> None:
    option, path = sites[target, key]
    inside, outside = probes(PARTS[target][key])
    beside, group = BESIDE.get((target, key), {}), path.partition(".")[0]
    for value in inside:
        assert not re.search("range|must be", refusal(group, option, {**beside, path: value})), value
    for value in outside:
        assert re.search(rf"{key}\b.*(range|must be)", refusal(group, option, {**beside, path: value})), value


def check_run(cfg: DictConfig) -> str:
    """What the checks of run-level settings say; empty if nothing."""
    images = Samples(torch.zeros(1442, 1, 1, 1, dtype=torch.uint8), torch.zeros(1442, dtype=torch.int64))
    try:
        _check_run_level(cfg)
        _population(cfg, Attack())
        subset(Dataset("any", images, images, (0.5,), (0.5,), 2), cfg.train_samples, Generator())
        honest = torch.arange(10) >= 2  # as poisoned_model_rate=0.2 has it
        examined(
            images.y, Shards.cut(torch.arange(10), torch.ones(10).long()), honest, cfg.evaluate.clients, Generator()
        )
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", RUN)
def test_runs_at_the_bounds_of_their_ranges(compose: Any, key: str) -> None:
    plain = compose("experiment=smoke", "engine=pool", "engine.workers=1", "clients_per_round=5")
    assert not check_run(plain)
    inside, outside = probes(RUN[key])
    for value in [*inside, *outside]:
        cfg = plain.copy()
        OmegaConf.update(cfg, key, value)
        said = check_run(cfg)
        name = key if key != "clients" else "clients_per_round"
        named = re.search(rf"{name.replace('attack_rounds.st', 'attack_rounds.*st')}", said)
        assert ("range" in said or "must" in said) and named if value in outside else "out of range" not in said, value


def test_every_number_of_a_run_has_a_rule(compose: Any) -> None:
    def numbers(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in node.items():
            if isinstance(value, dict):
                yield from numbers(value, f"{prefix}{name}.")
            elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                yield f"{prefix}{name}"

    plain = OmegaConf.to_container(compose("engine=pool", "engine.workers=1"), resolve=False)
    assert isinstance(plain, dict)
    own = {str(k): v for k, v in plain.items() if k not in (*GROUPS, "dataset")}
    assert {*numbers(own), "engine.workers", "engine.per_gpu"} - {"memo.dir", "recipe"} == set(RUN)
