"""Contact sheets: what the numbers cannot say."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

LABEL_PX = 16


def draw_sheet(images: list[Tensor], labels: list[str], columns: int, side_px: int, path: Path) -> None:
    """Write pictures in rows, each with a line of text under it.

    Args:
        images: (3, H, W) in [-1, 1], any size; each is shown at side_px.
        path: .jpg, .webp or .png.
    """
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side_px, rows * (side_px + LABEL_PX)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = index % columns * side_px, index // columns * (side_px + LABEL_PX)
        sheet.paste(to_picture(image).resize((side_px, side_px), Image.Resampling.LANCZOS), (left, top))
        pen.text((left + 2, top + side_px + 2), label[: side_px // 6], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=82)


def to_picture(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] to 8 bits."""
    pixels = (image.float().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
