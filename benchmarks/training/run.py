"""One training run: a network, its optimiser, and what was observed of it."""

import contextlib
import math
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """SGD with Nesterov momentum; the learning rate warms up and then falls along a cosine."""

    def __init__(self, name, network, device, args, total_steps):
        self.name = name
        self.device = device
        self.amp_dtype = AMP_DTYPES.get(args.amp)
        self.memory_format = (
            torch.channels_last if args.channels_last else torch.contiguous_format
        )
        self.network = network.to(device, memory_format=self.memory_format)
        if args.compile:
            self.network.compile()
        self.trained = (
            DistributedDataParallel(self.network, [device] if device.type == "cuda" else None)
            if dist.is_initialized()
            else self.network
        )
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
        self.peak_lr, self.seed, self.total_steps = args.lr, args.seed, total_steps
        self.losses: list[float] = []
        self.epoch_seconds: list[float] = []

    def train_epoch(self, epoch, batches, steps, on_step=lambda: None):
        """``steps`` batches of the epoch; adds its losses and its wall time to the record."""
        torch.manual_seed(self.seed + epoch)
        batches.order.set_epoch(epoch)
        self.network.train()
        losses = []
        start = self._now()
        for step, batch in zip(range(steps), batches):
            self._set_lr(epoch * steps + step)
            losses.append(self.train_step(*self.to_device(batch)))
            on_step()
        self.epoch_seconds.append(self._now() - start)
        losses = torch.stack(losses)
        if dist.is_initialized():
            dist.all_reduce(losses)
            losses /= dist.get_world_size()
        self.losses += losses.tolist()

    def train_step(self, images, labels):
        """Forward, backward and update; returns the loss, left on the device."""
        with self.autocast():
            loss = F.cross_entropy(self.trained(images).float(), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    @torch.no_grad()
    def accuracy(self, batches) -> float:
        """Share of the test images, over all processes, whose class is found."""
        self.network.eval()
        counts = torch.zeros(2, device=self.device)  # correct, all
        if dist.is_initialized():  # each process has normalised its own last batch
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)
        for batch in batches:
            images, labels = self.to_device(batch)
            with self.autocast():
                # .forward: compiled, it would be compiled again, for eval and for the last batch.
                found = self.network.forward(images).argmax(1)
            counts[0] += (found == labels).sum()
            counts[1] += len(labels)
        if dist.is_initialized():
            dist.all_reduce(counts)
        correct, count = counts.tolist()
        return correct / count

    def to_device(self, batch):
        images, labels = batch
        return (
            images.to(self.device, memory_format=self.memory_format),
            labels.to(self.device),
        )

    def autocast(self):
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def _set_lr(self, step):
        warmup = max(1, self.total_steps // 5)
        if step < warmup:
            factor = (step + 1) / warmup
        else:
            progress = (step - warmup) / max(1, self.total_steps - warmup)
            factor = 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * factor

    def _now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
