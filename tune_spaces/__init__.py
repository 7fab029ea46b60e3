"""Search spaces of `pipelines/tune.py`: data only.

Each module holds a `SPACE`: a dictionary from the dotted name of a setting (`mst.config`) to the values that
a sweep may give it, written as on a command line.
"""
