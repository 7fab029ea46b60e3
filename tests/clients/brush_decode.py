"""In label-studio-sdk's environment: decode brush results as Label Studio's exports do.

python brush_decode.py RESULT.json OUT.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle

result = json.loads(Path(sys.argv[1]).read_text())
shape = result["original_height"], result["original_width"], 4
np.save(sys.argv[2], decode_rle(result["value"]["rle"]).reshape(shape)[:, :, 3] == 255)
