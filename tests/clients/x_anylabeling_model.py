"""In X-AnyLabeling's environment, without a screen: load a custom model, and let the tool itself run it.

python x_anylabeling_model.py MODEL.yaml IMAGE OUT.npz X,Y,LABEL ...
"""

import os
import sys
import time
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
file, image, out, *points = sys.argv[1:]
home = Path(out).parent

import anylabeling.config  # noqa: E402

anylabeling.config.set_work_directory(str(home))  # where it saves its settings
anylabeling.config.current_config_file = str(home / ".xanylabelingrc")

import numpy as np  # noqa: E402
from anylabeling.services.auto_labeling.model_manager import ModelManager  # noqa: E402
from PyQt6.QtGui import QImage  # noqa: E402
from PyQt6.QtWidgets import QApplication  # noqa: E402

application = QApplication([])
manager = ModelManager()
assert manager.load_custom_model(file)  # the menu entry Load Custom Model
until = time.monotonic() + 120
while not manager.loaded_model_config:
    assert time.monotonic() < until, "the tool did not load the model"
    application.processEvents()
    time.sleep(0.05)
tool = manager.loaded_model_config["model"]
tool.set_output_mode("polygon")
found = {}
for number in range(1, len(points) + 1):
    marks = [
        {"type": "point", "data": [float(x), float(y)], "label": int(label)}
        for x, y, label in (point.split(",") for point in points[:number])
    ]
    tool.set_auto_labeling_marks(marks)
    assert tool.predict_shapes(QImage(image), image).shapes
    encoded = tool.image_embedding_cache.get(image)
    found[f"mask_{number}"] = tool.model.predict_masks(encoded, marks)[0, 0] > 0
np.savez(out, **found)
