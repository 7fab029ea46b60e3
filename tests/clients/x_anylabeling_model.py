"""In X-AnyLabeling's environment, without a screen: click on a custom model that the tool itself runs.

python x_anylabeling_model.py MODEL.yaml IMAGE OUT.json X,Y,LABEL ...
"""

import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
model, image, out, *points = sys.argv[1:]
config = Path(out).with_suffix(".yaml")
config.write_text("{}\n")

import anylabeling.config  # noqa: E402

anylabeling.config.current_config_file = str(config)

from anylabeling.services.auto_labeling.model_manager import ModelManager  # noqa: E402
from anylabeling.services.auto_labeling.segment_anything import SegmentAnything  # noqa: E402
from PyQt6.QtGui import QImage  # noqa: E402
from PyQt6.QtWidgets import QApplication  # noqa: E402

application = QApplication([])
assert "segment_anything" in ModelManager.CUSTOM_MODELS  # types that Load Custom Model takes
tool = SegmentAnything(model, print)
tool.set_output_mode("polygon")
answers = []
for number in range(1, len(points) + 1):
    tool.set_auto_labeling_marks(
        [
            {"type": "point", "data": [float(x), float(y)], "label": int(label)}
            for x, y, label in (point.split(",") for point in points[:number])
        ]
    )
    shapes = tool.predict_shapes(QImage(image), image).shapes
    answers.append([[[point.x(), point.y()] for point in shape.points] for shape in shapes])
Path(out).write_text(json.dumps(answers))
