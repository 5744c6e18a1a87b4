"""Quantisers to few bits. The table gives the quantised value of a float, and its gradient if g is that of the value.

| function | value | gradient |
|---|---|---|
| `sign` | -1, +1, or 0 for x = 0 | g [abs x <= 1] |
| `binary` | +a_n for W >= 0, -a_n below, a_n = mean abs W_n of output channel n | g (1/F + a_n [abs W <= 1]) |
| `ternary` | a sign(W) where abs W > d, else 0; d = 0.7 mean abs W, a = mean of those abs W; of the layer | g |
| `fixed_point` | an integer below 2^(b-1) times a power of two, the least that holds the largest abs x | g |

F is the number of weights of an output channel. Except in `kmeans`, a number that is not finite becomes NaN.

Sources: `sign` and `binary`: Rastegari, Ordonez, Redmon, Farhadi: "XNOR-Net", 2016 (arXiv 1603.05279), section 3.
`ternary`: Li, Liu: "Ternary Weight Networks", 2016 (arXiv 1605.04711), section 2. `kmeans`: Han, Mao, Dally: "Deep
Compression", 2016 (arXiv 1510.00149), section 3.
"""

import math

import torch
from torch import Tensor

from convrepro.ops.straight_through import straight_through


def sign(x: Tensor) -> Tensor:
    """Returns -1, 0 or +1, in the shape and dtype of `x`."""
    return straight_through(x.detach().sign(), x * (x.abs() <= 1))


def binary(weight: Tensor) -> Tensor:
    """Returns the signs of `weight` (N, ...), scaled in each output channel by its mean magnitude.

    No other scale of the signs is nearer to `weight` in least squares.
    """
    with torch.no_grad():
        scale = weight.abs().mean(_all_but_first(weight), keepdim=True)
        slope = scale * (weight.abs() <= 1) + 1 / math.prod(weight.shape[1:])
    return straight_through(scale * torch.where(weight < 0, -1, 1), weight * slope)


def ternary(weight: Tensor) -> Tensor:
    """Returns -a, 0 or +a. The threshold and the scale a are those of the whole `weight`.

    They are computed in float32, for float64 in float64.
    """
    with torch.no_grad():
        magnitude = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
        kept = (magnitude > 0.7 * magnitude.mean()).to(magnitude.dtype)
        scale = (magnitude * kept).sum() / kept.sum().clamp(min=1)
        value = (scale * kept).to(weight.dtype) * weight.sign()
    return straight_through(value, weight)


def fixed_point(x: Tensor, bits: int) -> Tensor:
    """Rounds `x` to fixed-point numbers of `bits` bits, including the sign.

    Each x[i] has its own binary point, so that no number saturates. Rounding is to the nearest, halves to even, in
    float32 (for float64 in float64). `torch.fake_quantize_per_channel_affine` with these scales gives the same result,
    but it has no kernel for the meta device and turns NaN into a number.
    """
    with torch.no_grad():
        limit = 2 ** (bits - 1) - 1
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mantissa, exponent = torch.frexp(wide.abs().amax(_all_but_first(x), keepdim=True) / limit)
        step = torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).to(exponent.dtype))
        value = (wide / step).round_().mul_(step).to(x.dtype)
    return straight_through(value, x)


@torch.no_grad()
def kmeans(x: Tensor, clusters: int, iterations: int = 1000) -> tuple[Tensor, Tensor]:
    """Clusters the numbers in `x` by k-means; `clusters` is at most 256.

    Returns the centroids (clusters,) in ascending order, in the dtype of `x`, and the cluster of each number, as uint8
    in the shape of `x`. It runs Lloyd's algorithm from centroids that are spread evenly between the minimum and the
    maximum, until no number changes its cluster or for `iterations` rounds. A cluster that loses all its numbers keeps
    its centroid.
    """
    numbers = x.detach().flatten().double()
    ordered = numbers.sort().values
    total = torch.cat((ordered.new_zeros(1), ordered.cumsum(0)))
    ends = torch.tensor([0, len(ordered)], device=x.device)
    centroids = ordered[0] + (ordered[-1] - ordered[0]) * torch.linspace(0, 1, clusters).to(ordered)
    edges = None
    for _ in range(iterations):
        previous, edges = edges, torch.searchsorted(ordered, _between(centroids), right=True)
        if previous is not None and torch.equal(previous, edges):
            break
        bounds = torch.cat((ends[:1], edges, ends[1:]))
        count = bounds.diff()
        centroids = torch.where(count > 0, total[bounds].diff() / count.clamp(min=1), centroids)
    cluster = torch.searchsorted(_between(centroids), numbers)
    return centroids.to(x.dtype), cluster.to(torch.uint8).view(x.shape)


def _all_but_first(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _between(centroids: Tensor) -> Tensor:
    return (centroids[1:] + centroids[:-1]) / 2
