"""The Triton kernels of `hetconv_triton`, which says what they compute; importing this module needs Triton.

They share one view of a HetConv layer whose channels lie in G blocks. The block b of the result is a matrix product of
what lies under the window with a packed weight (rows, columns): first come the rows of all channels at the window's
centre, then, for each other tap, those of the block's own channels.
"""

import triton
import triton.language as tl


@triton.jit
def source_of(
    tap,
    image,
    first_h,
    first_w,
    height,
    width,
    KERNEL_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    DIVISOR_H: tl.constexpr,
    DIVISOR_W: tl.constexpr,
):
    """Where a tap finds its pixels: (whether they are inside of the image, their numbers)."""
    h, w = first_h + tap // KERNEL_W * STEP_H, first_w + tap % KERNEL_W * STEP_W
    inside = (h >= 0) & (w >= 0) & (h % DIVISOR_H == 0) & (w % DIVISOR_W == 0)
    h, w = h // DIVISOR_H, w // DIVISOR_W
    return inside & (h < height) & (w < width), (image * height + h) * width + w


@triton.jit
def gather_gemm(
    x,
    weight,
    bias,
    y,
    pixels,
    height,
    width,
    out_height,
    out_width,
    channels,
    out_channels,
    block_in,
    block_out,
    KERNEL_W: tl.constexpr,
    TAPS: tl.constexpr,
    CENTRE: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    FIRST_H: tl.constexpr,
    FIRST_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    DIVISOR_H: tl.constexpr,
    DIVISOR_W: tl.constexpr,
    VECTOR: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    CENTRE_DEPTH: tl.constexpr,
    JOINED: tl.constexpr,
):
    """ROWS output positions times COLUMNS channels of each of JOINED neighbouring blocks: y (pixels, out_channels).

    For output position o and tap t, the source is x at (o * STRIDE + FIRST + t * STEP) / DIVISOR where that is whole
    and inside of the image, else 0. x: (images, height, width, channels); weight: (G, rows, block_out).
    DEPTH: rows of the packed weight for one step, CENTRE_DEPTH at the window's centre, which JOINED blocks read once.
    VECTOR: 0 where the depths divide block_in and channels; else a divisor of both, the entries that are loaded as one.
    """
    column_tiles = tl.cdiv(block_out, COLUMNS)
    across = out_channels // block_out // JOINED * column_tiles
    tile = tl.program_id(0)
    block = tile % across // column_tiles * JOINED
    row = tile // across * ROWS + tl.arange(0, ROWS)
    column = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = row < pixels, column < block_out

    image = row // (out_height * out_width)
    first_h = row // out_width % out_height * STRIDE_H + FIRST_H
    first_w = row % out_width * STRIDE_W + FIRST_W
    block_size = (channels + (TAPS - 1) * block_in) * block_out
    totals = (tl.zeros((ROWS, COLUMNS), tl.float32),) * JOINED

    of_row = (image, first_h, first_w, height, width, KERNEL_W, STEP_H, STEP_W, DIVISOR_H, DIVISOR_W)
    inside, pixel = source_of(CENTRE, *of_row)
    inside = inside & is_row
    for start in range(0, channels, CENTRE_DEPTH):
        channel = start + tl.arange(0, CENTRE_DEPTH)
        x_mask, weight_mask = inside[:, None], is_column[None, :]
        if VECTOR:
            is_channel = channel // VECTOR < channels // VECTOR
            x_mask, weight_mask = x_mask & is_channel[None, :], weight_mask & is_channel[:, None]
        a = tl.load(x + (pixel * channels)[:, None] + channel[None, :], x_mask, 0.0)
        new = ()
        for i in tl.static_range(JOINED):
            at = weight + (block + i) * block_size + channel[:, None] * block_out + column[None, :]
            b = tl.load(at, weight_mask, 0.0)
            new = new + (tl.dot(a, b, totals[i], input_precision=PRECISION),)  # noqa: RUF005 (Triton)
        totals = new

    if TAPS > 1:
        AFFINE: tl.constexpr = DIVISOR_H * DIVISOR_W == 1 and TAPS < 32
        taps_inside = tl.zeros((ROWS,), tl.int32)
        if AFFINE:  # a bit for each tap
            for bit in tl.static_range(TAPS):
                inside, pixel = source_of(bit, *of_row)
                taps_inside |= (inside & is_row).to(tl.int32) << bit
        first = ((image * height + first_h) * width + first_w) * channels
        # The taps of a chunk of channels follow each other, so that they find the pixels in a cache.
        for step in range(0, (TAPS - 1) * tl.cdiv(block_in, DEPTH)):
            place, chunk = step % (TAPS - 1), step // (TAPS - 1)
            tap = place + (place >= CENTRE)
            channel = chunk * DEPTH + tl.arange(0, DEPTH)
            if AFFINE:
                inside = (taps_inside >> tap) & 1 != 0
                source = first + (tap // KERNEL_W * STEP_H * width + tap % KERNEL_W * STEP_W) * channels
            else:
                inside, pixel = source_of(tap, *of_row)
                inside, source = inside & is_row, pixel * channels
            x_mask, weight_mask = inside[:, None], is_column[None, :]
            if VECTOR:
                is_channel = channel // VECTOR < block_in // VECTOR
                x_mask, weight_mask = x_mask & is_channel[None, :], weight_mask & is_channel[:, None]
            packed = channels + place * block_in + channel
            new = ()
            for i in tl.static_range(JOINED):
                own = (block + i) * block_in + channel
                at = weight + (block + i) * block_size + packed[:, None] * block_out + column[None, :]
                a = tl.load(x + source[:, None] + own[None, :], x_mask, 0.0)
                b = tl.load(at, weight_mask, 0.0)
                new = new + (tl.dot(a, b, totals[i], input_precision=PRECISION),)  # noqa: RUF005 (Triton)
            totals = new

    for i in tl.static_range(JOINED):
        total, to = totals[i], (block + i) * block_out + column
        if bias is not None:
            total += tl.load(bias + to, is_column, 0.0).to(tl.float32)[None, :]
        if RELU:
            total = tl.maximum(total, 0.0)
        at = y + row[:, None] * out_channels + to[None, :]
        tl.store(at, total.to(y.dtype.element_ty), is_row[:, None] & is_column[None, :])


@triton.jit
def tap_of(step, CENTRE: tl.constexpr, TAPS: tl.constexpr, centre_steps, steps_per_tap):
    """What a step over the packed rows reads: (whether the centre, its tap, its place among the others, its chunk)."""
    other = step - centre_steps
    is_centre = other < 0
    place = tl.where(is_centre, 0, other % (TAPS - 1) if TAPS > 1 else 0)
    chunk = tl.where(is_centre, step, other // (TAPS - 1) if TAPS > 1 else 0)
    tap = tl.where(is_centre, CENTRE, place + (place >= CENTRE))
    return is_centre, tap, place, chunk


@triton.jit
def weight_gradient(
    x,
    grad,
    partial,
    pixels,
    pixels_per_split,
    height,
    width,
    channels,
    out_channels,
    block_in,
    block_out,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    KERNEL_W: tl.constexpr,
    TAPS: tl.constexpr,
    CENTRE: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    FIRST_H: tl.constexpr,
    FIRST_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    WITH_CENTRE: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SHARED: tl.constexpr,
):
    """SHARED tiles of ROWS packed rows times COLUMNS filters of one block, summed over the pixels of one split:
    partial (splits, G, rows, block_out) in float32.

    x: (images, height, width, channels); grad: (pixels, out_channels). The SHARED tiles read a tile of `grad` once.
    WITH_CENTRE: whether the rows of the window's centre are computed, too.
    VECTOR: as in `gather_gemm`, with ROWS in the place of the depths.
    """
    column_tiles = tl.cdiv(block_out, COLUMNS)
    across = (out_channels // block_out) * column_tiles
    tile, split = tl.program_id(0), tl.program_id(1)
    block = tile % across // column_tiles
    column = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < block_out
    steps_per_tap = tl.cdiv(block_in, ROWS)
    centre_steps = tl.cdiv(channels, ROWS) if WITH_CENTRE else 0
    steps = centre_steps + (TAPS - 1) * steps_per_tap
    first_step = tile // across * SHARED

    totals = (tl.zeros((ROWS, COLUMNS), tl.float32),) * SHARED
    last = tl.minimum((split + 1) * pixels_per_split, pixels)
    for start in range(split * pixels_per_split, last, DEPTH):
        pixel = start + tl.arange(0, DEPTH)
        is_pixel = pixel < last
        image = pixel // (OUT_HEIGHT * OUT_WIDTH)
        first_h = pixel // OUT_WIDTH % OUT_HEIGHT * STRIDE_H + FIRST_H
        first_w = pixel % OUT_WIDTH * STRIDE_W + FIRST_W
        place_of_pixel = ((image * height + first_h) * width + first_w) * channels
        of_grad = pixel[:, None] * out_channels + (block * block_out + column)[None, :]
        b = tl.load(grad + of_grad, is_pixel[:, None] & is_column[None, :], 0.0)
        new = ()
        for i in tl.static_range(SHARED):
            is_centre, tap, place, chunk = tap_of(first_step + i, CENTRE, TAPS, centre_steps, steps_per_tap)
            channel = chunk * ROWS + tl.arange(0, ROWS)
            own = tl.where(is_centre, 0, block * block_in)
            down, right = tap // KERNEL_W * STEP_H, tap % KERNEL_W * STEP_W
            h, w = first_h + down, first_w + right
            inside = is_pixel & (h >= 0) & (h < height) & (w >= 0) & (w < width) & (first_step + i < steps)
            mask = inside[:, None]
            if VECTOR:
                limit = tl.where(is_centre, channels, block_in)
                mask = mask & (channel // VECTOR < limit // VECTOR)[None, :]
            source = place_of_pixel + (down * width + right) * channels
            a = tl.load(x + source[:, None] + (own + channel)[None, :], mask, 0.0)
            new = new + (tl.dot(tl.trans(a), b, totals[i], input_precision=PRECISION),)  # noqa: RUF005 (Triton)
        totals = new

    rows = channels + (TAPS - 1) * block_in
    partial += (split * (out_channels // block_out) + block) * rows * block_out
    for i in tl.static_range(SHARED):
        is_centre, tap, place, chunk = tap_of(first_step + i, CENTRE, TAPS, centre_steps, steps_per_tap)
        channel = chunk * ROWS + tl.arange(0, ROWS)
        packed = tl.where(is_centre, 0, channels + place * block_in) + channel
        is_row = (channel < tl.where(is_centre, channels, block_in)) & (first_step + i < steps)
        to = partial + packed[:, None] * block_out + column[None, :]
        tl.store(to, totals[i], is_row[:, None] & is_column[None, :])


@triton.jit
def gather_weights(weight_kxk, weight_1x1, index, packed, size_kxk, size, SIZE: tl.constexpr):
    """packed[i] = entry index[i] of both weights' entries, one weight after the other; 0 where it is negative."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    entry = tl.load(index + i, i < size, -1)
    value = tl.load(weight_kxk + entry, (entry >= 0) & (entry < size_kxk), 0.0)
    if weight_1x1 is not None:
        value += tl.load(weight_1x1 + entry - size_kxk, entry >= size_kxk, 0.0)
    tl.store(packed + i, value.to(packed.dtype.element_ty), i < size)


@triton.jit
def sum_splits(
    partial,
    centre,
    index,
    out,
    size,
    splits,
    channels,
    out_channels,
    rows,
    block_out,
    SIZE: tl.constexpr,
):
    """out[i] = the sum of the entries index[i] of all splits of `partial` (splits, G, rows, block_out).

    With `centre` (channels, out_channels), the entries of the first rows, the window's centre, are those of it.
    """
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    entry = tl.load(index + i, i < size, 0)
    total = tl.zeros((SIZE,), tl.float32)
    there = i < size
    if centre is not None:
        row, column = entry // block_out % rows, entry // (rows * block_out) * block_out + entry % block_out
        is_centre = there & (row < channels)
        total += tl.load(centre + row * out_channels + column, is_centre, 0.0).to(tl.float32)
        there = there & (row >= channels)
    for split in range(splits):
        total += tl.load(partial + split * rows * out_channels + entry, there, 0.0)
    tl.store(out + i, total.to(out.dtype.element_ty), i < size)
