"""Derivatives against finite differences."""

import torch


def check_gradients(place, function, tensors):
    """First and second derivatives: whole Jacobians, under the slow interpreter one random
    projection of each."""
    assert torch.autograd.gradcheck(function, tensors, fast_mode=place.interpreted)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=place.interpreted)
