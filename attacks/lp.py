"""Layer-wise poisoning (Zhuang, Yu, Wang, Hua, Li and Yuan, "Backdoor Federated Learning by Poisoning
Backdoor-Critical Layers", ICLR 2024): only the layers that carry the backdoor are poisoned, the rest is benign.

Identification, by layer substitution analysis, on a split of what the client holds (section 3; BSR is the backdoor
success rate on the triggered validation part):
1. a benign model is trained from the global one until it fits, a malicious one from the benign;
2. forward: each layer of the malicious model in turn is replaced by the benign one; the drop of the BSR ranks it;
3. backward: layers of the malicious model go into the benign one in that order, until its BSR reaches tau times the
   malicious model's. They are the backdoor-critical layers.

Attack (section 4), from the global model again:
4. each attacker trains a benign and a malicious update; u_avg is the mean of all attackers' benign ones;
5. it sends lambda u_mal + max(0, 1 - lambda) u_avg in the critical layers and u_avg everywhere else;
6. adaptive layer control: while a detector that the attackers run on their own benign updates rejects it, the least
   critical layer is given up, down to one.

The attacker knows the server's rule as far as `detector` says. A layer is one tensor of the state_dict, as in the
authors' code (zhmzm/Poisoning_Backdoor-critical_Layers_Attack), whose BatchNorm statistics are u_avg's as well.

Around an attack on images of its own (`semantic`, `edge_case`) the success is that on a share of those, which is held
back from steps 1 to 3; the images that the run is evaluated on are nobody's. An inner attack without a backdoor is
refused.

`layers: random` is the paper's control (from memory): as many layers as are critical, drawn from all of them.

Deviations: identification trains with the client's own learning rate and its malicious model for the attacker's epochs
(their script: 0.1, one epoch with every image also triggered); the benign model that does not reach `fit_accuracy` is
used as it is (theirs gives the round up below 80 %); step 6 keeps the first set that is accepted (their loop, one layer
more) and shows the detector one copy of the update, where theirs shows as many as there are attackers (m copies outvote
m benign updates); their flipping variants and the search for lambda are not here; counters are sent as trained. A
malicious model without a backdoor has no critical layers, and the benign mean is sent, which the run counts as idle
(theirs then adds layers in order until the detector refuses). u_avg and the detector have the benign updates of this
round's attackers only (theirs those of the attacker's other clients).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacks.around import Around
from attacks.base import Attack, Crafted, Scene, require, share_of
from attacks.collusion import benign_updates
from attacks.fang import krum_selects_crafted
from attacks.snapshot import Snapshot
from flame.data.samples import Dataset, Samples
from flame.geometry.clustering import majority_cluster
from flame.geometry.layout import Entry, StateLayout
from flame.geometry.products import Geometry
from flame.round.client import LocalJob
from flame.round.evaluate import evaluate

DETECTORS = ("none", "krum", "flame")
LAYERS = ("critical", "random")


@dataclass(frozen=True)
class LP(Around):
    """Poison the backdoor-critical layers of a benign update."""

    own_training, inner_trains = True, False

    threshold: float  # tau, in (0, 1]
    gain: float  # lambda, > 0
    validation_share: float  # of the client's images, in (0, 1)
    fit_accuracy: float  # on its own images, at which the benign model of step 1 has converged, in [0, 1]
    fit_epochs: int  # at most, >= 1
    detector: str  # none | krum | flame
    layers: str  # critical | random

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "threshold", self.threshold, "in (0, 1]")
        require(self.gain > 0, "gain", self.gain, "> 0")
        require(0 < self.validation_share < 1, "validation_share", self.validation_share, "in (0, 1)")
        require(0 <= self.fit_accuracy <= 1, "fit_accuracy", self.fit_accuracy, "in [0, 1]")
        require(self.fit_epochs >= 1, "fit_epochs", self.fit_epochs, "a whole number >= 1")
        require(self.detector in DETECTORS, "detector", repr(self.detector), f"one of {', '.join(DETECTORS)}")
        require(self.layers in LAYERS, "layers", repr(self.layers), f"one of {', '.join(LAYERS)}")

    def prepare(self, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
        """The inner attack is prepared.

        Raises:
            ValueError: it has no backdoor that layers could be critical to.
        """
        armed, rest = super().prepare(dataset, stream)
        if armed.backdoor_set(armed.examined(rest.test)) is None:
            raise ValueError(
                f"attack.backdoor={type(self.backdoor).__name__} has no backdoor, which is what layers are critical to:"
                " must be an attack with a target class, such as badnets, or label_flip from one class to another"
            )
        return armed, rest

    def train(self, job: LocalJob) -> float:
        """Steps 1 to 4; the model ends as the malicious one, the rest is noted."""
        start = Snapshot.of(job.model)
        layers = self._identify(job)
        if self.layers == "random":
            layers = drawn(trainable_layers(start.layout), len(layers), job.stream("layers"))
        start.load(job.model)
        job.fit(job.images)
        places = torch.tensor([start.layout.entries.index(e) for e in layers], dtype=torch.int64)
        job.notes.update(benign=Snapshot.of(job.model).row - start.row, layers=places)
        start.load(job.model)
        return super().train(job)

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Steps 5 and 6."""
        benign = benign_updates(scene)  # [m, d + b]
        crafted = torch.empty_like(rows)
        for i, (row, noted) in enumerate(zip(rows, scene.notes, strict=True)):
            layers = [scene.layout.entries[place] for place in noted["layers"].tolist()]
            crafted[i] = self._poisoned(row, benign.mean(0), layers)
            while len(layers) > 1 and not self._accepted(crafted[i], benign, scene):
                layers.pop()
                crafted[i] = self._poisoned(row, benign.mean(0), layers)
        return Crafted(crafted, {})

    def _identify(self, job: LocalJob) -> Sequence[Entry]:
        """Steps 1 to 3: the critical layers, most critical first."""
        held = share_of(len(job.images), self.validation_share, job.stream("validation"))
        training = torch.ones(len(job.images), dtype=torch.bool).index_fill(0, held, False)
        attack, exam = self.rehearsal(job.images[held], self.validation_share, job.stream("rehearsal"))
        if exam is None or int(training.sum()) < 2:  # BatchNorm needs two images
            return []
        benign = self._converged(job, job.images[training])
        worse = attack.compromise(replace(job, images=job.images[training]))
        worse.fit(worse.images)

        def success(model: Snapshot) -> float:
            model.load(job.model)
            return evaluate(job.model, exam, job.normalise).accuracy

        return critical_layers(benign, Snapshot.of(job.model), success, self.threshold)

    def _converged(self, job: LocalJob, images: Samples) -> Snapshot:
        stream, view = job.stream("identify"), job.view("identify augment")
        for _ in range(self.fit_epochs):
            job.training.fit(job.model, images, job.normalise, stream, round=job.round, view=view)
            if evaluate(job.model, images, job.normalise).accuracy >= self.fit_accuracy:
                break
        return Snapshot.of(job.model)

    def _poisoned(self, malicious: Tensor, average: Tensor, layers: Sequence[Entry]) -> Tensor:
        """[d + b] step 5."""
        sent = average.clone()
        for e in layers:
            part = slice(e.start, e.stop)
            sent[part] = self.gain * malicious[part] + max(0.0, 1 - self.gain) * average[part]
        return sent

    def _accepted(self, candidate: Tensor, benign: Tensor, scene: Scene) -> bool:
        """Whether the detector takes the candidate [d + b] among the attackers' own benign updates [m, d + b]."""
        rows = torch.cat([candidate[None], benign])
        counters = torch.zeros(len(rows), len(scene.state.counters), dtype=torch.int64)
        geometry = Geometry.measure(scene.layout, scene.state.row, rows, scene.state.counters, counters)
        if self.detector == "flame":
            return bool(majority_cluster(geometry.cosine_distances("all_state")).accepted[0])
        if self.detector == "krum":
            squares = geometry.squared_distances("weights_only")
            return krum_selects_crafted(squares[1:, 1:], squares[0, 1:], 1)
        return True


def critical_layers(
    benign: Snapshot, malicious: Snapshot, success: Callable[[Snapshot], float], threshold: float
) -> Sequence[Entry]:
    """Forward and backward layer substitution; none when the malicious model has no backdoor itself."""
    layers = trainable_layers(benign.layout)
    goal = success(malicious)
    left = [success(malicious.with_layers(benign, [e])) for e in layers]  # the lower, the more critical
    ranked = [layers[i] for i in sorted(range(len(layers)), key=left.__getitem__)]
    count, reached = 0, 0.0
    while reached < threshold * goal and count < len(ranked):
        count += 1
        reached = success(benign.with_layers(malicious, ranked[:count]))
    return ranked[:count]


def trainable_layers(layout: StateLayout) -> Sequence[Entry]:
    """Those that may be poisoned."""
    return [e for e in layout.entries if e.stop <= layout.trainable]


def drawn(layers: Sequence[Entry], count: int, stream: Generator) -> Sequence[Entry]:
    """So many of them at random, each at most once, in random order."""
    return [layers[i] for i in torch.randperm(len(layers), generator=stream)[:count].tolist()]
