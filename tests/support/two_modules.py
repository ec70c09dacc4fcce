"""A small network with two SE modules."""

from se_modules import Cadene, Moskomule
from torch import nn


class Two(nn.Module):
    """Two SE modules, a convolution between them."""

    def __init__(self, first=None, second=None):
        super().__init__()
        self.first = first or Moskomule()
        self.conv = nn.Conv2d(24, 24, 3)
        self.blocks = nn.Sequential(second or Cadene())

    def forward(self, x):
        return self.blocks(self.conv(self.first(x)))


def names(entries):
    return [entry.name for entry in entries]
