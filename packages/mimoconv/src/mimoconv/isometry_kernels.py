"""Kernels in Triton, which `fast_isometry` launches: Fourier transforms of filters, their products less the identity, and back.

The transform Z = R + i I of a filters is real here: `rows` (2a, 2b) of one frequency are [R, I; -I, R], and `error` (a, 2a) is
[D, H], where D + i H = Z Z^H - identity. So [D, H] is the upper half of the rows times the transpose of all, less the identity,
and real and imaginary part of the gradient are [D, H] times the rows. Kernels of one tap have one frequency, and only R and D.

Rows, errors and gradients are float16, products add up in float32. Rows carry the factor `ROW_SCALE`, and errors a power of two
that follows the mean norm of the layer's filters, so that neither small nor large weights leave the range of float16.
"""

import triton
import triton.language as tl

__all__ = ["gram", "inverse", "spectrum"]

ROW_SCALE = tl.constexpr(2.0**7)
ERROR_SCALE = tl.constexpr(2.0**-5)


@triton.jit
def pick(pointers, index):
    """Return one of a tuple of pointers."""
    pointer = pointers[0]
    for i in tl.static_range(1, len(pointers)):
        if index == i:
            pointer = pointers[i]
    return pointer


@triton.jit
def fourier(taps, COS: tl.constexpr, SIN: tl.constexpr, K: tl.constexpr):
    """Transform K taps centred at 0: real parts at the frequencies 0 .. K - 1 of 2 K - 1, and imaginary parts at 1 .. K - 1."""
    HALF: tl.constexpr = K // 2
    real, imaginary = (), ()
    for k in tl.static_range(K):
        r = taps[HALF] if K % 2 else COS[k * HALF] * (taps[0] + taps[K - 1])
        for p in tl.static_range(1 - K % 2, HALF):
            r += COS[k * HALF + p] * (taps[p] + taps[K - 1 - p])
        real = real + (r,)  # noqa: RUF005
        if k:
            i = SIN[k * HALF] * (taps[0] - taps[K - 1])
            for p in tl.static_range(1, HALF):
                i += SIN[k * HALF + p] * (taps[p] - taps[K - 1 - p])
            imaginary = imaginary + (i,)  # noqa: RUF005
    return real, imaginary


