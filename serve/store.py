"""Images by content: an image's id is the sha256 of its bytes, so storing it twice is storing it once."""

import hashlib
import re
import tempfile
from pathlib import Path

_ID = re.compile(r"[0-9a-f]{64}")


class ImageStore:
    """A folder of image files, named by their sha256 and shared by all replicas.

    Args:
        folder: made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store an image's bytes and return its id."""
        image_id = hashlib.sha256(data).hexdigest()
        path = self._folder / image_id
        if not path.exists():
            # Written beside and renamed: another replica sees the whole file or none.
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                file.write(data)
            Path(file.name).replace(path)
        return image_id

    def get(self, image_id: str) -> bytes | None:
        """Return an image's bytes; None where there is no such image."""
        if not _ID.fullmatch(image_id):
            return None
        try:
            return (self._folder / image_id).read_bytes()
        except FileNotFoundError:
            return None
