"""Figures of the paper's tables I to IV (arXiv:2401.04403), to stand beside those that were measured here."""

from typing import NamedTuple

Figures = dict[str, tuple[float | None, ...]]
"""By method, one for each column; None where the paper has none."""


class Column(NamedTuple):
    """What a column of a table is of."""

    data_set: str
    measure: str
    """As `mst.evaluation.report.Evaluation.measures` calls it."""
    corrects_masks: bool = False
    """Whether the clicks begin with a mask to correct."""


OURS = ("ViT-B+MST", "ViT-B+MST+CL", "MST-B")
"""Rows of the paper's own method."""

NOC = "Table I: number of clicks (NoC)"
NOC_COLUMNS = (
    Column("GrabCut", "noc90"),
    Column("Berkeley", "noc90"),
    Column("SBD", "noc85"),
    Column("SBD", "noc90"),
    Column("DAVIS", "noc90"),
    Column("COCO_MVal", "noc85"),
    Column("COCO_MVal", "noc90"),
    Column("PascalVOC", "noc85"),
    Column("PascalVOC", "noc90"),
)
NOC_FIGURES: Figures = {
    "f-BRS-B-HRNet32": (1.69, 2.44, 4.37, 7.26, 6.50, None, None, None, None),
    "RITM-HRNet18s": (1.68, 2.60, 4.25, 6.84, 5.98, None, 3.58, 2.57, None),
    "RITM-HRNet32": (1.56, 2.10, 3.59, 5.71, 5.34, 2.18, 3.03, 2.21, 2.59),
    "EdgeFlow-HRNet18": (1.72, 2.40, None, None, 5.77, None, None, None, None),
    "FocalClick-SegF-B0-S2": (1.90, 2.92, 5.14, 7.80, 6.47, 3.23, 4.37, 3.55, 4.24),
    "FocalClick-SegF-B3-S2": (1.68, 1.71, 3.73, 5.92, 5.59, 2.45, 3.33, 2.53, 2.97),
    "SAM-ViT-H": (1.62, 2.25, 5.98, 9.63, 6.21, 3.46, 5.60, 2.20, 2.68),
    "HQ-SAM-ViT-H": (1.84, 2.00, 6.23, 9.66, 5.58, 3.81, 5.94, 2.50, 2.93),
    "SimpleClick-ViT-B": (1.48, 1.97, 3.43, 5.62, 5.06, 2.18, 2.92, 2.06, 2.38),
    "ViT-B+MST": (1.52, 1.77, 3.03, 5.20, 4.82, 2.11, 2.88, 2.05, 2.37),
    "ViT-B+MST+CL": (1.48, 1.50, 3.03, 5.11, 4.55, 2.08, 2.85, 1.69, 1.90),
}

COST = "Table II: parameters, operations and time of a click"
COST_COLUMNS = ("parameters (M)", "GFLOPs", "ms a click")
# The row of SimpleClick-B may be another model's: its public network has 97 M parameters, as the one here has
# (`pipelines/recipes/cocolvis.py`), where the table says 84.89.
COST_FIGURES: Figures = {
    "SimpleClick-B": (84.89, 96.46, 183),
    "SimpleClick-L": (322.18, 266.44, 300),
    "SimpleClick-H": (659.39, 700.96, 585),
    "SAM-ViT-H": (635.63, 2802.69, 1003),
    "HQ-SAM-ViT-H": (637.23, 2830.34, 1102),
    "MST-B": (166.77, 206.82, 225),
}

CORRECTION = "Table III: correction of a mask, and the same objects from nothing (DAVIS-585)"
CORRECTION_COLUMNS = (
    Column("DAVIS-585", "noc85", True),
    Column("DAVIS-585", "noc90", True),
    Column("DAVIS-585", "nof85", True),
    Column("DAVIS-585", "noc85"),
    Column("DAVIS-585", "noc90"),
    Column("DAVIS-585", "nof85"),
)
CORRECTION_FIGURES: Figures = {
    "RITM-hrnet18s": (3.71, 5.96, 49, 5.34, 7.57, 52),
    "RITM-hrnet32": (3.68, 5.57, 46, 4.74, 6.74, 45),
    "SimpleClick-B": (2.24, 3.10, 25, 4.06, 5.83, 42),
    "SimpleClick-L": (1.81, 2.57, 25, 3.39, 4.88, 36),
    "FocalClick-hrnet32-S2": (2.32, 3.09, 28, 4.77, 6.84, 48),
    "FocalClick-B3-S2": (2.00, 2.76, 22, 4.06, 5.89, 43),
    "MST-B": (1.80, 2.29, 22, 3.78, 5.22, 43),
}

REMOTE = "Table IV: remote sensing (LoveDA)"
REMOTE_COLUMNS = tuple(Column("LoveDA", measure) for measure in ("noc80", "noc85", "noc90", "nof90"))
REMOTE_FIGURES: Figures = {
    "SAM-H": (11.96, 14.61, 17.42, 1386),
    "HQ-SAM-H": (11.09, 14.16, 17.00, 1346),
    "FocalClick-B3-S2": (5.79, 7.72, 10.64, 384),
    "SimpleClick-B": (5.91, 7.65, 10.44, 302),
    "SimpleClick-L": (5.62, 7.27, 9.78, 263),
    "MST-B": (5.30, 6.93, 9.60, 261),
}

NAMES = {
    "grabcut": "GrabCut",
    "berkeley": "Berkeley",
    "sbd": "SBD",
    "davis": "DAVIS",
    "coco_mval": "COCO_MVal",
    "pascal_voc": "PascalVOC",
    "davis585": "DAVIS-585",
    "loveda": "LoveDA",
}
"""What the tables call the sets of `mst.data.readers.evaluation_sets`."""
