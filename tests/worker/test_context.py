"""Times left."""

from hypothesis import given
from hypothesis import strategies as st

from worker.context import Pace

seconds = st.floats(0.001, 100)


@given(seconds, seconds, st.integers(1, 1000))
def test_what_is_measured_wins_over_what_was_guessed(guess: float, truth: float, tiles: int) -> None:
    pace = Pace(tile_s=guess, decode_s=0, store_s=0)
    for _ in range(60):
        pace.learn_tile(truth)
    assert abs(pace.after_steps(tiles, 1) - tiles * truth) <= 0.05 + 0.001 * tiles * truth


@given(st.integers(0, 1000), st.floats(0.1, 300))
def test_time_left_shrinks_to_nothing_but_storing(tiles: int, megapixels: float) -> None:
    pace = Pace(tile_s=0.5, decode_s=0.2, store_s=0.1)
    assert pace.after_steps(tiles + 1, megapixels) >= pace.after_steps(tiles, megapixels)
    assert pace.after_steps(0, megapixels) >= pace.after_bands(megapixels, megapixels) - 0.1
    assert pace.after_bands(0, megapixels) == round(megapixels * 0.1, 1)
