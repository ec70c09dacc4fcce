"""The first launch of each direction where the maximum is in the squeeze: two results a channel.

Results of a program go through slots, as in reduce.py. As in ``torch.amax``, a NaN is a maximum:
``tl.max``, which leaves NaN out, is told of them.
"""

import triton
import triton.language as tl

from se_fused.backends.triton.excitation import ROUND, finishes_sample, store_slot_sums
from se_fused.backends.triton.tiles import (
    channel_sums,
    per_channel,
    planes,
    program_index,
    tile_offsets,
    zeros,
)

NOTHING = tl.constexpr(float("-inf"))  # the maximum of it


# mean = Σ x / M, m = max x, each [N, C].
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions.
# Reads x once; the last program of a sample reads its slots. Writes slots, mean and m.
# Budget: 104 registers, 8 KB of shared memory.
@triton.jit(do_not_specialize=["samples", "splits", "tiles_per_split"])
def squeeze_max_kernel(
    x_ptr, slot_ptr, counter_ptr, mean_ptr, max_ptr,
    samples, channels, spatial, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    total = zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    most = total + NOTHING
    for step in range(tiles_per_split):
        offset, inside = tile_offsets(
            sample, block, split * tiles_per_split + step, channels, spatial,
            LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN,
        )  # fmt: skip
        x = tl.load(x_ptr + offset, inside, other=NOTHING).to(ACC)
        total += tl.where(inside, x, 0)
        most = tl.maximum(most, x, propagate_nan=tl.PropagateNan.ALL)
    mean = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE) / spatial
    if LAYOUT == "flat":
        most = planes(most, BLOCK_C, BLOCK_M, PLANE, NOTHING)
    m = _largest(most, 1)

    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    if counter_ptr is None:
        tl.store(mean_ptr + sample * channels + channel, mean, channel < channels)
        tl.store(max_ptr + sample * channels + channel, m, channel < channels)
    else:
        slot = (sample * splits + split) * channels + channel
        slots = tl.cast(samples, tl.int64) * splits * channels
        tl.store(slot_ptr + slot, mean, channel < channels)
        tl.store(slot_ptr + slots + slot, m, channel < channels)
        if finishes_sample(counter_ptr, sample, blocks * splits):
            store_slot_sums(slot_ptr, mean_ptr, sample, channels, splits, CHUNK)
            _store_slot_maxima(slot_ptr + slots, max_ptr, sample, channels, splits, CHUNK)


# dg = Σ dy·x, ties = Σ [x = m], each [N, C].
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions.
# Reads dy, x and m once; the last program of a sample reads its slots. Writes slots, dg and ties.
# Budget: 104 registers, 8 KB of shared memory.
@triton.jit(do_not_specialize=["samples", "splits", "tiles_per_split"])
def gate_gradient_max_kernel(
    dy_ptr, x_ptr, max_ptr, slot_ptr, counter_ptr, dg_ptr, ties_ptr,
    samples, channels, spatial, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = dg_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    m = per_channel(max_ptr + sample * channels, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    total = zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    count = total
    for step in range(tiles_per_split):
        offset, inside = tile_offsets(
            sample, block, split * tiles_per_split + step, channels, spatial,
            LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN,
        )  # fmt: skip
        dy = tl.load(dy_ptr + offset, inside, other=0).to(ACC)
        x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
        total += dy * x
        count += tl.where(inside & (x == m), 1, 0)
    dg = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    ties = channel_sums(count, LAYOUT, BLOCK_C, BLOCK_M, PLANE)

    if counter_ptr is None:
        tl.store(dg_ptr + sample * channels + channel, dg, channel < channels)
        tl.store(ties_ptr + sample * channels + channel, ties, channel < channels)
    else:
        slot = (sample * splits + split) * channels + channel
        slots = tl.cast(samples, tl.int64) * splits * channels
        tl.store(slot_ptr + slot, dg, channel < channels)
        tl.store(slot_ptr + slots + slot, ties, channel < channels)
        if finishes_sample(counter_ptr, sample, blocks * splits):
            store_slot_sums(slot_ptr, dg_ptr, sample, channels, splits, CHUNK)
            store_slot_sums(slot_ptr + slots, ties_ptr, sample, channels, splits, CHUNK)


@triton.jit
def _largest(tile, axis: tl.constexpr):
    is_nan = tile != tile
    most = tl.max(tl.where(is_nan, NOTHING, tile), axis)
    return tl.where(tl.max(is_nan.to(tl.int32), axis) > 0, float("nan"), most)


@triton.jit
def _store_slot_maxima(slot_ptr, max_ptr, sample, channels, splits, CHUNK: tl.constexpr):
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        most = tl.zeros([CHUNK], slot_ptr.dtype.element_ty) + NOTHING
        for first in range(0, splits, ROUND):
            for split in tl.static_range(ROUND):
                slot = (sample * splits + first + split) * channels + channel
                inside = (channel < channels) & (first + split < splits)
                m = tl.load(slot_ptr + slot, inside, other=NOTHING)
                most = tl.maximum(most, m, propagate_nan=tl.PropagateNan.ALL)
        tl.store(max_ptr + sample * channels + channel, most, channel < channels)
