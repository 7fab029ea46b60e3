"""The report of an evaluation: tables, figures and pictures of the records, in one page that opens offline.

evaluation  one method on one data set, and its figures with intervals
published   the figures of the paper
tables      all tables, for a page or a terminal
figures     plots
gallery     pictures of objects
page        the page
"""

from mst.evaluation.report.evaluation import Evaluation, Measure, read_evaluations
from mst.evaluation.report.page import Pictured, write_page
from mst.evaluation.report.tables import Table, comparison_table, main_table

__all__ = [
    "Evaluation",
    "Measure",
    "Pictured",
    "Table",
    "comparison_table",
    "main_table",
    "read_evaluations",
    "write_page",
]
