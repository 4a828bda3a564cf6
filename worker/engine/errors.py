"""What can go wrong inside the engine.

EngineError
├── DismissedError         the job has ended on all ranks: the leader stopped, or a rank failed
├── GridError              the overlap leaves no stride between tiles
├── MomentsError           kept moments are not of this decoder
├── NonFiniteImageError    what the autoencoder makes is NaN or infinite, in float32 too
├── NonFiniteLatentError   a step produced NaN or infinity
└── RankLostError          a rank of the ensemble has died
"""


class EngineError(Exception):
    """Root of the engine's errors."""


class DismissedError(EngineError):
    """The job has ended on all ranks: the leader stopped, or a rank failed."""


class GridError(EngineError):
    """The overlap leaves no stride between tiles."""


class MomentsError(EngineError):
    """Kept moments are not of this decoder."""


class NonFiniteLatentError(EngineError):
    """A step produced NaN or infinity."""


class NonFiniteImageError(EngineError):
    """What the autoencoder makes is NaN or infinite, in float32 too."""


class RankLostError(EngineError):
    """A rank of the ensemble has died."""
