"""When to try again, and when to give up."""

from chorale.errors import NoConnectionError

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 5.0
_MOST_FAILURES = 12  # about 40 s: a server that is restarted is back by then


class Reconnect:
    """Counts failures in a row; anything that arrives in between clears them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures = 0

    @property
    def delay_s(self) -> float:
        """How long to wait before the next attempt."""
        return min(_FIRST_DELAY_S * 2 ** max(self._failures - 1, 0), _LONGEST_DELAY_S)

    def succeed(self) -> None:
        """Something arrived."""
        self._failures = 0

    def fail(self, error: Exception | None = None) -> None:
        """The line broke, or ended too early.

        Raises:
            NoConnectionError: it did so too often.
        """
        self._failures += 1
        if self._failures > _MOST_FAILURES:
            reason = str(error) or type(error).__name__ if error else "the line ends again and again"
            raise NoConnectionError(self._url, reason) from error
