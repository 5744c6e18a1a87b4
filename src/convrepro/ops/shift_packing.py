"""Packing of the weights of a DeepShift layer (arXiv 1905.13298) into b bits each.

A packed weight consists of a header, the dimensions (uint32 each), the positions of listed zeros (uint32 each), and
the codes in the order of the weight. A code has b bits; codes follow each other without gaps, lowest bit first, and
everything is little-endian. The highest bit of a code is the sign (1 is negative); the bits below it are the field
`highest` - p for the weight +-2^p.

In PS, the largest value of the field stands for 0; in v1 it does so if the layer has zeros. In Q all 2^b codes are
powers; an exact 0, which a trained layer practically never has, is stored as 2^highest, and its position is listed.
"""

import math
import struct

import torch
import torch.nn.functional as F
from torch import Tensor

from convrepro.ops.power_of_two import sign_and_exponent
from convrepro.ops.shift import ShiftOperator

MAGIC = b"2^p1"
HEADER = struct.Struct("<4sBBBxhxxI")
"""Magic, bits of a code, whether a field value stands for 0, number of dimensions, `highest`, count of listed zeros."""


def pack(layer: ShiftOperator) -> bytes:
    """Returns the quantised weight of `layer` as bytes, without the bias.

    Raises ValueError if a weight is not finite.
    """
    weight = layer.quantized_weight().detach()
    code = layer.quantizer.code(weight)
    sign, exponent = (t.flatten() for t in sign_and_exponent(weight))
    zero_field = (1 << (code.bits - 1)) - 1
    field = torch.where(sign == 0, zero_field if code.zero else 0, code.highest - exponent)
    listed = [] if code.zero else torch.nonzero(sign == 0).flatten().tolist()
    codes = field | ((sign < 0).long() << (code.bits - 1))
    header = HEADER.pack(MAGIC, code.bits, code.zero, weight.ndim, code.highest, len(listed))
    return header + struct.pack(f"<{weight.ndim + len(listed)}I", *weight.shape, *listed) + _to_bytes(codes, code.bits)


def unpack(data: bytes) -> Tensor:
    """Returns the weight that `pack` stored, in float32 on the CPU.

    `set_weight_` of a layer of the same variant sets exactly this weight. Raises ValueError if `data` is not a packed
    weight or has the wrong length.
    """
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise ValueError(f"the data is no packed shift weight: it starts with {data[:4]!r}, not with {MAGIC!r}")
    _, bits, zero, ndim, highest, num_listed = HEADER.unpack_from(data)
    start = HEADER.size + 4 * (ndim + num_listed)
    numbers = struct.unpack_from(f"<{ndim + num_listed}I", data, HEADER.size) if len(data) >= start else None
    numel = math.prod(numbers[:ndim]) if numbers else 0
    if numbers is None or len(data) != start + math.ceil(numel * bits / 8):
        raise ValueError(f"the packed shift weight of {len(data)} bytes is cut short or has extra bytes")
    codes = _from_bytes(data[start:], bits, numel)
    field = codes & ((1 << (bits - 1)) - 1)
    weight = torch.exp2((highest - field).float())
    weight[codes >> (bits - 1) == 1] *= -1
    if zero:
        weight[field == (1 << (bits - 1)) - 1] = 0
    weight[list(numbers[ndim:])] = 0
    return weight.reshape(numbers[:ndim])


def _to_bytes(codes: Tensor, bits: int) -> bytes:
    ones = (codes[:, None] >> torch.arange(bits, device=codes.device) & 1).to(torch.uint8).flatten()
    ones = F.pad(ones, (0, -len(ones) % 8)).view(-1, 8)
    return bytes(
        (ones << torch.arange(8, dtype=torch.uint8, device=ones.device)).sum(dim=1, dtype=torch.uint8).tolist()
    )


def _from_bytes(data: bytes, bits: int, numel: int) -> Tensor:
    ones = torch.frombuffer(bytearray(data), dtype=torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    ones = ones.flatten()[: numel * bits].view(numel, bits).long()
    return (ones << torch.arange(bits)).sum(dim=1)
