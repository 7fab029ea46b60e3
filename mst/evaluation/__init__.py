"""How good a model is: the click protocol, its records and figures, other methods, and the report."""

from mst.evaluation.protocol import (
    TARGETS,
    ObjectRecord,
    ObjectUnderTest,
    Open,
    Summary,
    clickable,
    evaluate,
    evaluate_object,
    naming,
    summarize,
)

__all__ = [
    "TARGETS",
    "ObjectRecord",
    "ObjectUnderTest",
    "Open",
    "Summary",
    "clickable",
    "evaluate",
    "evaluate_object",
    "naming",
    "summarize",
]
