"""Search spaces of `pipelines/tune.py`: data only.

Each module holds a `SPACE`: from the dotted name of a setting (`mst.config`) to what a sweep may give it,
one of

    {"choice": (0.1, 0.3, 1)}          each of these; a list is written as on a command line, "8,28"
    {"ordered": (0.1, 0.3, 1)}         each of these, of which neighbours are alike; from lowest to highest
    {"uniform": (0.3, 0.7)}            any number between these
    {"loguniform": (1e-5, 1e-3)}       the same, equally likely in each power of ten

A module may also hold a `BASE`: settings that all trials of its space have, but for those that the command
line gives.
"""
