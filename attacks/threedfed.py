"""3DFed (Li, Ye, Hu, Li, Wang, Fang and Shi, "3DFed: Adaptive and Extensible Framework for Covert Backdoor Attack in
Federated Learning", IEEE S&P 2023): colluders that learn from the global model what the server did with their updates.

1. Constrained training: alpha times the classification loss plus (1 - alpha) times the L2 distance to the global model
   (`constrain_and_scale`); the update is then lengthened to the mean norm of the colluders' benign ones, at most `gain`
   times. All send it.
2. Indicators: each plants a value in a parameter of its own that neither the backdoored nor the benign update moves
   and where the loss is flat; what of it arrives in the next global model says accepted, clipped or rejected.
3. Noise masks that nearly cancel move outputs other than the target (`noise_masks`), in groups of colluders; a
   group's share of the masks' energy term is another alpha, written a below.
4. Decoys: k of the colluders send benign models with one parameter pulled far off, one that the backdoor does not
   need. A rule that projects updates (PCA) spends its first component on it.
5. Tuning: k falls by every accepted decoy and rises by one when everything was rejected. A group's a is drawn from
   [least_mask, 1] when no group was accepted (at 80 % of its members), near the smallest accepted one when some were,
   and between the two smallest when all were. Once the server is seen to add noise, 2 and 4 are off and a is 0.1.

The attacker knows the colluders' data and updates, the global models they are sent and n; nothing of the defense. Facts
beyond the paper's outline are from the authors' code (haoyangliASTAPLE/3DFed at 6e0e8ec).

Deviations: all colluders train, and the backdoored update is the mean of theirs (there one trains for all); decoys are
some of the m colluders, at most m - 2, so that there are masks in every round and two colluders have no decoy (there
decoys come on top, in clients that would be benign); BatchNorm statistics are sent as trained; a group of one has no
mask; an indicator is a share of the update's norm (there 1e5 times what the parameter moved, which is nothing in a
network with dead parameters and would be the whole update in a small one), so that silence is measured in shares of a
mean, too; a decoy's parameter is where its own two updates agree most, and it is pulled upwards; curvature is summed
over one pass of the poisoned images, the model in evaluation mode; once noise was seen nothing is planted and there are
no decoys (there indicators are planted on, unread, and k stays what it was; on MNIST the masks then start from less).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from attacks.around import Around
from attacks.base import Crafted, Scene, require
from attacks.collusion import benign_updates, own_updates
from attacks.constrain_and_scale import constrained
from attacks.indicators import ACCEPTED, REJECTED, choose, curvature, quiet_layer, read
from attacks.noise_masks import Weights, head_rows, noise_masks, with_head_rows
from attacks.snapshot import Snapshot
from flame.round.client import LocalJob

PREFIX = "attack/threedfed/"
MAJORITY = 0.8  # of a group's members whose acceptance makes the group accepted
NOISY = 0.1  # a once the server adds noise
MASKED = 2  # backdoored colluders that decoys leave at least: fewer have no mask, and no a to tune
NEAR = 0.1  # width of the range above the smallest accepted a
PULL = 10.0  # weight of a decoy's parameter against its classification loss; all but MASKED: the authors' code


@dataclass(frozen=True)
class ThreeDFed(Around):
    """Backdoor, noise masks, decoys and indicators."""

    own_training, inner_trains = True, False
    reads = "images"  # masks spare one class, and a backdoor on words has several

    target_class: int  # of the inner attack
    alpha: float  # weight of the classification loss, in [0, 1]
    gain: float  # largest lengthening, >= 1
    indicator: float  # planted value in norms of the update, > 0
    silence: float  # feedback that others alone may cause, in units of 1 / n, in (0, 1)
    group_size: int  # colluders whose masks cancel, >= 2
    neurons: int  # outputs that a group masks, 0: no masks; the target is never one
    mask_std: float  # of the noise that masks start from, > 0
    mask_energy: float  # weights of the terms of their loss (`noise_masks`), >= 0
    mask_size: float
    mask_balance: float
    least_mask: float  # smallest a, in [0, 1]
    decoy_reach: float  # how far a decoy's parameter is pulled, >= 0

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "in [0, 1]")
        require(self.gain >= 1, "gain", self.gain, ">= 1")
        require(self.indicator > 0, "indicator", self.indicator, "> 0")
        require(0 < self.silence < 1, "silence", self.silence, "in (0, 1)")
        require(self.group_size >= 2, "group_size", self.group_size, "a whole number >= 2")
        require(self.neurons >= 0, "neurons", self.neurons, "0 (no masks) or a whole number >= 1")
        require(self.mask_std > 0, "mask_std", self.mask_std, "> 0")
        for key in ("mask_energy", "mask_size", "mask_balance"):
            require(getattr(self, key) >= 0, key, getattr(self, key), ">= 0")
        require(0 <= self.least_mask <= 1, "least_mask", self.least_mask, "in [0, 1]")
        require(self.decoy_reach >= 0, "decoy_reach", self.decoy_reach, ">= 0")

    def train(self, job: LocalJob) -> float:
        """Step 1, and what `craft` needs of the client's data: a benign update, curvature and, if k > 0, a decoy."""
        start = Snapshot.of(job.model)
        job.fit(job.images)
        benign = Snapshot.of(job.model)
        start.load(job.model)
        poisoned = self.compromise(job)
        job.notes.update(benign=benign.row - start.row, curvature=curvature(poisoned, poisoned.images))
        loss = poisoned.fit(poisoned.images, objective=constrained(poisoned, self.alpha, "l2"))
        if _decoys(job.memory, _answers(job.memory, start.row, self.silence)) > 0:
            job.notes["decoy"] = self._decoy(job, start, benign)
        return loss

    def craft(self, rows: Tensor, scene: Scene, stream: Generator) -> Crafted:
        """Steps 2 to 5."""
        m, trainable, state = len(rows), scene.layout.span("weights_only"), scene.state
        answers = _answers(state.memory, state.row, self.silence)
        noisy = PREFIX + "planted" in state.memory and answers is None
        decoys = min(_decoys(state.memory, answers), max(0, m - MASKED))
        groups = torch.arange(m - decoys).split(self.group_size)
        levels = self._levels(state.memory, answers, len(groups), noisy, stream)
        benign, backdoor = benign_updates(scene)[:, trainable], own_updates(rows, scene).mean(0)  # [m, d], [d]
        length = benign.norm(dim=1).mean()  # not of their mean, which is shorter than they are
        backdoor = backdoor * (length / backdoor.norm().clamp_min(1e-30)).clamp(1, self.gain)
        crafted = rows.clone()
        for group, level in zip(groups, levels.tolist(), strict=True):
            crafted[group, trainable] = self._masked(backdoor, len(group), level, scene, stream)
        for i in range(m - decoys, m):
            crafted[i] = scene.notes[i]["decoy"]
        places = self._places(backdoor.abs() + benign.mean(0).abs(), scene)
        planted = torch.full((m,), 0.0 if noisy else self.indicator * float(backdoor.norm()))
        if not noisy:
            crafted[torch.arange(m), places] = planted
        told = {"levels": levels, "places": places, "planted": planted, "before": state.row[places]}
        counts = {"decoys": torch.tensor(decoys), "clients": torch.tensor(scene.clients)}
        return Crafted(crafted, {PREFIX + key: value for key, value in (told | counts).items()})

    def _places(self, movement: Tensor, scene: Scene) -> Tensor:
        """[m] int64 columns of the indicators, by how far updates move each parameter [d]."""
        layer = quiet_layer(scene.layout)
        bend = torch.stack([noted["curvature"] for noted in scene.notes]).sum(0)
        return layer.start + choose(movement[layer.start : layer.stop], bend, len(scene.notes))

    def _masked(self, backdoor: Tensor, count: int, level: float, scene: Scene, stream: Generator) -> Tensor:
        """[count, d] step 3 for one group."""
        if count < 2 or not self.neurons:
            return backdoor.expand(count, -1)
        head = head_rows(backdoor, scene.layout)
        others = torch.randperm(len(head), generator=stream)
        chosen = others[others != self.target_class][: self.neurons]
        weights = Weights(self.mask_energy, self.mask_size, self.mask_balance)
        masks = noise_masks(head[chosen], count, level, self.mask_std, weights, stream)
        return torch.stack([with_head_rows(backdoor, head.index_add(0, chosen, mask), scene.layout) for mask in masks])

    def _levels(
        self, memory: Mapping[str, Tensor], answers: Tensor | None, groups: int, noisy: bool, stream: Generator
    ) -> Tensor:
        """[groups] the alphas a of step 5."""
        drawn = torch.rand(groups, generator=stream)
        if noisy:
            return torch.full((groups,), NOISY)
        if answers is None:
            return self.least_mask + (1 - self.least_mask) * drawn
        backdoored = answers[: len(answers) - int(memory[PREFIX + "decoys"])].split(self.group_size)
        won = torch.tensor([float((group == ACCEPTED).float().mean()) >= MAJORITY for group in backdoored])
        return tuned(memory[PREFIX + "levels"], won, drawn, self.least_mask)

    def _decoy(self, job: LocalJob, start: Snapshot, benign: Snapshot) -> Tensor:
        """[d + b] step 4, from the backdoored model in `job.model`, which is kept."""
        model, backdoored = deepcopy(job.model), Snapshot.of(job.model)
        entry = next(e for e in start.layout.entries if e.block == "head" and len(e.shape) > 1)
        part = slice(entry.start, entry.stop)
        place = int((backdoored.row - benign.row)[part].abs().argmin())
        there = float(benign.row[part][place])

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            off = model.get_parameter(entry.key).flatten()[place] - there  # no magnitude: its slope at 0 is 0
            return (job.training.loss(model, x, y) - PULL * off.clamp_max(self.decoy_reach)) / 2

        start.load(model)
        job.training.fit(
            model,
            job.images,
            job.normalise,
            job.stream("decoy"),
            round=job.round,
            objective=objective,
            view=job.view("decoy augment"),
        )
        return Snapshot.of(model).row - start.row


