"""How fast this worker is, learned from what it does, for honest times left."""

from dataclasses import dataclass

_MEMORY = 0.7  # weight of what was known when something new is measured


@dataclass(slots=True)
class Pace:
    """Seconds per tile prediction, and per megapixel to decode and to store."""

    tile_s: float
    decode_s: float
    store_s: float = 0.1  # 16384 x 16384 px: 23 s for PNG and pyramid on 2 cores

    def learn_tile(self, seconds: float) -> None:
        self.tile_s = _MEMORY * self.tile_s + (1 - _MEMORY) * seconds

    def learn_decode(self, seconds: float) -> None:
        self.decode_s = _MEMORY * self.decode_s + (1 - _MEMORY) * seconds

    def learn_store(self, seconds: float) -> None:
        self.store_s = _MEMORY * self.store_s + (1 - _MEMORY) * seconds

    def after_steps(self, tiles_left: int, megapixels: float) -> float:
        """Seconds until the end of a job that still has tiles to sing."""
        return round(tiles_left * self.tile_s + megapixels * (self.decode_s + self.store_s), 1)

    def after_bands(self, megapixels_left: float, megapixels: float) -> float:
        """Seconds until the end of a job that is being decoded."""
        return round(megapixels_left * self.decode_s + megapixels * self.store_s, 1)
