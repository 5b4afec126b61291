"""Which client holds which training images.

Every partition is a pure function of (labels, clients, generator); all but `iid` need one label for each sample, [N]
int64, and refuse texts whose every token has one, [N, T]. A client's samples come in random order, so that any slice of
its shard is a fair sample of it. Nothing here is done client by client: 100,000 take a second.

| partition      | shards                | source                                                                      |
|----------------|-----------------------|-----------------------------------------------------------------------------|
| `iid`          | disjoint and complete | McMahan et al., AISTATS 2017, section 3                                     |
| `dirichlet`    | disjoint and complete | Yurochkin et al., ICML 2019, section 4; Lin et al., NeurIPS 2020, section 4 |
| `main_label`   | equal size, overlap   | non-IID degree of the group of FLAME (Nguyen et al., USENIX Security 2022)  |
| `label_groups` | disjoint and complete | Fang et al., USENIX Security 2020, section 4; github.com/zhmzm/FLAME        |
| `shards`       | disjoint and complete | McMahan et al., AISTATS 2017, section 3                                     |

All raise `ValueError` for a parameter out of range, and when some client would go without images.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Generator, Tensor

from flame.data.samples import Shards
from flame.partition.checks import check_count, check_one_class, check_share, check_supply, redrawn, require

AT_ONCE = 1 << 18  # images in the decks that `main_label` deals together: the work space of any number of clients


def iid(labels: Tensor, clients: int, generator: Generator) -> Shards:
    """A shuffle cut into parts whose sizes differ by at most one."""
    check_supply(labels, clients)
    sizes = torch.full((clients,), len(labels) // clients)
    sizes[: len(labels) % clients] += 1
    return Shards.cut(torch.randperm(len(labels), generator=generator), sizes)


def dirichlet(labels: Tensor, clients: int, generator: Generator, *, alpha: float, min_size: int) -> Shards:
    """Each class is divided among the clients in proportions drawn from Dir(alpha, ..., alpha).

    The draw is per class over clients, the usual one in work on the security of federated learning, so that sizes vary
    with it; Hsu et al. (2019) draw per client over classes. `alpha` > 0: near 0 one client has nearly all of a class,
    towards infinity all have equal shares. A draw that leaves a client under `min_size` >= 1 images is repeated as a
    whole, up to `DRAWS` times. No client is closed once it holds the average, as some public code does.
    """
    check_one_class(labels, "dirichlet")
    ok = isinstance(alpha, int | float) and 0 < alpha < math.inf
    require(ok, "partition.alpha", alpha, "> 0 and finite (0.5 is a common non-IID setting)")
    check_count("partition.min_size", min_size)
    check_supply(labels, clients, min_size, key="partition.min_size")
    draw = partial(_dirichlet_counts, torch.bincount(labels), clients, alpha, generator)  # -> [classes, clients]
    counts = redrawn(draw, min_size, f"partition.alpha={alpha}", "raise partition.alpha")
    owner = torch.arange(clients).repeat(len(counts)).repeat_interleave(counts.flatten())
    return collect(_by_label(labels, generator), owner, clients, generator)


def main_label(labels: Tensor, clients: int, generator: Generator, *, q: float, samples_per_client: int) -> Shards:
    """Each client draws a main label; a share `q` of its images have it, the rest are drawn from all classes.

    `q` in [0, 1]. With s = samples_per_client, m = round(q * s) images are of the main label; no client holds an image
    twice, so a main label with k of the N images has the expected share (m + (s - m) * (k - m) / (N - m)) / s, about
    q + (1 - q) / classes. Images are dealt from shuffled decks, with a new deck when one runs short: q = 0 is IID, and
    disjoint while clients * s <= N. Otherwise clients overlap, and their number has no bound.
    """
    check_one_class(labels, "main_label")
    check_share(q)
    check_count("partition.samples_per_client", samples_per_client)
    check_count("clients", clients)
    supply = torch.bincount(labels)  # [classes]
    own = round(q * samples_per_client)
    _check_main_labels(supply, own, q, samples_per_client)
    main = torch.randint(len(supply), (clients,), generator=generator)
    images = torch.empty(clients, samples_per_client, dtype=torch.int64)
    for label, pool in enumerate(labels.argsort(stable=True).split(supply.tolist())):
        chosen = main == label
        images[chosen, :own] = _deal(pool, int(chosen.sum()), own, generator)
    decks = max(1, AT_ONCE // len(labels))
    for table in images.split(decks * (len(labels) // samples_per_client)):
        table.copy_(_fill_up(table[:, :own], len(labels), samples_per_client, generator))
    return Shards.cut(images.flatten(), torch.full((clients,), samples_per_client))


def label_groups(labels: Tensor, clients: int, generator: Generator, *, q: float) -> Shards:
    """Clients form one random group per class; an image of label k goes to group k with probability `q` in [0, 1].

    It goes to each other group with probability (1 - q) / (classes - 1), and a group deals its images evenly to its
    clients. q = 1 / classes is IID, q = 1 gives each client a single label. The public code fixes the counts instead of
    drawing them and drops what does not divide evenly; here every image is used.
    """
    check_one_class(labels, "label_groups")
    check_share(q)
    classes = int(labels.max()) + 1
    check_supply(labels, clients)
    order = torch.randperm(len(labels), generator=generator)
    label = labels[order]
    stays = torch.rand(label.shape, generator=generator, dtype=torch.float64) < q
    step = torch.randint(1, max(classes, 2), label.shape, generator=generator)  # to one of the other groups
    group, by_group = torch.where(stays, label, (label + step) % classes).sort(stable=True)
    supply = torch.bincount(group, minlength=classes)
    members = torch.bincount(torch.arange(clients) % classes, minlength=classes)
    _check_groups(supply, members, q, clients)
    rank = torch.arange(len(group)) - (supply.cumsum(0) - supply)[group]  # of an image within its group
    seat = rank % members[group] * classes + group  # seat j belongs to group j % classes
    owner = torch.randperm(clients, generator=generator)[seat]
    return collect(order[by_group], owner, clients, generator)


def shards(labels: Tensor, clients: int, generator: Generator, *, shards_per_client: int) -> Shards:
    """Images sorted by label are cut into clients * shards_per_client equal parts, which are dealt at random.

    With two parts per client, most clients hold two labels. Parts differ by at most one image.
    """
    check_one_class(labels, "shards")
    check_count("partition.shards_per_client", shards_per_client)
    check_supply(labels, clients, shards_per_client, key="partition.shards_per_client")
    total = clients * shards_per_client
    part = torch.arange(len(labels)) * total // len(labels)  # [N], of the images in label order
    owner = torch.randperm(total, generator=generator)[part] // shards_per_client
    return collect(_by_label(labels, generator), owner, clients, generator)


def _by_label(labels: Tensor, generator: Generator) -> Tensor:
    """[N] indices sorted by label, shuffled within each label."""
    order = torch.randperm(len(labels), generator=generator)
    return order[labels[order].argsort(stable=True)]


def collect(index: Tensor, owner: Tensor, clients: int, generator: Generator) -> Shards:
    """The images `index` [N] of each client, in random order, given the client `owner` [N] of each."""
    order = torch.randperm(len(index), generator=generator)
    owner, by_owner = owner[order].sort(stable=True)
    return Shards.cut(index[order[by_owner]], torch.bincount(owner, minlength=clients))


def _dirichlet_counts(supply: Tensor, clients: int, alpha: float, generator: Generator) -> Tensor:
    """[classes, clients] int64 with row sums `supply` [classes]."""
    return portions(dirichlet_shares(len(supply), clients, alpha, generator), supply)


def portions(shares: Tensor, supply: Tensor) -> Tensor:
    """[rows, clients] int64: whole portions of `supply` [rows] in proportion to `shares` [rows, clients], all of it."""
    cuts = (shares.cumsum(1) * supply[:, None]).round().long()
    return cuts.diff(dim=1, prepend=torch.zeros_like(supply)[:, None])


def dirichlet_shares(draws: int, clients: int, alpha: float, generator: Generator) -> Tensor:
    """[draws, clients] float64, each row from Dir(alpha, ..., alpha).

    Gamma(alpha) variates underflow for small alpha, so they are formed as logarithms, by Gamma(alpha) ~
    Gamma(alpha + 1) * U^(1 / alpha) (Marsaglia and Tsang, ACM TOMS 2000, section 6), and normalised by a softmax.
    """
    shape = torch.full((draws, clients), alpha + 1, dtype=torch.float64)
    uniform = 1 - torch.rand(
        draws, clients, generator=generator, dtype=torch.float64
    )  # (0, 1], its logarithm is finite
    return (torch._standard_gamma(shape, generator=generator).log() + uniform.log() / alpha).softmax(1)


def _deal(pool: Tensor, hands: int, size: int, generator: Generator) -> Tensor:
    """[hands, size] items of `pool`, each hand from one shuffled deck; a new deck when the last cannot fill a hand."""
    if not hands or not size:
        return pool.new_empty(hands, size)
    per_deck = len(pool) // size
    decks = [torch.randperm(len(pool), generator=generator)[: per_deck * size] for _ in range(-(-hands // per_deck))]
    return pool[torch.cat(decks)[: hands * size]].view(hands, size)


def _fill_up(held: Tensor, images: int, size: int, generator: Generator) -> Tensor:
    """[n, size] with the images `held` [n, m] and size - m others; images // size clients share a shuffled deck."""
    (clients, own), per_deck = held.shape, images // size
    draws = [
        (torch.randperm(images, generator=generator), torch.randperm(size, generator=generator))
        for _ in range(-(-clients // per_deck))
    ]
    decks, orders = (torch.stack(kind) for kind in zip(*draws, strict=True))  # [D, images], [D, size]
    place = torch.empty_like(decks).scatter_(1, decks, torch.arange(images).expand_as(decks))
    deck, hand = torch.arange(clients) // per_deck, torch.arange(clients) % per_deck
    again = place[deck[:, None], held]  # where in its deck the images lie that a client already holds
    client, image = (again // size == hand[:, None]).nonzero(as_tuple=True)  # in its own hand
    fresh = torch.ones(clients, size, dtype=torch.bool)
    fresh[client, again[client, image] % size] = False
    fresh &= fresh.cumsum(1) <= size - own
    dealt = decks[:, : per_deck * size].reshape(-1, size)[:clients][fresh].view(clients, size - own)
    return torch.cat([held, dealt], 1).gather(1, orders[deck])


def _check_main_labels(supply: Tensor, own: int, q: float, samples_per_client: int) -> None:
    images = int(supply.sum())
    allowed = f"<= N={images}, the number of training images"
    require(samples_per_client <= images, "partition.samples_per_client", samples_per_client, allowed)
    if own > supply.min():
        raise ValueError(
            f"partition.q={q} with partition.samples_per_client={samples_per_client} needs {own} images of a label, but"
            f" label {int(supply.argmin())} has {int(supply.min())}, a partition that cannot fill every client:"
            " lower one of the two"
        )


def _check_groups(supply: Tensor, members: Tensor, q: float, clients: int) -> None:
    classes = len(supply)
    require(
        clients >= classes, "clients", clients, f">= {classes}, a client for each label group, or partition=dirichlet"
    )
    if (supply < members).any():
        raise ValueError(
            f"partition.q={q} leaves a label group of N={int(supply.sum())} images with fewer images than clients"
            f" (clients={clients} in {classes} groups), a partition that cannot fill every client:"
            f" lower clients, or take partition.q nearer to 1 / {classes}"
        )
