"""What annotation tools and inference clients speak, one file each: translation to `Core.segment` and back.

wire               types of fields, and from a tool's (x, y) to clicks and boxes
failures           errors in a protocol's own form
cvat               CVAT's gateway to Nuclio functions
label_studio       a machine learning backend of Label Studio
x_anylabeling      X-AnyLabeling's remote server
open_inference     KServe and Triton clients
mlflow_scoring     what `mlflow models serve` answers
"""

from fastapi import APIRouter

from serve.protocols import cvat, label_studio, mlflow_scoring, open_inference, x_anylabeling
from serve.settings import ServeSettings
from serve.state.core import Core


def routers(core: Core, settings: ServeSettings) -> list[APIRouter]:
    """Return each protocol's routes, which answer with `core`."""
    return [
        cvat.router(core),
        label_studio.router(core, settings),
        x_anylabeling.router(core),
        open_inference.router(core),
        mlflow_scoring.router(core),
    ]
