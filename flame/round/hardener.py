"""What FLIP's clients train on, batch after batch; `flame/round/hardening.py` has the source and the deviations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from flame.data.samples import Samples
from flame.round.device import device_of
from flame.round.hardening import Hardening
from flame.round.inversion import Inversion, Trigger
from flame.round.seeding import generator

BATCHES = 2  # for which a pair is taken; this and the next: constants of the authors' code
THREEFOLD = 3  # theirs from three channels, and there for one, too


class Hardener:
    """One client's training: what batch after batch is to be trained on. Changes with each."""

    def __init__(
        self,
        how: Hardening,
        model: nn.Module,
        images: Samples,
        normalise: Callable[[Tensor], Tensor],
        stream: Generator,
    ) -> None:
        """`images` are the client's own, on the model's device; draws are beside those of `stream`."""
        self.how, self.model, self.stream = how, model, generator(stream.initial_seed(), "hardening")
        self.dtype, self.device = next(model.parameters()).dtype, device_of(model)
        self.black, self.white = (normalise(torch.full_like(images.x[:1], v)).to(self.dtype) for v in (0, 255))
        with torch.no_grad():
            self.classes = classes = self._asked(self.scaled(images.x[:1])).shape[1]
        counts = images.y.bincount(minlength=classes)
        self.held = (counts > 1).nonzero().flatten().tolist()
        self.one_of_each = images[torch.tensor([int((images.y == c).nonzero()[0]) for c in self.held]).long()]
        self.step, self.warm, self.target, self.source = -1, True, -1, 0
        self.sizes = torch.zeros(classes, classes, dtype=torch.float64)
        self.growth = torch.full_like(self.sizes, -torch.inf)
        self.found: dict[tuple[int, int], Trigger] = {}  # by pair: from the lower to the higher class, then back
        self.start: Trigger | None = None
        self.pair_sizes = list[tuple[float, float]]()  # of the pair, in its first and second batch
        self.missed, self.steps, self.cost = [0, 0], how.steps, how.cost

    def __call__(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Images [B, C, H, W] uint8 of one batch as a model is to read them; None: not to be trained on."""
        labels = (y.bincount(minlength=self.classes) > 1).nonzero().flatten().tolist()
        self.step += 1
        if not labels:
            return None
        if self.warm and self.step >= self.classes:
            self.warm = False
            if float(highest := self.growth.max()) > 0:
                self.growth /= highest
        seen, place = self.scaled(x), (self.step - self.classes) % BATCHES
        if self.warm:
            stamped = self._towards_next(seen, y)
        elif (place == 0 and not self._choose(labels)) or self.source not in labels:
            stamped = None
        else:
            last, both = place == BATCHES - 1, self.target in labels
            stamped = self._both(seen, y, last) if both else self._one(seen, y, last)
        self.model.train()
        return None if stamped is None else self.shown(stamped)

    def scaled(self, x: Tensor) -> Tensor:
        """Images uint8 in [0, 1]."""
        return x.to(self.dtype) / 255

    def shown(self, x: Tensor) -> Tensor:
        """Images in [0, 1] as the model reads them."""
        return torch.lerp(self.black, self.white, x)

    def _asked(self, x: Tensor) -> Tensor:
        """[N, classes], the logits of images in [0, 1]."""
        self.model.eval()
        with torch.autocast(self.device.type, enabled=False):
            logits: Tensor = self.model(self.shown(x))
        return logits

    def _sought(self, x: Tensor, y: Tensor, which: Tensor, steps: int, cost: float, start: Trigger | None) -> Trigger:
        how = self.how
        return Inversion(how.lr, steps, cost, how.success, start)(self._asked, x, y, which, self.stream)

    def _put(self, x: Tensor, among: Tensor, count: int, trigger: Trigger, k: int) -> None:
        """Trigger k, on `count` of the images under the mask `among` [B], drawn."""
        at = among.nonzero().flatten()
        chosen = at[torch.randperm(len(at), generator=self.stream)[:count].to(at.device)]
        x[chosen] = trigger.stamp(x[chosen], k)

    def _towards_next(self, x: Tensor, y: Tensor) -> Tensor:
        """Step 1."""
        self.target += 1
        self._begin(self.how.warmup_steps)
        target, others = self.target, self.one_of_each[self.one_of_each.y != self.target]
        if len(others) == 0:
            return x
        wanted = torch.full_like(others.y, target)
        trigger = self._sought(
            self.scaled(others.x), wanted, torch.zeros_like(wanted), self.steps, self.cost, self.start
        )
        self._put(x, y != target, int(int((y != target).sum()) * self.how.share), trigger, 0)
        for source in {*range(self.classes)} - {target}:
            held = source in self.held
            self.sizes[source, target] = self.growth[source, target] = float(trigger.sizes[0]) if held else 0.0
            if held:
                self._keep(source, target, trigger)
        return x

    def _keep(self, source: int, target: int, trigger: Trigger) -> None:
        """Beside the one of the other direction, if there is one."""
        other = self.found.get(key := (min(source, target), max(source, target)))
        if other is not None:
            trigger = trigger.and_then(other) if source < target else other.and_then(trigger)
        self.found[key] = trigger

    def _choose(self, labels: list[int]) -> bool:
        """Take the next pair, whose source is among the batch's `labels`; False if there is none."""
        if float(torch.rand(1, generator=self.stream)) < self.how.drawn:
            self.source = labels[int(torch.randint(len(labels), (1,), generator=self.stream))]
            others = [c for c in range(self.classes) if c != self.source]
            self.target = others[int(torch.randint(len(others), (1,), generator=self.stream))]
        else:
            order = self.growth.flatten().argsort(stable=True).flip(0).tolist()
            pairs = (divmod(place, self.classes) for place in order)
            allowed = (pair for pair in pairs if pair[0] in labels and pair[0] != self.source)
            self.source, self.target = next(allowed, (-1, self.target))
        if self.source < 0:
            return False
        self._begin(self.how.steps)
        return True

    def _begin(self, steps: int) -> None:
        """With a new source and target; the next batch goes on with these, even if this one is skipped."""
        self.start = self.found.get(self._key)
        self.steps, self.cost, self.missed, self.pair_sizes = steps, self.how.cost, [0, 0], []

    @property
    def _key(self) -> tuple[int, int]:
        return min(self.source, self.target), max(self.source, self.target)

    def _both(self, x: Tensor, y: Tensor, last: bool) -> Tensor | None:
        """Step 2 with triggers from source to target and back."""
        how, at = self.how, [(y == self.source).nonzero().flatten(), (y == self.target).nonzero().flatten()]
        if last:
            again = any(self.missed)
            self.steps, self.cost = (how.steps, how.cost) if again else (how.repeat_steps, how.repeat_cost)
            self.missed = [0, 0] if again else self.missed
        start = self.start if self.start is not None and len(self.start) == 2 else None
        which = torch.cat([torch.full_like(at[0], 0), torch.full_like(at[1], 1)])
        wanted = torch.where(which == 0, self.target, self.source)
        trigger = self._sought(x[torch.cat(at)], wanted, which, self.steps, self.cost, start)
        self.start = start
        if self._too_large(trigger):
            return None
        count = int(min(len(at[0]), len(at[1])) * how.share)
        for k, label in enumerate((self.source, self.target)):
            self._put(x, y == label, count, trigger, k)
        self._learn_both(trigger)
        assert self.start is not None
        first, second = (THREEFOLD * self.start.sizes).tolist()
        self.pair_sizes.append((first, second))
        if last:
            known = float(self.sizes[self.source, self.target]) != 0
            means = torch.tensor(self.pair_sizes, dtype=torch.float64).mean(0).tolist()
            for (a, b), mean in zip(((self.source, self.target), (self.target, self.source)), means, strict=True):
                self._grown(a, b, mean, known)
        return x

    def _learn_both(self, trigger: Trigger) -> None:
        """What the pair's next search starts from, and what is remembered of it, which may be the same tensors."""
        for k in (0, 1):
            if self.start is None or self._key not in self.found:
                self.start = trigger
                self.found.setdefault(self._key, trigger)
            elif float(trigger.sizes[k]) > 0 and len(kept := self.found[self._key]) == 2:
                self.start.mask[k], self.start.pattern[k] = trigger.mask[k], trigger.pattern[k]
                if float(self.start.sizes[k]) > float(kept.sizes[k]):
                    kept.mask[k], kept.pattern[k] = self.start.mask[k], self.start.pattern[k]
            else:
                self.missed[k] += 1

    def _one(self, x: Tensor, y: Tensor, last: bool) -> Tensor | None:
        """Step 2 with a trigger from source to target alone."""
        source, target = self.source, self.target
        if self.start is not None and len(self.start) == 2:
            k = 0 if source < target else 1
            self.start = self.start[k] if float(self.start.sizes[k]) > 0 else None
        at = y == source
        wanted = torch.full_like(y[at], target)
        trigger = self._sought(x[at], wanted, torch.zeros_like(wanted), self.steps, self.cost, self.start)
        if self._too_large(trigger):
            return None
        self._put(x, at, int(int(at.sum()) * self.how.share), trigger, 0)
        self._learn_one(trigger)
        assert self.start is not None
        self.pair_sizes.append((float(self.start.sizes[0]),) * 2)
        if last:
            mean = float(torch.tensor(self.pair_sizes, dtype=torch.float64).mean())
            known = float(self.sizes[source, target]) != 0
            self._grown(source, target, mean, known)
            self.growth[target, source] = 0
            if mean != 0 or not known:
                self.sizes[target, source] = 0
        return x

    def _learn_one(self, trigger: Trigger) -> None:
        """As `_learn_both`, of the one direction."""
        kept = self.found.get(self._key)
        if self.start is None or kept is None:
            self.start = trigger
            self.found.setdefault(self._key, trigger)
        elif len(kept) == 1:
            self._keep(self.source, self.target, trigger)
        elif (size := float(trigger.sizes[0])) > 0:
            self.start = trigger
            if size > float(kept.sizes.min()):
                low = self.source < self.target
                self.found[self._key] = trigger.and_then(kept[0]) if low else kept[1].and_then(trigger)

    def _grown(self, source: int, target: int, size: float, known: bool) -> None:
        """What a pair's new mean size says of its growth; the first size says nothing."""
        before = float(self.sizes[source, target])
        if not known:
            self.growth[source, target] = 0
            self.sizes[source, target] = size
            return
        if before != 0:
            self.growth[source, target] += (size - before) / before
        self.growth[source, target] /= 2
        if size != 0:
            self.sizes[source, target] = size

    def _too_large(self, trigger: Trigger) -> bool:
        return float(trigger.sizes.max()) > self.how.largest * trigger.mask[0].numel()
