"""What `ray job submit` runs: each module is one verb.

initialize   the checkpoint that a training would start from
train        one experiment over Ray workers
tune         many of them over a search space
evaluate     a checkpoint or a registered model on a data set
promote      a checkpoint becomes a version of the registered model
ship         a checkpoint becomes the model that comes with the project
export       a model as ONNX
offline      train on a machine without a network
"""

import os

# What sweeps and downloads print by themselves; `pipelines.tune` has lines of its own.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
