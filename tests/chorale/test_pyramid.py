"""The client asks for exactly the tiles that the service has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_schemas import pyramid
from chorale.errors import UnexpectedAnswerError
from chorale.pyramid import Pyramid, PyramidTile


@given(st.integers(256, 4096), st.integers(256, 4096))
def test_all_tiles_and_no_others(width: int, height: int) -> None:
    served = pyramid.Pyramid(width, height)
    asked = list(Pyramid.parse(served.describe().encode()).tiles())
    assert len(asked) == len(set(asked))
    assert all(served.window(tile.level, tile.column, tile.row) for tile in asked)
    for level in {tile.level for tile in asked}:
        column = max(tile.column for tile in asked if tile.level == level)
        row = max(tile.row for tile in asked if tile.level == level)
        assert PyramidTile(level, column, row) in asked
        assert served.window(level, column + 1, row) is None
        assert served.window(level, column, row + 1) is None
    assert served.window(max(tile.level for tile in asked) + 1, 0, 0) is None


@pytest.mark.parametrize(
    "text", [b"", b"<html></html>", b"{}", b'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008"/>']
)
def test_other_texts_are_refused(text: bytes) -> None:
    with pytest.raises(UnexpectedAnswerError):
        Pyramid.parse(text)
