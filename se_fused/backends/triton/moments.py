"""The moments of every plane: a reduce launch of its own, since its sums have a pivot."""

import triton
import triton.language as tl

from se_fused.backends.triton.partials import ROUND, finishes_sample
from se_fused.backends.triton.tiles import (
    channel_sums,
    per_element,
    program_index,
    tile_offsets,
)

# Channels merged at once: a thread has three values of ROUND splits for each of its own.
MOMENTS_CHUNK = tl.constexpr(128)


# mean = Σ x / M, m2 = Σ (x - mean)².
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions; sums of
# d = x - shift and of d², with the first tile's mean as the shift: nothing cancels that is large
# beside m2, to which that tile adds its own distance from the mean.
# Reads x once; the last program of a sample reads its partial results. Results [2, N, C].
# Budget: 112 registers, 8 KB of shared memory.
@triton.jit(do_not_specialize=["samples", "splits", "tiles_per_split"])
def moments_kernel(
    x_ptr, partial_ptr, counter_ptr, out_ptr,
    samples, channels, spatial, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    first = split * tiles_per_split
    offset, inside = tile_offsets(
        sample, block, first, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
    )
    x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
    left = spatial - first * BLOCK_M
    sums = channel_sums(x, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    shift = sums / tl.minimum(left, BLOCK_M)
    of_tile = per_element(shift, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    total = tl.where(inside, x - of_tile, 0)
    squares = total * total
    for step in range(1, tiles_per_split):
        offset, inside = tile_offsets(
            sample, block, first + step, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
        )
        x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
        d = tl.where(inside, x - of_tile, 0)
        total += d
        squares += d * d
    sums = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    rest = sums / tl.minimum(left, tiles_per_split * BLOCK_M)
    m2 = channel_sums(squares, LAYOUT, BLOCK_C, BLOCK_M, PLANE) - sums * rest

    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    m2_ptr = out_ptr + tl.cast(samples, tl.int64) * channels
    if counter_ptr is None:
        tl.store(out_ptr + sample * channels + channel, shift + rest, channel < channels)
        tl.store(m2_ptr + sample * channels + channel, m2, channel < channels)
    else:
        at = (sample * splits + split) * channels + channel
        stride = tl.cast(samples, tl.int64) * splits * channels
        tl.store(partial_ptr + at, shift, channel < channels)
        tl.store(partial_ptr + stride + at, rest, channel < channels)
        tl.store(partial_ptr + 2 * stride + at, m2, channel < channels)
        if finishes_sample(counter_ptr, sample, blocks * splits):
            _store_moments(
                partial_ptr, stride, out_ptr, m2_ptr, sample, channels, spatial,
                splits, tiles_per_split * BLOCK_M, min(CHUNK, MOMENTS_CHUNK),
            )  # fmt: skip


@triton.jit
def _store_moments(
    partial_ptr, stride, mean_ptr, m2_ptr, sample, channels, spatial, splits, per_split,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The splits of a sample merged by Chan's rule, always in the same order. Of means far from
    zero, only differences from the first split's shift are rounded."""
    ACC: tl.constexpr = partial_ptr.dtype.element_ty
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        of_sample = sample * splits * channels + channel
        first = tl.load(partial_ptr + of_sample, channel < channels, other=0)
        mean = tl.zeros([CHUNK], ACC)
        m2 = tl.zeros([CHUNK], ACC)
        for start_split in range(0, splits, ROUND):
            for step in tl.static_range(ROUND):
                split = start_split + step
                before = split * per_split
                size = tl.maximum(tl.minimum(per_split, spatial - before), 0)
                weight = tl.cast(size, ACC) / (before + size)
                inside = (channel < channels) & (split < splits)
                at = of_sample + split * channels
                shift = tl.load(partial_ptr + at, inside, other=0) - first
                rest = tl.load(partial_ptr + stride + at, inside, other=0)
                m2_of_split = tl.load(partial_ptr + 2 * stride + at, inside, other=0)
                delta = tl.where(split < splits, shift + rest - mean, 0)
                m2 += m2_of_split + delta * delta * (weight * before)
                mean += delta * weight
        index = sample * channels + channel
        tl.store(mean_ptr + index, first + mean, channel < channels)
        tl.store(m2_ptr + index, m2, channel < channels)
