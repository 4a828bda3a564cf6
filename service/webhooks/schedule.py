"""When a delivery is tried again (Standard Webhooks, "Deliverability and reliability")."""

from typing import Final

# Before each attempt, after the one before it: at once, then 5 s, 5 min, 30 min, 2 h, 5 h, 10 h.
DELAYS_S: Final = (0, 5, 300, 1800, 7200, 18_000, 36_000)
JITTER: Final = 0.1  # so that what failed together does not come back together


def find_delay_s(tries: int, chance: float) -> float | None:
    """How long to wait before the next attempt; None if there is none.

    Args:
        tries: attempts made.
        chance: from 0 to 1; adds up to `JITTER` of the delay.
    """
    return DELAYS_S[tries] * (1 + JITTER * chance) if tries < len(DELAYS_S) else None
