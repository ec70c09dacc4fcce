"""The paper's ablations of SE on a small network: tables 10 to 14, beside its ImageNet figures.

    python benchmarks/ablation.py --table reduction
    python benchmarks/ablation.py --table reduction --reduction 4,8,16    a ratio for each stage
    python benchmarks/ablation.py --table all --seeds 5
    python benchmarks/ablation.py --model resnet50 --data imagefolder:DIR --amp bf16 --channels-last

Each row is a network with SE put into it by ``insert_se``, and trained. Networks of one seed have
the same weights but SE's, and see the same batches; their epochs take turns, and the one that goes
first changes from epoch to epoch.
"""

import argparse
import sys
from pathlib import Path

import train
from lib.errors import RequestError
from training import data
from training.ablation_report import draw, summarise, text
from training.ablation_rows import SMALL, TABLES, network, rows_of
from training.run import Run
from training.summary import write_json

from se_fused.surgery import fuse


def ratios(text):
    """One ratio, or several with commas between them."""
    found = tuple(float(ratio) for ratio in text.split(","))
    if not min(found) > 0:
        raise argparse.ArgumentTypeError("must be positive")
    return found


def parse_args(argv=None):
    parser = train.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", choices=[*TABLES, "all"], default="all", help="default: %(default)s")
    add(
        "--reduction", type=ratios, metavar="R[,R,R]", default=(),
        help="one more row of the table reduction: a ratio, or one for each stage; a single one is "
        f"that of the other tables too (default there: 4 for {SMALL}, else 16)",
    )  # fmt: skip
    add("--seeds", type=train.positive, default=3, help="how many (default: %(default)s)")
    add("--model", default=SMALL, help="or any network of insert_se's in timm, torchvision")
    add("--width", type=train.positive, default=16, help=f"of {SMALL} (default: %(default)s)")
    add("--out", type=Path, default=Path("out"), help="folder of ablation.json and ablation.png")
    train.add_training_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = train.pick_device(args)
    train.make_folder(args.out)
    images = data.load(args.data, args.image_size)
    if len(args.reduction) > 1 and args.table not in ("reduction", "all"):
        raise RequestError("--reduction: ratios for each stage are rows of --table reduction")
    ratio = args.reduction[0] if len(args.reduction) == 1 else 4 if args.model == SMALL else 16
    chosen = list(TABLES) if args.table == "all" else [args.table]
    tables = {name: rows_of(name, ratio, args.reduction) for name in chosen}
    left = check_rows(args, tables, images.num_classes)
    wanted = dict.fromkeys(row.se for rows in tables.values() for row in rows)
    wanted = [se for se in wanted if se not in left]

    print(
        f"{args.model}, {args.data}: {len(images.train)} training and {len(images.test)} test "
        f"images, {device}; {len(wanted)} networks, {args.seeds} times"
    )
    trained = {se: [] for se in wanted}
    with train.progress(total=args.seeds * len(wanted) * args.epochs) as bar:
        for seed in range(args.seeds):
            for se, run in zip(wanted, train_networks(args, wanted, images, seed, device, bar)):
                trained[se].append(run)
    result = summarise(args, device, tables, trained, left, len(images.test))
    print(text(result))
    write_json(result, args.out / "ablation.json")
    draw(result, args.out / "ablation.png")


def check_rows(args, tables, num_classes) -> dict:
    """Which networks of the table of ratios cannot be built, and why: no hidden unit is left.

    Other rows, and the user's own, must be built.
    """
    left = {}
    for name, rows in tables.items():
        for row in rows:
            try:
                network(args.model, args.width, num_classes, row.se, seed=0)
            except ValueError as error:
                left[row.se] = train.first_line(error)
                if row.paper is None or name != "reduction":
                    raise RequestError(f"--table {name}, {row.name}: {left[row.se]}") from None
    return left


def train_networks(args, wanted, images, seed, device, bar) -> list[dict]:
    """What came of each network, trained with this seed, their epochs in turn."""
    args = argparse.Namespace(**vars(args), seed=seed)
    batches = data.train_batches(images, args.batch_size, seed, 0, 1)
    test_batches = data.test_batches(images, args.batch_size, 0, 1)
    steps = min(len(batches), args.steps or len(batches))
    runs = []
    for se in wanted:
        net = network(args.model, args.width, images.num_classes, se, seed)
        if args.fuse:
            fuse(net)
        runs.append(Run(str(se), net, device, args, args.epochs * steps))
    train.check_forward(runs[0], next(iter(batches)), args)
    for epoch in range(args.epochs):
        for run in runs if epoch % 2 == 0 else reversed(runs):
            bar.set_description(f"seed {seed + 1}/{args.seeds}, epoch {epoch + 1}/{args.epochs}")
            run.train_epoch(epoch, batches, steps)
            bar.update()
        loss = sum(sum(run.losses[-steps:]) for run in runs) / (steps * len(runs))
        bar.write(
            f"seed {seed + 1}/{args.seeds}, epoch {epoch + 1}/{args.epochs}: mean loss {loss:.4f}"
        )
    return [
        {
            "seed": seed,
            "test_accuracy": run.accuracy(test_batches),
            "final_loss": sum(run.losses[-steps:]) / steps,
            "images_per_step": args.batch_size,
            "seconds_per_step": [seconds / steps for seconds in run.epoch_seconds],
            "parameters": sum(p.numel() for p in run.network.parameters()),
        }
        for run in runs
    ]


if __name__ == "__main__":
    try:
        main()
    except RequestError as error:
        print(f"ablation.py: {error}", file=sys.stderr)
        sys.exit(2)
