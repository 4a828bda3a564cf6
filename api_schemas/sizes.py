"""Sides of a picture. Without pydantic, since the decoder of pictures that are sent starts once for each of them."""

MIN_SIDE_PX = 64
MAX_SIDE_PX = 16_384