@triton.jit
def weigh(values, WAVES: tl.constexpr, K: tl.constexpr, TAP: tl.constexpr):
    """Sum values, of the last frequencies of K, times the cosines or sines of a tap."""
    FIRST: tl.constexpr = K - len(values)
    total = WAVES[FIRST * (K // 2) + TAP] * values[0]
    for k in tl.static_range(FIRST + 1, K):
        total += WAVES[k * (K // 2) + TAP] * values[k - FIRST]
    return total


@triton.jit
def adjoint(real, imaginary, COS: tl.constexpr, SIN: tl.constexpr, K: tl.constexpr):
    """Transpose `fourier`: K taps from K real parts and K - 1 imaginary parts."""
    taps = ()
    for p in tl.static_range(K // 2):
        taps = taps + (weigh(real, COS, K, p) + weigh(imaginary, SIN, K, p),)  # noqa: RUF005
    if K % 2:
        middle = real[0]
        for k in tl.static_range(1, K):
            middle += real[k]
        taps = taps + (middle,)  # noqa: RUF005
    for p in tl.static_range(K // 2 - 1, -1, -1):
        taps = taps + (weigh(real, COS, K, p) - weigh(imaginary, SIN, K, p),)  # noqa: RUF005
    return taps


@triton.jit
def error_scale(energy, g, count, filters, BLOCK: tl.constexpr):
    """Return the power of two that errors of layer (and group) g carry: with it, the gradient's size does not depend on the norm.

    With r the root of the filters' mean squared norm, errors grow as r^2 and gradients as r^3 beyond 1, and as 1 and r below.
    """
    index = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(energy + g * count + index, mask=index < count, other=0.0))
    log = tl.log2(tl.maximum(total / (filters * ROW_SCALE * ROW_SCALE), 2.0**-30))
    return ERROR_SCALE * tl.exp2(-tl.ceil(tl.maximum(1.5 * log, 0.5 * log)))


@triton.jit
def store_rows(at, f, frequency, down, right, real, imaginary, mask):
    """Store [R, I; -I, R] of frequency f."""
    at += f * frequency
    tl.store(at, real.to(tl.float16), mask=mask)
    tl.store(at + right, imaginary.to(tl.float16), mask=mask)
    tl.store(at + down, (-imaginary).to(tl.float16), mask=mask)
    tl.store(at + down + right, real.to(tl.float16), mask=mask)


@triton.jit
def spectrum(
    weights, rows, energy, filters, channels, padded_filters, padded_channels,
    group_stride, filter_stride, channel_stride, y_stride, x_stride, GROUPS: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, STEP_Y: tl.constexpr, STEP_X: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    COS_Y: tl.constexpr, SIN_Y: tl.constexpr, COS_X: tl.constexpr, SIN_X: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the rows of all frequencies for a tile of filters by channels, and the tile's sum of squared weights."""
    PARTS: tl.constexpr = 1 if KH * KW == 1 else 2
    across, phase = tl.cdiv(padded_channels, BLOCK_C), tl.program_id(1)
    tiles = tl.cdiv(padded_filters, BLOCK_A) * across
    g, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    a = (tile // across * BLOCK_A + tl.arange(0, BLOCK_A))[:, None]
    c = (tile % across * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    weight = pick(weights, g // GROUPS) + g % GROUPS * group_stride + a * filter_stride + c * channel_stride
    total = tl.zeros((BLOCK_A, BLOCK_C), tl.float32)
    real, imaginary = (), ()  # along x, for each y
    for j in tl.static_range(KH):
        taps = ()
        for t in tl.static_range(KW):
            y, x = j * STEP_Y + phase // STEP_X, t * STEP_X + phase % STEP_X
            there = (a < filters) & (c < tl.where((y < HEIGHT) & (x < WIDTH), channels, 0))
            tap = tl.load(weight + y * y_stride + x * x_stride, mask=there, other=0.0) * ROW_SCALE
            total += tap * tap
            taps = taps + (tap,)  # noqa: RUF005
        along = fourier(taps, COS_X, SIN_X, KW)
        real, imaginary = real + along[0], imaginary + along[1]
    phases = tl.num_programs(1)
    tl.store(energy + (g * phases + phase) * tiles + tile, tl.sum(total))
    right = phases * padded_channels
    down = padded_filters * right * PARTS
    frequency = (tl.num_programs(0) // tiles).to(tl.int64) * PARTS * down
    at = rows + g.to(tl.int64) * PARTS * down + a * right * PARTS + phase * padded_channels + c
    mask = (a < padded_filters) & (c < padded_channels)
    if PARTS == 1:
        tl.store(at, real[0].to(tl.float16), mask=mask)
    else:
        for kx in tl.static_range(KW):
            column = ()
            for j in tl.static_range(KH):
                column = column + (real[j * KW + kx],)  # noqa: RUF005
            r, ri = fourier(column, COS_Y, SIN_Y, KH)
            if kx == 0:
                store_rows(at, 0, frequency, down, right, r[0], tl.zeros_like(r[0]), mask)
                for ky in tl.static_range(1, KH):
                    store_rows(at, ky, frequency, down, right, r[ky], ri[ky - 1], mask)
            else:
                column = ()
                for j in tl.static_range(KH):
                    column = column + (imaginary[j * (KW - 1) + kx - 1],)  # noqa: RUF005
                i, ii = fourier(column, COS_Y, SIN_Y, KH)
                f = kx * (2 * KH - 1)
                store_rows(at, f, frequency, down, right, r[0], i[0], mask)
                for ky in tl.static_range(1, KH):
                    store_rows(at, f + ky, frequency, down, right, r[ky] - ii[ky - 1], i[ky] + ri[ky - 1], mask)
                    store_rows(at, f - ky, frequency, down, right, r[ky] + ii[ky - 1], i[ky] - ri[ky - 1], mask)


@triton.jit
def gram(
    rows, error, squares, energy, count, filters, padded_filters, columns, g_count, share, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, ENERGY_BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one tile of [D, H] and its mirror image (D is symmetric, H antisymmetric), and its part of the value."""
    side = tl.cdiv(padded_filters, BLOCK)
    pairs = side * (side + 1) // 2
    batch, part, pair = tl.program_id(0) // (pairs * PARTS), tl.program_id(0) // pairs % PARTS, tl.program_id(0) % pairs
    i = ((tl.sqrt(8.0 * pair + 1.5) - 1) / 2).to(tl.int32)  # pairs i >= j of tiles, counted row by row
    j = pair - i * (i + 1) // 2
    a, b, k = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    base = rows + batch.to(tl.int64) * PARTS * padded_filters * columns
    left = base + (a % padded_filters)[:, None] * columns + k[None, :]
    right = base + (part * padded_filters + b % padded_filters)[:, None] * columns + k[None, :]
    end = columns
    if batch < g_count:  # frequency 0 has no imaginary part
        end = (columns // PARTS) * (1 - part)
    product = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, end, BLOCK_K):
        if EVEN:
            x, y = tl.load(left), tl.load(right)
        else:
            there = start + k[None, :] < columns
            x, y = tl.load(left, mask=there, other=0.0), tl.load(right, mask=there, other=0.0)
        product = tl.dot(x, tl.trans(y), product)
        left += BLOCK_K
        right += BLOCK_K
    a, b = a[:, None], b[None, :]
    identity = (a == b) & (a < filters) & (part == 0)
    inside = (a < padded_filters) & (b < padded_filters)
    product = product / (ROW_SCALE * ROW_SCALE) - identity.to(tl.float32)
    value = tl.sum(tl.where(inside, product * product, 0.0)) * share
    value = tl.where(batch < g_count, value / 2, value) * tl.where(i == j, 1, 2)  # for opposite frequencies, for the mirror image
    tl.store(squares + tl.program_id(0), value)
    scaled = (product * error_scale(energy, batch % g_count, count, filters, ENERGY_BLOCK)).to(tl.float16)
    at = error + batch.to(tl.int64) * PARTS * padded_filters * padded_filters + part * padded_filters
    tl.store(at + a * PARTS * padded_filters + b, scaled, mask=inside)
    if i != j:
        mirror = tl.trans(scaled) * (1 - 2 * part).to(tl.float16)
        a, b = j * BLOCK + tl.arange(0, BLOCK)[:, None], i * BLOCK + tl.arange(0, BLOCK)[None, :]
        tl.store(at + a * PARTS * padded_filters + b, mirror, mask=(a < padded_filters) & (b < padded_filters))


@triton.jit
def load(at, mask):
    """Load numbers as float32, 0 where the mask is False."""
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def inverse(
    gradient, weights, energy, factor, count, filters, channels, padded_filters, padded_channels,
    group_stride, filter_stride, channel_stride, y_stride, x_stride, GROUPS: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, STEP_Y: tl.constexpr, STEP_X: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    COS_Y: tl.constexpr, SIN_Y: tl.constexpr, COS_X: tl.constexpr, SIN_X: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr, ENERGY_BLOCK: tl.constexpr,
):  # fmt: skip
    """Write factor times the gradient for a tile of filters by channels, in the layout of the weights."""
    PARTS: tl.constexpr = 1 if KH * KW == 1 else 2
    across, phase = tl.cdiv(padded_channels, BLOCK_C), tl.program_id(1)
    tiles = tl.cdiv(padded_filters, BLOCK_A) * across
    g, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    a = (tile // across * BLOCK_A + tl.arange(0, BLOCK_A))[:, None]
    c = (tile % across * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    inside = (a < filters) & (c < channels)
    right = tl.num_programs(1) * padded_channels
    layer = padded_filters * right * PARTS
    frequency = (tl.num_programs(0) // tiles).to(tl.int64) * layer
    at = gradient + g.to(tl.int64) * layer + a * right * PARTS + phase * padded_channels + c
    scale = tl.load(factor) * 4 / ((2 * KH - 1) * (2 * KW - 1) * ROW_SCALE)
    scale /= error_scale(energy, g, count, filters, ENERGY_BLOCK)
    real, imaginary = (), ()  # along x, for each kx and y
    for kx in tl.static_range(KW):
        f = kx * (2 * KH - 1)
        r = load(at + f * frequency, inside)
        if kx == 0:
            rs, ids = (r / 2,), ()  # frequency 0 counts once, the others stand for their opposites too
            for ky in tl.static_range(1, KH):
                rs = rs + (load(at + ky * frequency, inside),)  # noqa: RUF005
                ids = ids + (load(at + ky * frequency + right, inside),)  # noqa: RUF005
            real = real + adjoint(rs, ids, COS_Y, SIN_Y, KH)
        else:
            i = load(at + f * frequency + right, inside)
            rs, ids, iis, rds = (r,), (), (i,), ()
            for ky in tl.static_range(1, KH):
                up, down = at + (f + ky) * frequency, at + (f - ky) * frequency
                r, r_opposite = load(up, inside), load(down, inside)
                i, i_opposite = load(up + right, inside), load(down + right, inside)
                rs, ids = rs + (r + r_opposite,), ids + (i - i_opposite,)  # noqa: RUF005
                iis, rds = iis + (i + i_opposite,), rds + (r_opposite - r,)  # noqa: RUF005
            real, imaginary = real + adjoint(rs, ids, COS_Y, SIN_Y, KH), imaginary + adjoint(iis, rds, COS_Y, SIN_Y, KH)
    weight = pick(weights, g // GROUPS) + g % GROUPS * group_stride + a * filter_stride + c * channel_stride
    for j in tl.static_range(KH):
        r, i = (), ()
        for kx in tl.static_range(KW):
            r = r + (real[kx * KH + j],)  # noqa: RUF005
            if kx:
                i = i + (imaginary[(kx - 1) * KH + j],)  # noqa: RUF005
        taps = adjoint(r, i, COS_X, SIN_X, KW)
        for t in tl.static_range(KW):
            y, x = j * STEP_Y + phase // STEP_X, t * STEP_X + phase % STEP_X
            there = (a < filters) & (c < tl.where((y < HEIGHT) & (x < WIDTH), channels, 0))
            tl.store(weight + y * y_stride + x * x_stride, taps[t] * scale, mask=there)
