"""Train one SE network twice, with eager SE and with FusedSE, and compare speed and result.

    python benchmarks/train.py
    python benchmarks/train.py --model seresnet50 --data imagefolder:DIR --amp bf16 --channels-last
    torchrun --standalone --nproc-per-node 2 benchmarks/train.py

Same seed, same initial weights, same batches. The epochs of the two runs take turns, and the one
that goes first changes from epoch to epoch, so that both meet the same disturbances.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lib import models
from lib.errors import RequestError
from lib.peak_memory import peak_memory
from lib.plot import draw
from training import data
from training.run import AMP_DTYPES, Run
from training.se_time import se_block_times
from training.summary import summarise, table, write_json

import se_fused.backends
from se_fused.surgery import fuse


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise RequestError(message)


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def parse_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model", default=models.DEFAULT,
        help="or any SE network of timm, torchvision, or se_NAME: SE put into any of insert_se's",
    )  # fmt: skip
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("out"), help="folder of train.json and train.png")
    add_training_options(parser)
    return parser.parse_args(argv)


def add_training_options(parser):
    add = parser.add_argument
    add("--data", default="digits", help=f"{data.KINDS} (default: %(default)s)")
    add("--image-size", type=positive, default=224, help="of imagefolder (default: %(default)s)")
    add("--device", help="default: cuda where there is one, else cpu")
    add("--amp", choices=list(AMP_DTYPES), help="autocast to this dtype")
    add("--channels-last", action="store_true")
    add("--compile", action="store_true", help="torch.compile both networks")
    add("--fuse", action="store_true", help="fuse the blocks around SE too, in the fused network")
    add("--epochs", type=positive, default=8, help="default: %(default)s")
    add("--steps", type=positive, help="at most this many steps per epoch")
    add("--batch-size", type=positive, default=32, help="per process (default: %(default)s)")
    add("--lr", type=float, default=0.05, help="highest learning rate (default: %(default)s)")


def main():
    args = parse_args()
    device = pick_device(args)
    rank, world_size = dist_rank_and_size(device)
    make_folder(args.out)
    torch.backends.cudnn.deterministic = True

    torch.manual_seed(args.seed)
    images = data.load(args.data, args.image_size)
    batches = data.train_batches(images, args.batch_size, args.seed, rank, world_size)
    test_batches = data.test_batches(images, args.batch_size, rank, world_size)
    steps = min(len(batches), args.steps or len(batches))
    networks = models.eager_and_fused(args.model, images.num_classes)
    names = models.se_names(networks[1])
    if args.fuse:
        report = fuse(networks[1])
        names = models.around_se(names, report)
        if rank == 0:
            print(report)
    runs = [
        Run(name, network, device, args, args.epochs * steps)
        for name, network in zip(("eager", "fused"), networks)
    ]
    example = next(iter(batches))
    check_forward(runs[0], example, args)
    if rank == 0:
        print(
            f"{args.model} with {len(models.se_names(networks[1]))} SE blocks, {args.data}: "
            f"{len(images.train)} training and {len(images.test)} test images, {device}, "
            f"backend {se_fused.backends.backend_for(device)}"
        )

    train_in_turn(runs, batches, steps, args.epochs, images_per_step=args.batch_size * world_size)
    accuracies = [run.accuracy(test_batches) for run in runs]
    if rank == 0:
        peaks = [peak_memory(run, example) for run in runs]
        block_times = se_block_times(*runs, names, example, args.compile)
        result = summarise(
            args, runs, accuracies, peaks, block_times, steps, world_size, len(images.test)
        )
        print(table(result))
        write_json(result, args.out / "train.json")
        draw(result, args.out / "train.png")
    if dist.is_initialized():
        dist.barrier()


def pick_device(args) -> torch.device:
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RequestError(f"--device {name}: {first_line(error)}") from None
    if args.amp and not torch.amp.is_autocast_available(device.type):
        raise RequestError(f"--amp {args.amp}: no autocast on {device.type}")
    if args.amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise RequestError("--amp bf16: this GPU has no bfloat16")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def dist_rank_and_size(device):
    """Joins the process group where torchrun has started one process of several."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out {path}: {error.strerror}") from None


def check_forward(run, batch, args):
    """Some networks take only certain image sizes; better said before the training."""
    images, _ = run.to_device(batch)
    try:
        with torch.no_grad(), run.autocast():
            run.network.eval().forward(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = "×".join(map(str, images.shape[1:]))
        raise RequestError(
            f"--model {args.model}: does not take images of {shape}: {first_line(error)}"
        ) from None


def first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


def train_in_turn(runs, batches, steps, epochs, images_per_step):
    with progress(total=len(runs) * epochs * steps) as bar:
        for epoch in range(epochs):
            for run in runs if epoch % 2 == 0 else reversed(runs):
                bar.set_description(f"epoch {epoch + 1}/{epochs} {run.name}")
                run.train_epoch(epoch, batches, steps, on_step=bar.update)
            report = ", ".join(
                f"{run.name} {steps * images_per_step / run.epoch_seconds[-1]:.0f} images/s "
                f"loss {sum(run.losses[-steps:]) / steps:.4f}"
                for run in runs
            )
            bar.write(f"epoch {epoch + 1}/{epochs}: {report}")


def progress(total):
    """A tqdm bar on the first process's terminal; without tqdm, lines only."""
    if dist.is_initialized() and dist.get_rank() > 0:
        return Silent()
    try:
        from tqdm import tqdm
    except ImportError:
        return Lines()
    return tqdm(total=total, unit="step", leave=False, disable=None)


class Silent(contextlib.nullcontext):
    """What ``train_in_turn`` calls of a progress bar."""

    def __enter__(self):
        return self

    def update(self):
        pass

    def set_description(self, text):
        pass

    def write(self, text):
        pass


class Lines(Silent):
    def write(self, text):
        print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except RequestError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
