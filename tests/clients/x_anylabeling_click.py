"""In X-AnyLabeling's environment, without a screen: click through its own `RemoteServer`.

python x_anylabeling_click.py SERVER IMAGE OUT.json X,Y,LABEL ...
"""

import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
server, image, out, *points = sys.argv[1:]
config = Path(out).with_suffix(".yaml")
config.write_text(f"remote_server_settings:\n  server_url: {server}\n  api_key: ''\n")

import anylabeling.config  # noqa: E402

anylabeling.config.current_config_file = str(config)

from anylabeling.services.auto_labeling.remote_server import RemoteServer  # noqa: E402
from PyQt6.QtGui import QImage  # noqa: E402
from PyQt6.QtWidgets import QApplication  # noqa: E402

application = QApplication([])
said = []
settings = {
    "type": "remote_server",
    "name": "remote",
    "display_name": "Remote",
    "remote_server_settings": {"server_url": server, "api_key": ""},
}
remote = RemoteServer(settings, said.append)
(model,) = remote.get_available_models()
remote.set_model_id(model)
marks = [
    {"type": "point", "data": [float(x), float(y)], "label": int(label)}
    for x, y, label in (point.split(",") for point in points)
]
remote.set_auto_labeling_marks(marks)
result = remote.predict_shapes(QImage(image), image)
assert not said, said
remote.set_auto_labeling_marks([{"type": "point", "data": [1, 1], "label": 0}])
assert not remote.predict_shapes(QImage(image), image).shapes
assert "422" in said[0]  # what the tool shows its user
shapes = [[[point.x(), point.y()] for point in shape.points] for shape in result.shapes]
Path(out).write_text(json.dumps(shapes))
