"""Running sums over the gates of one block."""

import torch
from torch import Tensor
from torch.nn.functional import pad


class GateSums:
    """What is kept of a block's gates, in float64 on the CPU: nothing of single samples.

    ``sums``, ``squares`` ``[K, C]`` and ``counts [K]`` have a row for each class, and row 0 for
    samples without a label; ``lowest``, ``highest`` ``[C]``; ``near_0``, ``near_1``: how many gates
    are near.
    """

    def __init__(self):
        self.samples = self.channels = self.near_0 = self.near_1 = 0

    def add(self, g: Tensor, rows: Tensor | None, near: float):
        """The gates of a call, ``[N, C]``; rows ``[N]``: the row of each sample's class."""
        if len(g) == 0:
            return
        g = g.to("cpu", torch.float64)
        if rows is None:
            rows = torch.zeros(len(g), dtype=torch.int64, device="cpu")
        if not self.samples:
            self._start(g)
        missing = int(rows.max()) + 1 - len(self.counts)
        if missing > 0:
            self.sums = pad(self.sums, (0, 0, 0, missing))
            self.squares = pad(self.squares, (0, 0, 0, missing))
            self.counts = pad(self.counts, (0, missing))
        self.sums.index_add_(0, rows, g)
        self.counts += torch.bincount(rows, minlength=len(self.counts))
        self.squares.index_add_(0, rows, g.square())
        lowest, highest = g.aminmax(dim=0)
        self.lowest = torch.minimum(self.lowest, lowest)
        self.highest = torch.maximum(self.highest, highest)
        self.near_0 += int((g.abs() <= near).sum())
        self.near_1 += int(((g - 1).abs() <= near).sum())
        self.samples += len(g)

    def _start(self, g: Tensor):
        self.channels = g.shape[1]
        self.sums, self.squares = g.new_zeros(2, 1, self.channels)
        self.counts = torch.zeros(1, dtype=torch.int64, device="cpu")
        self.lowest, self.highest = g.aminmax(dim=0)

    def has(self, row: int) -> bool:
        """Whether a sample of the class came by."""
        return row < len(self.counts) and bool(self.counts[row])

    def mean(self, row: int | None = None) -> Tensor:
        """[C], of one class or of all samples."""
        return self._mean(self.sums, row)

    def deviation(self, row: int | None = None) -> Tensor:
        variance = self._mean(self.squares, row) - self.mean(row).square()
        return variance.clamp(min=0).sqrt()

    def _mean(self, sums: Tensor, row: int | None) -> Tensor:
        return sums.sum(0) / self.samples if row is None else sums[row] / self.counts[row]
