"""Labelled images and the order in which both runs see them."""

import os
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lib.errors import RequestError
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

KINDS = "digits, cifar10:DIR or imagefolder:DIR"


class Images(NamedTuple):
    train: Dataset
    test: Dataset
    num_classes: int


def load(spec: str, image_size: int) -> Images:
    """The images that ``--data`` asks for: 3 channels, normalised, not augmented."""
    kind, _, folder = spec.partition(":")
    if spec == "digits":
        return _digits()
    if kind not in ("cifar10", "imagefolder") or not folder:
        raise RequestError(f"--data {spec}: must be {KINDS}")
    if not Path(folder).is_dir():
        raise RequestError(f"--data {spec}: no such folder: {folder}")
    return _cifar10(Path(folder)) if kind == "cifar10" else _imagefolder(Path(folder), image_size)


def train_batches(images: Images, batch_size, seed, rank, world_size) -> DataLoader:
    """Shuffled batches of one size; ``loader.order.set_epoch(n)`` fixes the order of epoch n."""
    order = DistributedSampler(images.train, world_size, rank, seed=seed, drop_last=True)
    if len(order) < batch_size:
        raise RequestError(
            f"--batch-size {batch_size}: more than the {len(order)} training images per process"
        )
    loader = _loader(images.train, order, batch_size, drop_last=True)
    loader.order = order
    return loader


def test_batches(images: Images, batch_size, rank, world_size) -> DataLoader:
    """This process's share of the test images: over all processes, each exactly once."""
    mine = range(rank, len(images.test), world_size)
    if isinstance(images.test, TensorDataset):
        share = TensorDataset(*(t[rank::world_size] for t in images.test.tensors))
    else:
        share = Subset(images.test, mine)
    return _loader(share, SequentialSampler(share), batch_size, drop_last=False)


def _loader(dataset, order, batch_size, drop_last):
    if isinstance(dataset, TensorDataset):  # a whole batch by one indexing, not image by image
        batches = BatchSampler(order, batch_size, drop_last)
        return DataLoader(dataset, sampler=batches, batch_size=None)
    workers = min(8, os.cpu_count() or 1)
    return DataLoader(
        dataset, batch_size, sampler=order, drop_last=drop_last, num_workers=workers
    )


def _digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise RequestError("--data digits needs scikit-learn") from None
    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(small, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = shuffled.tensor_split([round(0.8 * len(labels))])
    return _normalised(images[train], labels[train], images[test], labels[test], num_classes=10)


def _cifar10(folder):
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    train = [_cifar10_batch(folder / f"data_batch_{i}") for i in range(1, 6)]
    train_images, train_labels = (torch.cat(parts) for parts in zip(*train))
    return _normalised(
        train_images, train_labels, *_cifar10_batch(folder / "test_batch"), num_classes=10
    )


def _cifar10_batch(path):
    try:
        with open(path, "rb") as file:
            batch = pickle.load(file, encoding="bytes")
        pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    except OSError as error:
        raise RequestError(f"--data cifar10: cannot read {path}: {error.strerror}") from None
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError):
        raise RequestError(f"--data cifar10: {path} is not a batch of CIFAR-10") from None
    return torch.from_numpy(pixels).float() / 255, torch.tensor(batch[b"labels"])


def _normalised(train_images, train_labels, test_images, test_labels, num_classes):
    """Both splits with the training images' mean and deviation of each channel brought to 0, 1."""
    std, mean = torch.std_mean(train_images, dim=(0, 2, 3), keepdim=True)
    return Images(
        TensorDataset((train_images - mean) / std, train_labels),
        TensorDataset((test_images - mean) / std, test_labels),
        num_classes,
    )


def _imagefolder(folder, image_size):
    try:
        from torchvision import transforms
        from torchvision.datasets import ImageFolder
    except ImportError:
        raise RequestError("--data imagefolder needs torchvision") from None
    prepare = transforms.Compose(
        [
            transforms.Resize(image_size),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    try:
        train, test = (ImageFolder(folder / split, prepare) for split in ("train", "val"))
    except FileNotFoundError as error:
        raise RequestError(f"--data imagefolder: {str(error).splitlines()[0]}") from None
    if train.classes != test.classes:
        raise RequestError(f"--data imagefolder: {folder}: train and val have different classes")
    return Images(train, test, len(train.classes))
