"""A checkpoint as an MLflow model that runs wherever its pinned requirements are installed.

artifacts/checkpoint/   weights as safetensors, config and manifest: what `serve/` and the pipelines read
pyfunc_model.py         the model's code; code/mst/ is the library as it was when the model was registered
requirements.txt        exact versions of what they import
card/ evaluation/       model card with pictures, and the records behind its figures
(`pipelines/promotion/card.py`)

The library travels as code, not as a wheel: no package index has it, and the version that predicts is the one
that was evaluated. `mlflow.pyfunc.load_model` runs that code; the server of `serve/` never does, it reads the
checkpoint alone.
"""

import base64
from importlib import metadata
from pathlib import Path

import cv2
import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Object, Property

from mst.checkpoint import WEIGHTS, verify
from pipelines.storage import PROJECT

CHECKPOINT = "artifacts/checkpoint"
"""Where the checkpoint lies in the model."""

_CODE = PROJECT / "pipelines" / "registry" / "pyfunc_model.py"
_REQUIRED = (
    "aiohttp",
    "botocore",
    "fsspec",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pycocotools",
    "pydantic",
    "safetensors",
    "torch",
    "universal-pathlib",
)
"""What predicting imports; less than training, which also needs Ray, timm and others."""

_CLICK = Object(
    [
        Property("x", DataType.double),
        Property("y", DataType.double),
        Property("is_positive", DataType.boolean),
    ]
)
_MASK = Object([Property("size", Array(DataType.long)), Property("counts", DataType.string)])
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image"), ColSpec(Array(_CLICK), "clicks")]),
    outputs=Schema([ColSpec(_MASK, "mask"), ColSpec(DataType.double, "score")]),
)


def package(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint as an MLflow model.

    Args:
        checkpoint: its folder, without a training state (`mst.checkpoint.copy_for_use`).
        out: folder of the model, which must not be there.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
    """
    mlflow.pyfunc.save_model(
        out,
        python_model=str(_CODE),
        code_paths=[str(PROJECT / "mst")],
        artifacts={"checkpoint": str(checkpoint)},
        model_config={"weights_sha256": verify(checkpoint)["sha256"][WEIGHTS]},
        signature=SIGNATURE,
        input_example=_example(),
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in _REQUIRED],
    )


def _example() -> pd.DataFrame:
    """A bright square, clicked on in its middle."""
    image = np.full((64, 96, 3), 40, np.uint8)
    image[16:48, 32:64] = 220
    done, data = cv2.imencode(".png", image)
    assert done
    clicks = [{"x": 48.0, "y": 32.0, "is_positive": True}]
    return pd.DataFrame({"image": [base64.b64encode(data.tobytes()).decode()], "clicks": [clicks]})
