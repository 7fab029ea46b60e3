"""What a click and a training image cost on a GPU, and the shipped model's next minutes of training on one.

    make bench-gpu                             # on a machine with CUDA; without one it says so
    python -m benchmarks.gpu bench --size small --batch 32 --minutes 8

On a GPU that is lent for some minutes at a time, without a network, and is given at most 64 MiB a call:

    python -m benchmarks.gpu pack --weights runs/mst_small_224/step_...   # here: fills data/gpu/
    python -m benchmarks.gpu bench                  # there, first call: carries data/gpu/photos and site
    python -m benchmarks.gpu train --minutes 8 --out $OUT   # second: carries data/gpu/weights
    python -m benchmarks.gpu train --minutes 8 --out $OUT --train.init out/gpu_training/checkpoint
    python -m benchmarks.gpu join FOLDER --out runs/mst_small_gpu   # here: what came back is a checkpoint

Each call there begins by naming the place of the packages that such a machine lacks:

    export PYTHONPATH=data/gpu/site

What is in checkpoints/ travels with the project, and counts: the weights that ship must be out of the way
while photos and packages travel, and need no packing (`--train.init checkpoints/mst_small`).

Training is as long as there is time for, so that its learning rate has fallen when that is over. It validates
every three minutes and gives the best weights back; it is `mst_small` at 448 and 224, and takes any setting
as an option. Figures are in out/bench/, as those of all benchmarks: `cp out/bench/*.json $OUT`.

`bench` measures MST-base at 448 in bf16, compiled. MFU is the share of the card's peak in dense bf16 that the
network's own multiply-adds make up, a training image counting three times a forward.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.harness import Row, report, row
from benchmarks.lease import PHOTOS, WEIGHTS, join, pack, train
from benchmarks.model import BASELINE, MULTI_SCALE, Inputs, build, inference, inputs, train_step
from mst.command_line import add_options, given, parse, run
from mst.config import Config
from mst.errors import ConfigError
from mst.model.flops import forward_flops, peak_flops
from mst.overrides import override
from pipelines.recipes import build as build_recipe

ROUNDS = 20


def seconds_per_call(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Mean time of a call on the GPU, after three that compile and warm up."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / rounds


def on_gpu(batch: int) -> Inputs:
    """Inputs of a batch, on the GPU."""
    image, clicks, prev_mask = inputs(batch)
    return image.cuda(), clicks.cuda(), prev_mask.cuda()


def waits_for_nothing(call: Callable[[], object]) -> bool:
    """Whether a call runs without a synchronisation of the CPU with the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def rows(size: str, batch: int) -> Iterator[Row]:
    """All figures of one size."""
    peak = peak_flops(torch.cuda.get_device_name()) or float("nan")
    for name, patches in ((f"mst_{size}", MULTI_SCALE), (f"baseline_{size}", BASELINE)):
        model = build(patches, size).cuda()
        flops = forward_flops(model)
        click, many = (inference(model, on_gpu(number), "bf16", "compiled") for number in (1, batch))
        yield row(f"{name}_gpu_click", 1000 * seconds_per_call(click), "ms")
        rate = batch / seconds_per_call(many)
        yield row(f"{name}_gpu_inference", rate, "img/s")
        yield row(f"{name}_gpu_inference_mfu", rate * flops / peak, at_least=0.55)
        torch.cuda.reset_peak_memory_stats()
        step = train_step(model, on_gpu(batch), "bf16", "compiled")
        rate = batch / seconds_per_call(step)
        yield row(f"{name}_gpu_training", rate, "img/s")
        yield row(f"{name}_gpu_training_mfu", 3 * rate * flops / peak, at_least=0.45)
        yield row(f"{name}_gpu_training_memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        yield row(f"{name}_gpu_training_waits", float(not waits_for_nothing(step)), "", at_most=0)


def until(deadline: float, figures: Iterator[Row]) -> Iterator[Row]:
    """Yield figures until the time is over, so that those that are there are kept."""
    for each in figures:
        yield each
        if time.monotonic() > deadline:
            print("the time is over: the rest is not measured")
            return


def parser() -> argparse.ArgumentParser:
    """Commands and their options."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(dest="command")
    bench = commands.add_parser("bench", help="measure (the default)", allow_abbrev=False)
    for each in (top, bench):
        each.add_argument("--size", default="base", help="of the model")
        each.add_argument("--batch", type=int, default=32, help="images at once")
        each.add_argument("--minutes", type=float, default=8, help="after which no figure is begun")
    packing = commands.add_parser("pack", help="make what such a machine is given", allow_abbrev=False)
    packing.add_argument("--data", type=Path, default=Path("../shared/data"), help="of coco, lvis and bsds")
    packing.add_argument("--weights", type=Path, required=True, help="checkpoint to go on from")
    training = commands.add_parser("train", help="train for some minutes", allow_abbrev=False)
    training.add_argument("--minutes", type=float, default=7, help="after which no step is begun")
    training.add_argument("--device", default="cuda", help="to train on")
    training.add_argument("--out", type=Path, required=True, help="folder for what is given back")
    add_options(training)
    joining = commands.add_parser("join", help="put together what was given back", allow_abbrev=False)
    joining.add_argument("parts", type=Path, help="folder of the parts")
    joining.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    return top


def experiment(arguments: argparse.Namespace) -> Config:
    """The shipped model's recipe as such a machine trains it, and the settings that were given."""
    on_gpu = {
        "model.image_size": 448,
        "data.min_area": 0.004,
        "data.resize": [0.3, 2.0],
        "data.copy_paste": 0.4,
        "data.root": str(PHOTOS),
        "data.loader_workers": min(14, os.cpu_count() or 1),
        "optim.lr": 4e-4,
        "optim.backbone_lr_scale": 0.08,
        "optim.fusion_lr_scale": 0.6,
        "optim.weight_decay": 0.05,
        "optim.schedule": "cosine",
        "optim.warmup_steps": 100,
        "optim.ema": 0.997,
        "train.init": str(WEIGHTS),
        "train.batch_size": 64,
        "train.micro_batches": 0,
        "train.epochs": 1,
        "train.samples_per_epoch": 640_000,  # more than there is time for
        "train.sides": [224, 448, 448, 448],
        "train.val_objects": 150,
    }
    return override(override(build_recipe("mst_small"), on_gpu), given(arguments))


def main() -> None:
    """Run the command line."""
    arguments = parse(parser(), None)
    if arguments.command == "pack":
        report("gpu_pack", pack(arguments.data, arguments.weights))
    elif arguments.command == "join":
        print(join(arguments.parts, arguments.out))
    elif arguments.command == "train":
        device = torch.device(arguments.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("no CUDA device here: give --device cpu to train without")
        torch.set_float32_matmul_precision("high")
        figures = train(experiment(arguments), device, 60 * arguments.minutes, arguments.out)
        report("gpu_training", figures)
    elif not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure")
    else:
        torch.set_float32_matmul_precision("high")
        deadline = time.monotonic() + 60 * arguments.minutes
        report("gpu", until(deadline, rows(arguments.size, arguments.batch)))


if __name__ == "__main__":
    run(main)
