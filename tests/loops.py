"""Rounds as they are written elsewhere, on any device: local training of every client, then both test sets.

* `bare`: a loop in plain PyTorch, its tensors in the device's memory (`tests/bench.py` has it for the CPU);
* `zhmzm`: the steps of zhmzm/FLAME (c5f94e6, models/Update.py and models/test.py): a copy of the model for each client,
  a loader that makes one image at a time into a tensor and normalises it, each batch carried to the device, the loss
  read back in every step;
* `backfed`: the steps of BackFed's clients one after the other (thinh-dao/BackFed, a00c07d, backfed/client_app.py;
  1ee6013, backfed/clients/base_client.py and base_benign_client.py): the same kind of loader, normalised on the device,
  float16 under autocast with a gradient scaler, the loss and the number of hits read back in every step, memory
  collected between clients, the local model carried to the host.

In our own words, with nothing of their logs, attacks and servers. Their PyTorch is as it comes: TF32 for convolutions.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from bench import fit
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from flame.data.samples import Dataset as Images
from flame.data.samples import Samples
from flame.engine.workbench import Task
from flame.run.build import Parts

TESTED = 100  # images of a batch of the test sets


def synthetic(
    root: str,
    download: bool,
    mean: Sequence[float],
    std: Sequence[float],
    classes: int,
    channels: int,
    image_size: int,
    *,
    train: int = 5000,
    test: int = 2000,
) -> Images:
    """In CIFAR-10's place: noise of its shape, the same each time; labels mean nothing."""
    stream = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Samples:
        shape = (count, channels, image_size, image_size)
        x = torch.randint(256, shape, dtype=torch.uint8, generator=stream)
        return Samples(x, torch.arange(count) % classes)

    return Images("synthetic", drawn(train), drawn(test), tuple(mean), tuple(std), classes)


def bare(parts: Parts, device: torch.device) -> None:
    """One round."""
    task, normalised = parts.task, on_device(parts, device)
    for client in range(parts.population.clients):
        model = copy.deepcopy(task.model).to(device).train()
        fit(model, task.train[task.shards[client]].to(device), task.training, normalised, foreach=False)
    for images in task.eval_sets.values():
        tested(model, ((normalised(x), y) for x, y in batches(images.to(device))))


def zhmzm(parts: Parts, device: torch.device) -> None:
    """One round."""
    task = parts.task
    look = Compose([ToTensor(), Normalize(parts.dataset.mean, parts.dataset.std)])
    for client in range(parts.population.clients):
        model = copy.deepcopy(task.model).to(device).train()
        optimizer = sgd(task, model)
        loader = DataLoader(OneByOne(task.train[task.shards[client]], look), task.training.batch_size, shuffle=True)
        for _ in range(int(task.training.epochs)):
            losses = []
            for x, y in loader:
                x, y = x.to(device), y.to(device)
                model.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    for images in task.eval_sets.values():
        tested(model, ((x.to(device), y.to(device)) for x, y in DataLoader(OneByOne(images, look), TESTED)))


def backfed(parts: Parts, device: torch.device) -> None:
    """One round."""
    task, raw = parts.task, ToTensor()
    normalised = Normalize(parts.dataset.mean, parts.dataset.std)
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    for client in range(parts.population.clients):
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        model = copy.deepcopy(task.model).to(device).train()
        optimizer, scaler = sgd(task, model), torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        loader = DataLoader(OneByOne(task.train[task.shards[client]], raw), task.training.batch_size, shuffle=True)
        for _ in range(int(task.training.epochs)):
            total, hits = 0.0, 0
            for x, y in loader:
                optimizer.zero_grad()
                x, y = normalised(x.to(device)), y.to(device)
                with torch.amp.autocast(device.type, half):
                    logits = model(x)
                    loss = F.cross_entropy(logits, y)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.item() * len(y)
                hits += (logits.argmax(1) == y).sum().item()
        {name: value.cpu() for name, value in model.state_dict().items()}
    for images in task.eval_sets.values():
        loader = DataLoader(OneByOne(images, raw), TESTED)
        tested(model, ((normalised(x.to(device)), y.to(device)) for x, y in loader))


LOOPS: dict[str, Callable[[Parts, torch.device], None]] = {"bare": bare, "zhmzm": zhmzm, "backfed": backfed}


class OneByOne(Dataset):
    """Images as torchvision's data sets hand them out."""

    def __init__(self, images: Samples, look: Callable[[Image.Image], Tensor]) -> None:
        self._pixels, self._labels, self._look = images.x.permute(0, 2, 3, 1).numpy(), images.y.tolist(), look

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self._look(Image.fromarray(self._pixels[i])), self._labels[i]


def on_device(parts: Parts, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(x / 255 - mean) / std."""
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (parts.dataset.mean, parts.dataset.std))
    return lambda x: (x / 255 - mean) / std


def sgd(task: Task, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's."""
    return torch.optim.SGD(model.parameters(), task.training.lr, momentum=task.training.optimizer.momentum)


def batches(images: Samples) -> zip:
    return zip(images.x.split(TESTED), images.y.split(TESTED), strict=True)


@torch.no_grad()
def tested(model: nn.Module, loader: object) -> int:
    """Correct answers, read back batch by batch."""
    model.eval()
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
