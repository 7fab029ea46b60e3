"""What a server can answer beside a mask; each protocol says it in its own form.

ServerSideError(MSTError)
|-- UnknownImageError   no image is stored under this id
|-- UnknownModelError   the registry gives no model this alias
|-- BusyError           it is under way already
|-- NotKeptError        annotations are not kept, or there is none of this id
|-- RequestError        a protocol's request that cannot be read
`-- OverloadedError     more is asked than can be answered in time; the same call may succeed later
    `-- UnfinishedError the clicks take longer than one request may; the same call goes on with them
"""

from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RayServeException

from mst.errors import CheckpointError, ClickError, ImageError, ImageTooLargeError, MaskError, MSTError


class ServerSideError(MSTError):
    """The root of this tree."""


class UnknownImageError(ServerSideError):
    """No image is stored under this id: it never was, or it has been swept away since."""


class UnknownModelError(ServerSideError):
    """The registry gives no model this alias, or the one that it gives cannot be served."""


class BusyError(ServerSideError):
    """What is asked for is under way already, and happens once at a time."""


class NotKeptError(ServerSideError):
    """This server keeps no annotations, or none of this id."""


class RequestError(ServerSideError):
    """A protocol's request that cannot be read, or asks for what is not there to be given."""


class OverloadedError(ServerSideError):
    """More is asked than can be answered in time; the same call may succeed later."""

    retry_after = 1
    """Seconds after which it is worth another try."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnfinishedError(OverloadedError):
    """The clicks of a request take longer than its deadline; what is done is kept, and not done again."""

    def __init__(self, seconds: float, clicks_done: int, clicks: int) -> None:
        super().__init__(
            f"{clicks_done} of {clicks} clicks are done after {seconds:g} s; the same request goes on there"
        )
        self.clicks_done = clicks_done


_STATUS: dict[type[MSTError], int] = {
    UnknownImageError: 404,
    UnknownModelError: 404,
    NotKeptError: 404,
    BusyError: 409,
    RequestError: 422,
    OverloadedError: 503,
    CheckpointError: 503,  # there is no version that can be served
    ImageTooLargeError: 413,
    ImageError: 415,
    ClickError: 422,
    MaskError: 422,
}


def took_the_call_with_it(error: Exception) -> bool:
    """Whether a replica went while it had a call: killed, out of memory, with its node.

    Ray has an error for each of many ways. Only these two say something else: that the call itself failed, or
    was given up.
    """
    return isinstance(error, RayError) and not isinstance(error, RayTaskError | TaskCancelledError)


def is_away(error: Exception) -> bool:
    """Whether no replica of the model could be asked, or the one that was asked went."""
    return isinstance(error, RayServeException) or took_the_call_with_it(error)


def status_of(error: MSTError) -> int:
    """The HTTP status of an error; 500 for what is the server's own fault."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def message_of(error: MSTError) -> str:
    """What an error says, without the traceback that Ray adds to one of another process."""
    return str(getattr(error, "cause", error))
