"""Evaluate a model by the click protocol: NoC, NoF and the IoU after each click.

python pipelines/evaluate.py --model runs/a/step_00000800 --data coco:/data/annotations/instances_val.json
python pipelines/evaluate.py --model models:/mst@champion --data grabcut:/data/GrabCut --out out/grabcut.json
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from upath import UPath

from mst.checkpoint import load_model
from mst.command_line import count, parse, run
from mst.data.sources import read_samples
from mst.evaluation import ObjectRecord, Summary, evaluate, summarize
from mst.predictor import Predictor
from pipelines.tracking import fetch_checkpoint, tracking_uri


def show(summary: Summary, title: str) -> None:
    """Print a summary."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{title}: {summary.objects} objects, at most {summary.max_clicks} clicks")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("IoU")
    for target in summary.noc:
        table.add_column(f"{target} %", justify="right")
    table.add_row("clicks to reach it (NoC)", *(f"{value:.2f}" for value in summary.noc.values()))
    table.add_row("never reached it (NoF)", *(str(value) for value in summary.nof.values()))
    console.print(table)
    shown = [click for click in (1, 2, 3, 5, 10, 20) if click <= summary.max_clicks]
    ious = "  ".join(f"{click}: {summary.iou[click - 1]:.3f}" for click in shown)
    console.print(f"mean IoU after click {ious}   {1000 * summary.seconds_per_click:.0f} ms a click")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Evaluate a model by the click protocol.", allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="checkpoint folder, or models:/NAME@ALIAS")
    parser.add_argument("--data", required=True, help="coco:JSON, grabcut:FOLDER, ... (mst.data.sources)")
    parser.add_argument("--max-objects", type=count, default=None, help="evaluate on so many, evenly spread")
    parser.add_argument(
        "--max-clicks", type=count, default=None, help="for each object (default: the model's)"
    )
    parser.add_argument("--no-zoom", action="store_true", help="always look at the whole image")
    parser.add_argument("--out", type=Path, default=None, help="write the records of all objects as JSON")
    arguments = parse(parser, None)
    with tempfile.TemporaryDirectory() as folder:
        model, config = load_model(fetch_checkpoint(tracking_uri(), arguments.model, Path(folder)))
    settings = config.eval.model_copy(update={"zoom": config.eval.zoom and not arguments.no_zoom})
    samples = read_samples([arguments.data], UPath())
    if arguments.max_objects:
        samples = samples.spread(arguments.max_objects)
    max_clicks = arguments.max_clicks or settings.max_clicks
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("objects", total=len(samples))

        def advance(_: ObjectRecord) -> None:
            bar.advance(task)

        records = evaluate(Predictor(model, settings).open, samples, max_clicks, on_object=advance)
    summary = summarize(records, max_clicks)
    show(summary, f"{arguments.model} on {arguments.data}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        written = {"summary": summary.metrics(), "objects": [dataclasses.asdict(each) for each in records]}
        arguments.out.write_text(json.dumps(written))


if __name__ == "__main__":
    run(main)
