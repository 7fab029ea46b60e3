"""Lists the recipes, or prints one."""

import argparse
from collections.abc import Sequence

from mst.command_line import parse, run
from pipelines.recipes import RECIPES, build, summary


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.recipes",
        description="List the recipes, or print the settings of one as JSON.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of a recipe")
    name = parse(parser, argv).name
    if name:
        print(build(name).model_dump_json(indent=2))
        return
    width = max(map(len, RECIPES))
    for each in RECIPES:
        print(f"{each:{width}}  {summary(each)}")


if __name__ == "__main__":
    run(main)
