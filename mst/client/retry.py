"""Which answers of a server may be better at another try, and when that is."""

import random
from dataclasses import dataclass

import httpx

_PASSING = frozenset({429, 502, 503, 504})  # too many requests; a server that starts, is full or is replaced


@dataclass(frozen=True)
class Retry:
    """How a call is tried again that could not reach the server, or was answered 429, 502, 503 or 504.

    So is one with 500 from whoever stands before the server, which died meanwhile: its own errors are JSON.
    An answer that says that more clicks are done than before begins the time anew: many clicks on a new image
    take longer than the server gives one request, and it keeps what it did.

    The wait doubles from try to try, with a random part so that many clients do not come back at once;
    a `Retry-After` of the server is kept to where it is longer.
    """

    seconds: float = 30.0
    """After the first try, in which another may begin; 0 for no second try."""
    first_wait: float = 0.1
    """Seconds before the second try."""
    max_wait: float = 5.0
    """Seconds that the wait grows to."""

    def wait(self, number: int, reply: httpx.Response | None) -> float:
        """Return the seconds to wait after try `number`, counted from 0, which `reply` answered."""
        backoff: float = min(self.max_wait, self.first_wait * 2**number) * random.uniform(0.5, 1)
        asked = reply.headers.get("Retry-After", "") if reply is not None else ""
        return max(backoff, float(asked)) if asked.isdecimal() else backoff


def is_json(reply: httpx.Response) -> bool:
    """Whether an answer says that it is JSON, as all of the server itself are."""
    kind: str = reply.headers.get("Content-Type", "")
    return kind.startswith("application/json")


def is_passing(reply: httpx.Response) -> bool:
    """Whether another try may succeed; Ray Serve's proxy answers 500 for a replica that died."""
    return reply.status_code in _PASSING or (reply.status_code == 500 and not is_json(reply))


def clicks_done(reply: httpx.Response) -> int:
    """Return how many clicks are done of a request that took too long; 0 where it says nothing."""
    try:
        done = reply.json().get("clicks_done", 0)
    except (ValueError, AttributeError):
        return 0
    return done if isinstance(done, int) else 0
