"""Binary messages: packing loses nothing, and what is cut short is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_schemas.events import TilePreviewed, TilePreviewedData
from api_schemas.wire import pack_batch, pack_preview, unpack_batch, unpack_preview

cells = st.builds(
    TilePreviewedData,
    left_px=st.integers(0, 16_384),
    top_px=st.integers(0, 16_384),
    width_px=st.integers(1, 512),
    height_px=st.integers(1, 512),
    stage=st.sampled_from(["denoise", "decode"]),
    step=st.integers(0, 200),
)
events = st.builds(
    TilePreviewed, job_id=st.text(max_size=30), attempt=st.integers(0, 9), ts=st.just(1.5), data=cells
)
previews = st.tuples(events, st.binary(max_size=200))


@given(st.lists(previews, min_size=1, max_size=8))
def test_a_batch_gives_back_its_previews(contents: list[tuple[TilePreviewed, bytes]]) -> None:
    message = pack_batch([pack_preview(event, image) for event, image in contents])
    assert [unpack_preview(frame) for frame in unpack_batch(message)] == contents


@given(st.lists(previews, min_size=2, max_size=4), st.data())
def test_a_batch_that_is_cut_short_is_refused(contents: list, data: st.DataObject) -> None:
    frames = [pack_preview(event, image) for event, image in contents]
    message = pack_batch(frames)
    # A cut between two frames gives a shorter batch, which only its transport could notice.
    borders = {4 + sum(4 + len(frame) for frame in frames[:count]) for count in range(len(frames) + 1)}
    cut = data.draw(st.integers(5, len(message) - 1).filter(lambda at: at not in borders))
    with pytest.raises(ValueError, match=r"bytes|cut short"):
        unpack_batch(message[:cut])
