"""DeepSight (Rieger, Nguyen, Miettinen and Sadeghi, NDSS 2022): inspect the output layer, cluster, judge clusters.

From a client's update of the output layer come its NEUP, each class's share in the squares of |bias| plus summed
|weights|, and its threshold exceedings, the number of classes whose NEUP is above a fraction of the largest. Few
exceedings, at most half the median, make a model suspicious: it was trained on few classes. From the model itself come
its DDifs, per class the mean over random inputs of its predicted probability over the global model's, for several seeds
of inputs. HDBSCAN clusters the NEUPs, the cosine distances of the bias updates, and the DDifs of each seed; the
clusterings are averaged as distances (0: together, 1: apart), those of the seeds first, so that the three kinds weigh
the same, and clustered once more; clusters in which the share of suspicious members stays below tau are accepted,
clipped to the median length of all and averaged.

Deviations and open points: the DDifs are from memory, beside public code (FLPoison), which divides the outputs as the
model gives them; here they are probabilities. Inputs are uniform pixel values, normalised as images are, and drawn anew
in each round; fewer of them than in the paper, as n + 1 models see them all (the YAML has the cost). Of text they are
uniform tokens, and the output is that after the last one. The ratio of one input is cut to [exp(-100), exp(100)], and
an output that is no number counts as the upper end. Whom HDBSCAN leaves out of all clusters stands alone, as in
BackFed, and is accepted unless suspicious (in FLPoison such clients count as one cluster in the first clusterings, and
are rejected in the last). The fraction is max(0.01, 1 / classes), and it and HDBSCAN's settings are those of public
code. An output layer without a bias is compared as a whole. BatchNorm statistics are averaged over the accepted
clients, unclipped, and counters stay the server's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, clip_to, laboratory, uniform
from flame.defenses.foolsgold import cosines
from flame.defenses.points import distances
from flame.geometry.clustering import cluster_labels
from flame.round.types import ServerState, Updates, Verdict

LEAST_FRACTION = 0.01  # of the largest NEUP that counts as exceeding, however many classes there are
MOST_LOG = 100.0  # of a ratio of probabilities
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class DeepSight:
    """The clipped mean of clusters that look trained on many classes."""

    tau: float  # share of suspicious members from which a cluster is rejected, (0, 1]
    min_cluster_size: int  # of HDBSCAN, >= 2
    min_samples: int  # of HDBSCAN, >= 1
    seeds: int  # clusterings by DDifs, >= 1
    samples: int  # random inputs of each, >= 1

    needs_lab: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"defense.tau={self.tau} is out of range: must be in (0, 1] (the paper: 1/3)")
        for key, least in (("min_cluster_size", 2), ("min_samples", 1), ("seeds", 1), ("samples", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"defense.{key}={getattr(self, key)} is out of range: must be >= {least}")

    def check_clients(self, clients: int) -> None:
        """A ValueError if no cluster of a round can be so large."""
        if (size := self.min_cluster_size) > clients:
            raise ValueError(
                f"defense.min_cluster_size={size} is out of range: must be in [2, {clients}], the updates of a round"
                " (raise clients_per_round); without a cluster no model is suspected with others"
            )

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """The accepted share equally."""
        energy = neups(updates)  # [n, classes]
        exceedings = threshold_exceedings(energy)  # [n]
        suspicious = exceedings <= exceedings.quantile(0.5) / 2
        by_energy = self.apart(distances(energy), False)  # [n, n]
        by_bias = self.apart(1 - cosines(bias_updates(updates)), False)
        seeds = ddifs(self.outputs(updates, stream))  # [seeds, n, classes]
        by_ddifs = torch.stack([self.apart(distances(points), False) for points in seeds]).mean(dim=0)
        together = 1 - self.apart((by_energy + by_bias + by_ddifs) / 3, True).fill_diagonal_(0)
        accepted = together @ suspicious.double() < self.tau * together.sum(dim=1)
        norms = updates.geometry.norms("weights_only")
        bound = float(norms.quantile(0.5))
        shares, factors = uniform(accepted), clip_to(bound, norms)
        info = {"deepsight/clip_bound": bound, "deepsight/suspicious": float(suspicious.sum())}
        return Verdict(replace(state, row=average(state, updates, shares, factors)), shares, info, factors)

    def outputs(self, updates: Updates, stream: Generator) -> Iterator[Tensor]:
        """Logits [seeds, samples, classes] float32 on random inputs: the global model's, then each client's.

        One at a time: a vocabulary of 10,000 words and the default inputs make 31 MB of each.
        """
        lab = laboratory("deepsight", updates)
        noise = lab.noise(self.seeds * self.samples, stream)
        for model in chain([updates.base], (updates.base + row for row in updates.rows)):
            yield lab.logits([model], noise).view(self.seeds, self.samples, -1)

    def apart(self, gaps: Tensor, single: bool) -> Tensor:
        """[n, n] float64, 0 for two in one cluster under distances `gaps` [n, n], else 1."""
        labels = cluster_labels(gaps.clamp_min(0).fill_diagonal_(0), self.min_cluster_size, self.min_samples, single)
        return 1 - ((labels == labels[:, None]) & (labels >= 0)).double()


def neups(updates: Updates) -> Tensor:
    """[n, classes] float64, normalised energy of each class's update; 0 for an output layer that did not move."""
    head = [e for e in updates.layout.entries if e.block == "head"]
    classes = head[-1].shape[0]
    if any(e.shape[0] != classes for e in head):
        raise ValueError(f"defense=deepsight needs an output layer with a row per class, not {[e.shape for e in head]}")
    energy = torch.stack([_energy([row[e.start : e.stop].view(classes, -1) for e in head]) for row in updates.rows])
    squared = (energy / energy.max(dim=1, keepdim=True).values.clamp_min(TINY)).square()
    return squared / squared.sum(dim=1, keepdim=True).clamp_min(TINY)


def _energy(parts: list[Tensor]) -> Tensor:
    """[classes] float64, summed size of a client's update of the output layer, `parts` [classes, ...] of it."""
    return torch.cat(parts, dim=1).double().abs().sum(dim=1)


def threshold_exceedings(energy: Tensor) -> Tensor:
    """[n] float64, classes whose share in `energy` [n, classes] is above a fraction of the client's largest."""
    fraction = max(LEAST_FRACTION, 1 / energy.shape[1])
    return (energy > fraction * energy.max(dim=1, keepdim=True).values).double().sum(dim=1)


def ddifs(outputs: Iterable[Tensor]) -> Tensor:
    """[seeds, n, classes] float64, mean ratio to the global model's probability, of logits as `outputs` has them."""
    logs = (logits.double().log_softmax(dim=-1) for logits in outputs)  # [seeds, samples, classes] each
    base = next(logs)
    ratios = ((own - base).nan_to_num(MOST_LOG).clamp(-MOST_LOG, MOST_LOG).exp() for own in logs)
    return torch.stack([ratio.mean(dim=1) for ratio in ratios], dim=1)


def bias_updates(updates: Updates) -> Tensor:
    """[n, classes], the updates of the output layer's bias; of the whole layer if it has none."""
    bias = [e for e in updates.layout.entries if e.block == "head" and len(e.shape) == 1]
    span = slice(bias[-1].start, bias[-1].stop) if bias else updates.layout.spans["head"]
    return updates.rows[:, span]
