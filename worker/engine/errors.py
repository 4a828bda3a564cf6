"""What can go wrong inside the engine.

EngineError
├── DismissedError         the leader of a group of ranks has stopped
├── GridError              a tile does not fit its canvas
├── MomentsError           kept moments are not of this decoder
├── NonFiniteImageError    a decode tile holds NaN or infinity, in float32 too
├── NonFiniteLatentError   a step produced NaN or infinity
└── RankLostError          a rank of the ensemble has died
"""


class EngineError(Exception):
    """Root of the engine's errors."""


class DismissedError(EngineError):
    """The leader of a group of ranks has stopped."""


class GridError(EngineError):
    """A tile does not fit its canvas."""


class MomentsError(EngineError):
    """Kept moments are not of this decoder."""


class NonFiniteLatentError(EngineError):
    """A step produced NaN or infinity."""


class NonFiniteImageError(EngineError):
    """A decode tile holds NaN or infinity, in float32 too."""


class RankLostError(EngineError):
    """A rank of the ensemble has died."""
