"""Images of one HTTP replica: decoded once, kept in memory while there is room, and read again after that."""

import asyncio
import hashlib

from mst.data.pixels.images import RGB, UPLOADED, decode_image, opened
from serve.errors import UnknownImageError
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.state.cache import ByteLRU
from serve.state.room import Room
from serve.state.store import ImageStore

_DECODERS = 4  # images that are decoded at once: it is memory that they compete for


class Images:
    """The images that requests name, and those that they bring.

    Args:
        settings: of the server.
        store: of all replicas.
        metrics: what is counted and timed.
        room: for the images of all requests.
    """

    def __init__(self, settings: ServeSettings, store: ImageStore, metrics: Metrics, room: Room) -> None:
        self._max_pixels, self._store, self._metrics, self._room = settings.max_pixels, store, metrics, room
        self._kept: ByteLRU[str, RGB] = ByteLRU(settings.cache_bytes)
        self._decoders = asyncio.Semaphore(_DECODERS)

    async def add(self, data: bytes) -> tuple[str, RGB]:
        """Decode and store an image.

        Returns:
            Its id and pixels.

        Raises:
            ImageTooLargeError: more pixels than the settings allow.
            ImageError: the bytes are no image, or a broken one.
        """
        image_id = hashlib.sha256(data).hexdigest()
        image = await self._from_memory(image_id)
        if image is None:
            image = await self._decode(data)
        await asyncio.to_thread(self._store.put, data)
        self._kept.put(image_id, image, image.nbytes)
        return image_id, image

    async def get(self, image_id: str) -> RGB:
        """Return an image's pixels.

        Raises:
            UnknownImageError: there is none of this id.
        """
        image = await self._from_memory(image_id)
        self._metrics.cache("image", image is not None)
        if image is None:
            image = await self._decode(await self._stored(image_id))
            self._kept.put(image_id, image, image.nbytes)
        return image

    async def file(self, image_id: str) -> tuple[bytes, str]:
        """Return a stored image's file, and the suffix of its format.

        Raises:
            UnknownImageError: there is none of this id.
        """
        data = await self._stored(image_id)
        return data, await asyncio.to_thread(self._suffix_of, data)

    def sweep(self, seconds: float) -> None:
        """Delete what the store keeps no longer, unless a replica has done so within so many seconds."""
        if self._store.is_to_be_swept(seconds):
            self._store.sweep()

    async def _stored(self, image_id: str) -> bytes:
        data = await asyncio.to_thread(self._store.get, image_id)
        if data is None:
            raise UnknownImageError(f"no image '{image_id[:80]}'; store it with POST /v1/images")
        return data

    async def _from_memory(self, image_id: str) -> RGB | None:
        if (image := self._kept.get(image_id)) is not None:
            await self._room.take(image.shape[0] * image.shape[1])
        return image

    async def _decode(self, data: bytes) -> RGB:
        await self._room.take(await asyncio.to_thread(self._pixels_of, data))
        async with self._decoders:
            with self._metrics.stage("decode"):
                return await asyncio.to_thread(
                    decode_image, data, max_pixels=self._max_pixels, formats=UPLOADED
                )

    def _suffix_of(self, data: bytes) -> str:
        with opened(data, "image", self._max_pixels, UPLOADED) as header:
            return f".{(header.format or 'img').lower().replace('jpeg', 'jpg').replace('tiff', 'tif')}"

    def _pixels_of(self, data: bytes) -> int:
        """How many pixels an image's header claims."""
        with opened(data, "image", self._max_pixels, UPLOADED) as header:
            return int(header.width * header.height)
