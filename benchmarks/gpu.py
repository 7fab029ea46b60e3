"""What a click and a training image cost on a GPU.

    make bench-gpu                             # on a machine with CUDA; without one it says so
    python -m benchmarks.gpu --size small --batch 32 --minutes 8

It measures MST-base at 448 in bf16, compiled. MFU is the share of the card's peak in dense bf16 that the
network's own multiply-adds make up, a training image counting three times a forward.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.model import BASELINE, MULTI_SCALE, Inputs, build, inference, inputs, train_step
from benchmarks.shared.harness import Row, report, row
from mst.model.flops import forward_flops, peak_flops

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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", default="base", help="size of the model")
    parser.add_argument("--batch", type=int, default=32, help="images at once")
    parser.add_argument("--minutes", type=float, default=8, help="minutes until no figure is begun")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure")
        return
    torch.set_float32_matmul_precision("high")
    deadline = time.monotonic() + 60 * arguments.minutes
    report("gpu", until(deadline, rows(arguments.size, arguments.batch)))


if __name__ == "__main__":
    main()
