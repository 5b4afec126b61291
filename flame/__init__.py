"""FLAME (Nguyen et al., USENIX Security 2022): a federation, its defenses, and the evidence.

`flame.aggregate` and `flame.Aggregator` are `flame/library.py`, imported when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flame.library import Aggregator, Outcome, aggregate

__all__ = ["Aggregator", "Outcome", "aggregate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'flame' has no attribute {name!r}")
    from flame import library  # here, so that commands which need none of it do not wait

    return getattr(library, name)
