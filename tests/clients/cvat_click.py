"""In cvat-sdk's environment: invoke the interactor as CVAT's server does; keep the mask as CVAT stores it.

python cvat_click.py SERVER IMAGE OUT.npy X,Y,LABEL ...
"""

import base64
import sys
from pathlib import Path

import numpy as np
import requests
from cvat_sdk.masks import decode_mask, encode_mask

server, image, out, *points = sys.argv[1:]
clicks = [[float(number) for number in point.split(",")] for point in points]
functions = requests.get(f"{server}/api/functions", timeout=60).json()
(name,) = [key for key, each in functions.items() if each["metadata"]["annotations"]["type"] == "interactor"]
body = {
    "image": base64.b64encode(Path(image).read_bytes()).decode(),
    "pos_points": [[x, y] for x, y, label in clicks if label],
    "neg_points": [[x, y] for x, y, label in clicks if not label],
    "obj_bbox": None,
}
headers = {"x-nuclio-function-name": name, "x-nuclio-path": "/", "x-nuclio-invoke-via": "domain-name"}
reply = requests.post(f"{server}/api/function_invocations", json=body, headers=headers, timeout=60)
reply.raise_for_status()
mask = np.array(reply.json()["mask"], bool)
stored = encode_mask(mask)  # the "points" of a shape of type "mask"
np.save(out, decode_mask(stored, image_width=mask.shape[1], image_height=mask.shape[0]))
