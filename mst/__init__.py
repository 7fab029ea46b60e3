"""MST: adaptive multi-scale tokens for click-based interactive segmentation (arXiv:2401.04403).

The library alone: plain torch, no Ray, no MLflow, no web server. `pipelines/` trains, sweeps and
registers with it, `serve/` answers clicks with it.
"""

__version__ = "0.1.0"
