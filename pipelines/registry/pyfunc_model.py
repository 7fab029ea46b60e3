"""The registered model as MLflow runs it: from an image and clicks to a mask.

`pipelines/registry/package.py` logs this file as the model's code, with the library `mst` beside it, so it
imports nothing of `pipelines`; nothing is pickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from pycocotools import mask as coco_mask

from mst.checkpoint import WEIGHTS, load_model, verify
from mst.clicks import Click
from mst.data.pixels.base64_text import from_base64
from mst.data.pixels.images import RGB, UPLOADED, decode_image
from mst.errors import CheckpointError, ImageError, MSTError
from mst.predictor import Predictor

_MAX_PIXELS = 40_000_000


class ClickSegmenter(PythonModel):
    """Answers a table with a row for each object: columns `image` and `clicks` in, `mask` and `score` out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint, whose weights must be those that were registered.

        Their sha256 is the model configuration's `weights_sha256`; whoever loads the model can give the one
        that the registry has in the version's tags, and so needs not trust the files.

        Raises:
            CheckpointError: they are others, or the files are damaged.
        """
        folder = Path(context.artifacts["checkpoint"])
        found, registered = verify(folder)["sha256"][WEIGHTS], context.model_config["weights_sha256"]
        if found != registered:
            raise CheckpointError(
                f"{folder}: its weights are not those that were registered (sha256 {found})"
            )
        model, config = load_model(folder)
        self._predictor = Predictor(model, config.eval)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Segment one object a row.

        Args:
            context: as MLflow passes it.
            model_input: `image`, an image file in base64, and `clicks`, all clicks on the object in their
                order: x and y in pixels from the image's top left, which name the pixel (floor(x), floor(y)),
                and is_positive.
            params: there are none.

        Returns:
            For each row `mask`, COCO's compressed run-length encoding (size: height and width; counts), and
            `score`, the IoU that the mask would have, were the model's probabilities right.

        Raises:
            MlflowException: a row's image or clicks cannot be used; a server answers with status 400.
        """
        answers = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                answers.append(self._segment(_image(row["image"]), row["clicks"]))
            except (MSTError, KeyError, TypeError, ValueError, OverflowError) as error:
                raise MlflowException.invalid_parameter_value(f"row {number}: {error}") from None
        return answers

    def _segment(self, image: RGB, clicks: list[Mapping[str, Any]]) -> dict[str, Any]:
        placed = [Click(int(each["y"]), int(each["x"]), bool(each["is_positive"])) for each in clicks]
        prediction = self._predictor.predict(image, placed)
        threshold = self._predictor.config.threshold
        mask = prediction.mask(threshold)
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        size = [int(side) for side in rle["size"]]
        return {
            "mask": {"size": size, "counts": rle["counts"].decode()},
            "score": prediction.score(threshold),
        }


def _image(text: str) -> RGB:
    try:
        data = from_base64(text)
    except ValueError:
        raise ImageError("the image is no base64") from None
    return decode_image(data, max_pixels=_MAX_PIXELS, formats=UPLOADED)


set_model(ClickSegmenter())
