"""FLARE (Wang, Xiao, Chen, Hu, Lou and Hou, "FLARE: Defending Federated Learning against Model Poisoning Attacks via
Latent Space Representations", AsiaCCS 2022): clients are trusted by how often their models look alike from inside.

Every local model is shown the same few images of one class, and what reaches its output layer (the penultimate layer
representations, PLRs) is compared with everyone else's by the unbiased squared maximum mean discrepancy, with the
kernel exp(-||x - y||^2 / p) for p-dimensional PLRs. Each client names the others that are nearest, int(n/2) - 1 of
them. With c_i the times that client i is named, and c the mean of these, its weight is in proportion to
exp(c_i / (tau c)).

Deviations and open points: written after the authors' public code (detect.py, utils/mmd.py and agg_alg.py of
ning-wang1/flare_poisoning_detection at df40ce48) and the paper's abstract; its sections could not be read and are not
cited. The discrepancy may be negative here, as in BackFed (flare_server.py at a00c07de, whose kernel has sigma = 1 and
whose weights are a softmax of c_i, not of c_i / c). The authors raise it to 0, and the estimate is below 0 for models
that are alike, as both see the same images: among those the clients' numbers decide who is trusted. Nobody names itself
(there, whoever is first in a client's order is taken for itself). Equal distances go by client number, as there. Fewer
than four clients name nobody and share equally (there, a division by 0). The authors show 200 images of the test set.
Here the server shows those of its own that are of the class (`root_samples`, drawn before the clients' shares; it does
not train on them). A text is of each class that it is asked for, and its PLR that of all its tokens. A PLR that is no
number is infinitely far from any. Nobody has weight 0. BatchNorm statistics are averaged by trust, too; counters stay
the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from flame.defenses.base import average, laboratory
from flame.round.types import Lab, ServerState, Updates, Verdict

EXACT = "donot_use_mm_for_euclid_dist"  # a product would round the distances of models that are alike


@dataclass(frozen=True)
class Flare:
    """The mean weighed by how many others have a client among their nearest."""

    root_samples: int  # samples of the server, >= 2
    label: int  # the class of those that are shown, >= 0
    tau: float  # temperature of the trust, > 0

    needs_lab: ClassVar[bool] = True
    root_update: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key, least in (("root_samples", 2), ("label", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"defense.{key}={getattr(self, key)} is out of range: must be >= {least}")
        if not 0 < self.tau < float("inf"):
            raise ValueError(f"defense.tau={self.tau} is out of range: must be > 0 (the authors: 1)")

    def __call__(self, state: ServerState, updates: Updates, stream: Generator) -> Verdict:
        """Everyone is accepted."""
        lab = laboratory("flare", updates)
        seen = lab.features((updates.base + row for row in updates.rows), self.shown(lab))  # [n, N, p]
        votes = nearest_votes(discrepancies(seen.double()), updates.ids)
        shares = trust(votes, self.tau)
        info = {"flare/most_votes": float(votes.max()), "flare/least_votes": float(votes.min())}
        return Verdict(replace(state, row=average(state, updates, shares)), shares, info)

    def shown(self, lab: Lab) -> Tensor:
        """[N, ...], the server's samples of the class.

        Raises:
            ValueError: there are not two of them, between which a kernel could be taken.
        """
        root = lab.root
        shown = (root.y == self.label).reshape(len(root), -1).any(1)
        if (count := int(shown.sum())) < 2:
            raise ValueError(
                f"defense.root_samples={self.root_samples} holds {count} sample(s) of class defense.label={self.label}:"
                " must be at least 2; raise root_samples, or take a class that the data set has"
            )
        return root.x[shown]


def discrepancies(seen: Tensor) -> Tensor:
    """[n, n] float64, unbiased squared MMD of n samples of N points `seen` [n, N, p]; below 0 where they are alike."""
    n, count, width = seen.shape
    means, within = [], []
    for i, own in enumerate(seen):
        kernel = (-torch.cdist(own, seen.flatten(0, 1), compute_mode=EXACT).square() / width).exp().nan_to_num(0)
        kernel = kernel.unflatten(1, (n, count))  # [N, n, N]
        means.append(kernel.mean(dim=(0, 2)))
        within.append((kernel[:, i].sum() - kernel[:, i].trace()) / (count * (count - 1)))
    own = torch.stack(within)
    return own[:, None] + own - 2 * torch.stack(means)


def nearest_votes(gaps: Tensor, ids: Tensor) -> Tensor:
    """[n] float64, among how many others' int(n/2) - 1 nearest a client is under distances `gaps` [n, n]."""
    n = len(gaps)
    order = ids.argsort()
    apart = gaps[order][:, order].fill_diagonal_(torch.inf)
    named = apart.argsort(dim=1, stable=True)[:, : max(0, n // 2 - 1)]
    votes = torch.zeros(n, dtype=torch.float64)
    votes[order] = named.flatten().bincount(minlength=n).double()
    return votes


def trust(votes: Tensor, tau: float) -> Tensor:
    """[n], shares in proportion to exp(votes [n] / (tau times their mean)); equal ones without a vote."""
    return torch.softmax(votes / (tau * votes.mean().clamp_min(torch.finfo(votes.dtype).tiny)), dim=0)