def _answers(memory: Mapping[str, Tensor], row: Tensor, silence: float) -> Tensor | None:
    """[m] what became of the colluders' last updates, by the global model [d + b]; None if that cannot be known."""
    if PREFIX + "planted" not in memory or not bool(memory[PREFIX + "planted"].any()):
        return None
    places, planted, before, clients = (memory[PREFIX + key] for key in ("places", "planted", "before", "clients"))
    return read(row[places] - before, planted, int(clients), silence)


def _decoys(memory: Mapping[str, Tensor], answers: Tensor | None) -> int:
    """k of step 5."""
    if answers is None:
        return 0
    k = int(memory[PREFIX + "decoys"])
    backdoored, decoyed = answers[: len(answers) - k], answers[len(answers) - k :]
    accepted = int((decoyed == ACCEPTED).sum())
    hopeless = accepted == 0 and bool((backdoored == REJECTED).all())
    return k - accepted + hopeless


def tuned(levels: Tensor, won: Tensor, drawn: Tensor, least: float) -> Tensor:
    """[groups] new alphas of step 5 from the last ones [g], which of them won [g], and draws [groups] from [0, 1)."""
    best = levels[won].sort().values
    if len(best) == len(levels) == 1:
        return best.expand(len(drawn)).clone()
    if len(best) == len(levels):
        low, high = float(best[0]), float(best[1])
    elif len(best):
        low, high = float(best[0]), float(best[0]) + NEAR
    else:
        low, high = least, 1.0
    return (low + (high - low) * drawn).clamp(0.01, 0.99)
