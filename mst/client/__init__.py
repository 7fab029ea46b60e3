"""A client of the HTTP interface in `serve/`, and its command line.

client = Client("http://127.0.0.1:8000")
mask = client.segment(image, [Click(row=80, col=120, is_positive=True)]).mask

    python -m mst.client photo.jpg --click 120,80 --negative 30,40

Every call may be made twice with the same result: an image's id is made of its bytes, and a mask depends on
nothing but the request. A call that fails for a passing reason is therefore simply tried again.
"""

from mst.client.http import Client
from mst.client.retry import Retry
from mst.client.wire import Segmentation

__all__ = ["Client", "Retry", "Segmentation"]
