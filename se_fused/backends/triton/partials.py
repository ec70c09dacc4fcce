"""Results of the programs of a reduce launch, joined by the last of a sample's programs to finish.

Partial results are [K, N, splits, C], results [K, N, C]. ``counter_ptr`` [N], zero before the
launch, counts a sample's finished programs; None where there is one split and nothing to excite:
partial results are the results. No program waits for another, and sums have a fixed order.
"""

import triton
import triton.language as tl

from se_fused.backends.triton import plan

ROUND = tl.constexpr(plan.PARTIALS_PER_ROUND)
NOTHING = tl.constexpr(float("-inf"))  # the maximum of it


@triton.jit
def finishes_sample(counter_ptr, sample, programs):
    """Whether this program is the last of its sample's; if so, it sees what the others stored."""
    tl.debug_barrier()  # the release below is one thread's: all warps must have stored before it
    return tl.atomic_add(counter_ptr + sample, 1, sem="acq_rel") == programs - 1


@triton.jit
def join_partials(partial_ptr, sample, channel, channels, splits, MAXIMUM: tl.constexpr = False):
    """The sum of a sample's, or the maximum, over its splits, always in the same order; the loads
    of a round do not wait for one another."""
    total = tl.zeros(channel.shape, partial_ptr.dtype.element_ty)
    if MAXIMUM:
        total += NOTHING
    for first in range(0, splits, ROUND):
        for split in tl.static_range(ROUND):
            index = (sample * splits + first + split) * channels + channel
            inside = (channel < channels) & (first + split < splits)
            if MAXIMUM:
                partial = tl.load(partial_ptr + index, inside, other=NOTHING)
                total = tl.maximum(total, partial, propagate_nan=tl.PropagateNan.ALL)
            else:
                total += tl.load(partial_ptr + index, inside, other=0)
    return total


@triton.jit
def finish(
    partial_ptr, out_ptr, sample, samples, channels, splits,
    COUNT: tl.constexpr, MAXIMUM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The results [K, sample, C] of K = COUNT values; all are sums, but number MAXIMUM."""
    rows = tl.cast(samples, tl.int64)
    for number in tl.static_range(COUNT):
        for start in range(0, channels, CHUNK):
            channel = start + tl.arange(0, CHUNK)
            result = join_partials(
                partial_ptr + number * rows * splits * channels, sample, channel, channels, splits,
                number == MAXIMUM,
            )  # fmt: skip
            index = sample * channels + channel
            tl.store(out_ptr + number * rows * channels + index, result, channel < channels)


@triton.jit
def largest(tile, axis: tl.constexpr):
    """As torch.amax, a NaN is a maximum; ``tl.max`` leaves it out."""
    is_nan = tile != tile
    most = tl.max(tl.where(is_nan, NOTHING, tile), axis)
    return tl.where(tl.max(is_nan.to(tl.int32), axis) > 0, float("nan"), most)
