"""Whether the parts of a run go together, before its first round: model, data set, defense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Generator

from attacks.base import Attack
from flame.data.reading import reader
from flame.data.samples import Dataset, Samples, Shards
from flame.defenses.base import Defense
from flame.defenses.mixing import PreAggregation
from flame.engine.laboratory import Laboratory
from flame.engine.workbench import Task, Workbench
from flame.round.augment import UNCHANGED, Augment
from flame.round.client import LocalTraining
from flame.round.device import one_thread
from flame.round.evaluate import judged
from flame.round.seeding import generator
from flame.round.server import Server
from flame.round.types import Cohort, ServerState, Updates
from flame.run.trial import check_samples

TRIED = 4  # images of the job that is done twice
JUDGING = {  # how a defense may have its model judged -> what it does then, and the value for nothing
    "randomized_smoothing": ("votes on classes", "null"),
    "answer_confidence": ("counts the answers that the model is sure of", "0"),
}


def check_fit(model: torch.nn.Module, dataset: Dataset, smallest_batch: int) -> None:
    """ValueError unless the model gives the data set's samples a logit per class and trains on the smallest batch."""
    two = dataset.test[torch.tensor([0, -1])]
    x, answer = reader(dataset)(two.x), (dataset.classes, *two.y.shape[1:])
    check_samples(model, x, answer, smallest_batch, f"dataset={dataset.name}")


def check_recipe(training: LocalTraining, train: Samples) -> None:
    """ValueError if clients are to search for triggers in what is no image."""
    if training.hardening is not None and train.x.dtype != torch.uint8:
        raise ValueError("client.hardening searches for triggers in images, and this data set has none: say client=sgd")


@one_thread()
def check_repeatable(task: Task, state: ServerState) -> None:
    """ValueError unless the model trains and answers twice to the same bits, as all that is recorded takes for granted.

    Two jobs of one address on a few images, one after the other in one process.
    """
    check_recipe(task.training, task.train)
    few = torch.arange(min(TRIED, len(task.train)))
    tiny = replace(
        task,
        shards=Shards.cut(few, torch.tensor([len(few)])),
        eval_sets={"clean": task.eval_sets["clean"][:TRIED]},
        training=replace(task.training.unhardened, epochs=1, batch_size=min(2, task.training.batch_size)),
        smoothing=None,
    )
    bench = Workbench(tiny)
    try:
        once, again = _done(bench, state), _done(bench, state)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition(" Hint")[0].rstrip(".")
        raise ValueError(
            f"model={type(task.model).__name__} fails in a step of training: {reason}. Logits must come from"
            " parameters, and no layer may change in place (inplace=True) what another still needs"
        ) from error
    if once != again:
        raise ValueError(
            f"model={type(task.model).__name__} gives other numbers for the same job, so no run of it can be repeated:"
            " it must draw from torch's global generators alone, which every job sets, and keep nothing outside its"
            " state_dict (random, numpy.random, a generator of its own and a count of calls are of that kind)"
        )


def _done(bench: Workbench, state: ServerState) -> tuple[bytes, ...]:
    """The bits of a small job: what is sent and answered."""
    (row,), (counters,) = bench.task.layout.zeros(1)
    loss, _ = bench.train(state.row, state.counters, {}, 0, 0, compromised=False)
    bench.write_update(state.row, row, counters)
    answers = bench.logits(state.row, state.counters, bench.task.eval_sets["clean"].x, 0)
    return repr(loss).encode(), row.numpy().tobytes(), counters.numpy().tobytes(), answers.numpy().tobytes()


def fitting(augment: Augment, dataset: Dataset) -> Augment:
    """The augmentation; ValueError unless it can be done to the data set's samples."""
    if dataset.kind == "images":
        augment.check(*dataset.train.x.shape[-2:])
    elif augment != UNCHANGED:
        raise ValueError(f"augment changes images, and dataset={dataset.name} has {dataset.kind}: say augment=none")
    return augment


def check_memo(folder: str | None, server: Server, stacked: bool) -> None:
    """ValueError if what clients make of the global model is to be kept, and follows from more than that.

    From their own statistics, too, or in the last bits from who is trained beside them.
    """
    if folder is not None and stacked:
        raise ValueError(
            f"memo.dir={folder} keeps what each client makes of the global model, to the bit, and with engine=stacked"
            " that depends on who is trained beside it: leave one of the two out"
        )
    if folder is not None and server.statistics == "local":
        raise ValueError(
            f"memo.dir={folder} keeps what clients make of the global model, and with server.statistics=local"
            " they start from their own statistics: leave one of the two out"
        )


def prepared(attack: Attack, dataset: Dataset, stream: Generator) -> tuple[Attack, Dataset]:
    """As `Attack.prepare`; ValueError unless attack, what it is around and its trigger change data of this kind."""
    parts: list[object] = [attack]
    for part in parts:
        parts += [getattr(part, name) for name in ("backdoor", "trigger") if getattr(part, name, None) is not None]
        reads = getattr(part, "reads", None)
        if reads not in (None, dataset.kind):
            raise ValueError(
                f"attack: {type(part).__name__} changes {reads}, and dataset={dataset.name} has {dataset.kind}: take"
                f" an attack on {dataset.kind}, or one on updates alone"
            )
    return attack.prepare(dataset, stream)


def judged_by(defense: Defense, dataset: Dataset, sets: Mapping[str, Samples]) -> dict[str, Samples]:
    """The evaluation sets as the defense wants answers to count.

    ValueError if it has a say in that, and a set says by itself what is right (traffic, by alarms).
    """
    least = getattr(defense, "answer_confidence", 0.0)
    own = any(type(samples).right is not Samples.right for samples in sets.values())
    if own and (key := next((key for key in JUDGING if getattr(defense, key, None)), None)):
        place, inner = "defense", defense
        while isinstance(inner, PreAggregation):
            place, inner = f"{place}.rule", inner.rule
        raise ValueError(
            f"{place}.{key} {JUDGING[key][0]}, and dataset={dataset.name} says by itself what is right (traffic, by"
            f" alarms): say {place}.{key}={JUDGING[key][1]}, or take another defense"
        )
    return {name: judged(samples, least) for name, samples in sets.items()}


def check_clients(defense: Defense, clients: int) -> None:
    """ValueError if the defense says that it cannot filter rounds of so many clients."""
    check = getattr(defense, "check_clients", None)
    if check is not None:
        check(clients)


def check_defense(defense: Defense, clients: int, state: ServerState, task: Task) -> None:
    """ValueError unless the defense can filter rounds of so many and read this model's updates.

    Tried on one client that sends nothing.
    """
    check_clients(defense, clients)
    rows, _ = task.layout.zeros(1)
    first, one, none = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), torch.zeros(1).double()
    silent = Updates(task.layout, state.row, state.counters, first, rows, state.counters[None], one, none, root=rows[0])
    if getattr(defense, "needs_lab", False):
        silent = replace(silent, lab=Laboratory.of(task, state, Cohort(first, torch.tensor([False]))))
    defense(state, silent, generator(0, "check"))
