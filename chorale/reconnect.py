"""When to reconnect, from where, and when to give up."""

from chorale.errors import NoConnectionError
from chorale.protocol import Update, read_update

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 5.0
_MOST_FAILURES = 12  # about 40 s: a server that is restarted is back by then


class Reconnect:
    """Counts consecutive failures; received data resets the count."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures = 0

    @property
    def delay_s(self) -> float:
        """How long to wait before the next attempt."""
        return min(_FIRST_DELAY_S * 2 ** max(self._failures - 1, 0), _LONGEST_DELAY_S)

    def succeed(self) -> None:
        """Data was received: reset the count."""
        self._failures = 0

    def fail(self, error: Exception | None = None) -> None:
        """The connection was lost, or ended too early.

        Raises:
            NoConnectionError: it did so too often.
        """
        self._failures += 1
        if self._failures > _MOST_FAILURES:
            reason = str(error) or type(error).__name__ if error else "the connection ends again and again"
            raise NoConnectionError(self._url, reason) from error


class Following(Reconnect):
    """The same for a stream of events, which continues after the last one that was received."""

    def __init__(self, url: str, after: str) -> None:
        super().__init__(url)
        self.after = after

    def read(self, text: str) -> Update:
        """Take one message in.

        Raises:
            UnexpectedAnswerError: it is of an unknown kind.
        """
        update = read_update(text)
        self.succeed()
        if update.type != "snapshot":  # the event that a snapshot names follows it
            self.after = update.seq
        return update
