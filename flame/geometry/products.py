"""Everything that reads the n x d update matrix: inner products per block, and what follows from them.

The Gram matrix is computed once per block in float64; squared distances, norms and cosine distances of any scope are
sums over blocks, so that every scope costs one pass together. Cosine distances of whole models come out of the updates
(U_i = W_i - G, a_i = ||W_i||):

    1 - cos(W_i, W_j) = (||U_i - U_j||^2 - (a_i - a_j)^2) / (2 a_i a_j)
    a_i - a_j         = (2 G.(U_i - U_j) + ||U_i||^2 - ||U_j||^2) / (a_i + a_j)

Every term is small and well scaled, where 1 - cos of float32 models (1e-4 to 1e-6) drowns in the rounding of cos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flame.geometry.layout import COUNTERS, StateLayout, scope_blocks

CHUNK_ELEMENTS = 1 << 20  # working set of one chunk: 8 MB in float64, whatever the number of clients
WIDE_ELEMENTS = 1 << 26  # of a chunk elsewhere than on the host: 512 MB in float64, few calls for much work
EXACT_ELEMENTS = 1 << 24  # of rows [n, d], up to which float64 costs milliseconds
SYMMETRIC = 64  # clients from which half of a Gram matrix is not computed
CACHED_ELEMENTS = 600 << 10  # of one chunk in float32, 2.4 MB: read seven times, so it must stay in the cache
PAD = 16  # a cache line between rows: a multiple of 4 kB from row to row would send them to the same cache sets
OUTLIER = 4.0  # times the median length
SHORT = 0.5  # times the length of the centre; a shorter row would lose digits if the centre were taken off


@dataclass(frozen=True)
class Products:
    """Inner products of one block (or of a sum of blocks)."""

    gram: Tensor  # [n, n] float64, <U_i, U_j>
    along: Tensor  # [n] float64, <G, U_i>
    base: Tensor  # [] float64, ||G||^2

    @classmethod
    def measure(cls, base: Tensor, rows: Tensor, wide: int = 0) -> Products:
        """One pass over `rows` [n, d], chunk by chunk: no float64 copy of the matrix ever exists.

        The result is on the host. With `wide`, float64 throughout, in chunks of so many elements; without, as below.

        A small matrix is multiplied in float64. A large one is multiplied in float32, at the speed of a plain product,
        after a centre c that the clients share has been taken off: what rounding is left is relative to the clients'
        differences, not to their drift. A row that is short in a chunk stays as it is there, so that no length and no
        inner product is a difference of larger terms: with U_i = V_i + s_i c, s_i = 0 for a short row and else 1,

            <U_i, U_j> = <V_i, V_j> + s_j <V_i, c> + s_i <V_j, c> + s_i s_j <c, c>.

        The distance of two updates is resolved down to about 3e-4 of ||V_i||.
        """
        n, d = rows.shape
        gram, cross, along = (rows.new_zeros(size, dtype=torch.float64) for size in ((n, n), (n,), (n,)))
        # counters are whole numbers
        exact = wide > 0 or rows.numel() <= EXACT_ELEMENTS or rows.dtype != torch.float32
        width = max(512, (wide or CHUNK_ELEMENTS) // n) if exact else max(2048, CACHED_ELEMENTS // n)
        apart = rows.new_empty(0 if exact else n, min(width, d) + PAD)  # each chunk's differences from its centre
        for start in range(0, d, width):
            part = rows[:, start : start + width]  # [n, width]
            g = base[start : start + width]
            if exact:
                long = part.double()
                gram.addmm_(long, long.T)
                along.addmv_(long, g.double())
            else:
                centre, square, near = usual(part)
                part = _taken_off(centre, part, near, apart[:, : len(g)])
                _add_gram(gram, part)
                own = (part @ centre).double()
                if near is None:
                    cross += own + square / 2
                    along += part @ g + centre.dot(g)
                else:
                    s = near.double()
                    gram.addmm_(torch.stack([own, s], 1), torch.stack([s, own + square * s]))
                    along += part @ g + near * centre.dot(g)
        return cls((gram + cross[:, None] + cross).cpu(), along.cpu(), squared_length(base).cpu())

    def __add__(self, other: Products) -> Products:
        return Products(self.gram + other.gram, self.along + other.along, self.base + other.base)

    def cosine_distances(self, of: str = "model") -> Tensor:
        """[n, n] float64 in [0, 2]: 1 - cos of local models (Algorithm 1) or of updates; zero vectors are at 1."""
        own = self.gram.diagonal()  # [n] ||U_i||^2
        if of == "update":
            squares, gaps = own, own[:, None] - own
        else:
            squares = self.base + 2 * self.along + own  # [n] a_i^2
            gaps = 2 * (self.along[:, None] - self.along) + own[:, None] - own  # [n, n] a_i^2 - a_j^2
        a = squares.clamp_min(0).sqrt()
        scale = a[:, None] * a
        chord = squared_distances(self.gram) - (gaps / (a[:, None] + a)) ** 2
        distances = chord / (2 * scale)
        if of == "update":  # a tiny update (1e-12 of the others) would cancel out of the chord, and be near everybody
            lopsided = torch.minimum(a[:, None], a) < 0.1 * torch.maximum(a[:, None], a)
            distances = torch.where(lopsided, 1 - self.gram / scale, distances)
        distances = distances.clamp(0, 2).masked_fill(scale == 0, 1.0)
        return distances.fill_diagonal_(0)


@dataclass(frozen=True)
class Geometry:
    """The updates of one round as inner products, block by block."""

    blocks: Mapping[str, Products]

    @classmethod
    def measure(
        cls, layout: StateLayout, base: Tensor, rows: Tensor, base_counters: Tensor, counters: Tensor, wide: int = 0
    ) -> Geometry:
        """One pass over `rows` [n, d + b]; counters [n, c] are differences too and form a block of their own."""
        blocks = {name: Products.measure(base[span], rows[:, span], wide) for name, span in layout.spans.items()}
        if layout.counters:
            blocks[COUNTERS] = Products.measure(base_counters, counters)
        return cls(blocks)

    def select(self, keep: Tensor) -> Geometry:
        """The clients under the mask `keep` [n] bool; nothing is copied when all are kept."""
        if bool(keep.all()):
            return self
        return Geometry({k: Products(p.gram[keep][:, keep], p.along[keep], p.base) for k, p in self.blocks.items()})

    def scope(self, scope: str) -> Products:
        """Inner products over all blocks of a named scope."""
        parts = [self.blocks[b] for b in scope_blocks(scope) if b in self.blocks]
        return sum(parts[1:], start=parts[0])

    def norms(self, scope: str) -> Tensor:
        """[n] float64, L2 norm of each update; NaN or Inf where it holds one."""
        # of a short update in a large block, what is left of its centre's product can round below 0
        return self.scope(scope).gram.diagonal().clamp_min(0).sqrt()

    def squared_distances(self, scope: str) -> Tensor:
        """[n, n] float64, ||U_i - U_j||^2 = ||W_i - W_j||^2."""
        return squared_distances(self.scope(scope).gram)

    def cosine_distances(self, scope: str, of: str = "model") -> Tensor:
        """[n, n] float64 in [0, 2]: 1 - cos of local models (Algorithm 1) or of updates; zero vectors are at 1."""
        return self.scope(scope).cosine_distances(of)


def squared_distances(gram: Tensor) -> Tensor:
    """[n, n] from a Gram matrix [n, n]; clamped at 0, where identical rows can round below it."""
    own = gram.diagonal()
    return (own[:, None] + own - 2 * gram).clamp_min(0).fill_diagonal_(0)


def squared_length(row: Tensor) -> Tensor:
    """[] float64, of a float32 row, without a float64 copy of all of it."""
    return torch.stack([part.double().square().sum() for part in row.split(CHUNK_ELEMENTS)]).sum()


def inner_products(rows: Tensor, vector: Tensor) -> Tensor:
    """[n] float64, <U_i, v> of `rows` [n, d] and a vector [d], summed in float64 chunk by chunk."""
    width = max(512, CHUNK_ELEMENTS // len(rows))
    parts = zip(rows.split(width, dim=1), vector.split(width), strict=True)
    return torch.stack([part.double() @ v.double() for part, v in parts]).sum(dim=0)


def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """[d] float64, of `rows` [n, d] with weights [n] float64, where they are; chunk by chunk."""
    width = max(512, WIDE_ELEMENTS // len(rows))
    return torch.cat([weights @ part.double() for part in rows.split(width, dim=1)])


def usual(part: Tensor) -> tuple[Tensor, float, Tensor | None]:
    """[width] float32, the mean of those rows of `part` [n, width] that are of usual length; 0 if nobody is usual.

    Beside it its squared length, and [n] bool, the rows that are not short against it; None if no row is. A client that
    sends NaN or 1e38 must not be able to drown the others' differences in the mean.
    """
    lengths = torch.linalg.vector_norm(part, dim=1)  # [n], NaN where a row has one, Inf where its squares overflow
    fits = (lengths <= OUTLIER * lengths.nanmedian()) & lengths.isfinite()
    if bool(fits.all()):
        centre = part.new_full((len(part),), 1 / len(part)) @ part  # twice as fast as part.mean(0)
    else:
        centre = part[fits].mean(0) if bool(fits.any()) else torch.zeros_like(part[0])
    square = float(centre.dot(centre))
    near = lengths >= SHORT * square**0.5
    return centre, square, None if bool(near.all()) else near


def _taken_off(centre: Tensor, part: Tensor, near: Tensor | None, out: Tensor) -> Tensor:
    """`part` [n, width] without the centre where a row is `near` [n] bool (None: each is), else as it is; in `out`."""
    torch.sub(part, centre, out=out)
    if near is not None:
        out[~near] = part[~near]
    return out


def _add_gram(gram: Tensor, part: Tensor) -> None:
    """Add `part` [n, width] times its transpose to `gram` [n, n] float64; of many clients one half is mirrored."""
    half = len(part) // 2
    if len(part) < SYMMETRIC:
        gram += part @ part.T
        return
    upper, lower = part[:half], part[half:]
    between = upper @ lower.T
    gram[:half, :half] += upper @ upper.T
    gram[half:, half:] += lower @ lower.T
    gram[:half, half:] += between
    gram[half:, :half] += between.T
