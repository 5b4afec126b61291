"""The one module that sees a verdict and the ground truth together.

FLAME's paper defines TPR = TP / (TP + FP) and TNR = TN / (TN + FN), which are precisions; most later work means
recalls. Both are here under names that cannot be mixed up. "Positive" is rejection, "malicious" the truth.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flame.geometry.clustering import Clustering
from flame.round.types import Cohort, Verdict

NAN = float("nan")


def score(verdict: Verdict, shadows: Mapping[str, Clustering], cohort: Cohort) -> dict[str, float]:
    """filter/* for the defense's verdict, shadow/<scope>/* and auc/<scope> for what each vector would have accepted."""
    bad = cohort.compromised
    scores = {f"filter/{k}": v for k, v in filter_scores(verdict.accepted, bad).items()}
    for scope, shadow in shadows.items():
        scores |= {f"shadow/{scope}/{k}": v for k, v in filter_scores(shadow.accepted, bad).items() if k != "floor"}
        scores[f"auc/{scope}"] = auc(shadow.outlier_scores, bad)
    return scores


def filter_scores(accepted: Tensor, compromised: Tensor) -> dict[str, float]:
    """Quality of an accepted set [n] bool against the truth [n] bool; NaN where a share has no denominator.

    `floor` is the share of benign clients that an accepted set of n//2 + 1 must lose at least: FLAME's false positives
    mean nothing without it.
    """
    rejected, benign, n = ~accepted, ~compromised, len(accepted)
    benign_count = int(benign.sum())
    return {
        "malicious_recall": _share(rejected & compromised, compromised),  # malicious that were rejected
        "malicious_precision": _share(rejected & compromised, rejected),  # rejected that were malicious
        "benign_recall": _share(accepted & benign, benign),  # benign that were accepted
        "benign_precision": _share(accepted & benign, accepted),  # accepted that were benign
        "accepted": float(accepted.sum()),
        "floor": max(0, benign_count - (n // 2 + 1)) / benign_count if benign_count else NAN,
    }


def auc(scores: Tensor, compromised: Tensor) -> float:
    """Area under the ROC curve of outlier scores [n] as a detector of compromised clients; NaN with one class only.

    The share of (malicious, benign) pairs in which the malicious client scores higher, ties counting half.
    """
    bad, good = scores[compromised], scores[~compromised]
    if not len(bad) or not len(good):
        return NAN
    gaps = bad[:, None] - good
    return float(((gaps > 0).double() + 0.5 * (gaps == 0)).mean())


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.sum()) / float(whole.sum()) if bool(whole.any()) else NAN
