// Where a source lies on a picture that begins with it (api_schemas/source.py counts the same).

// In pixels of the picture; it may reach beyond the picture's edges.
export function placeSource({ source, upscale, width_px: width, height_px: height }, [ownWidth, ownHeight]) {
  const place = (left, top, scale) => ({ left, top, width: Math.round(ownWidth * scale), height: Math.round(ownHeight * scale) });
  if (upscale) return place(0, 0, upscale);
  if (source.offset) return place(source.offset.left_px, source.offset.top_px, 1);
  const ratios = [width / ownWidth, height / ownHeight];
  const scale = { fill: Math.max(...ratios), fit: Math.min(...ratios) }[source.fit ?? "fill"] ?? 1;
  const { width: across, height: down } = place(0, 0, scale);
  return { left: Math.floor((width - across) / 2), top: Math.floor((height - down) / 2), width: across, height: down };
}

// Whether it leaves nothing of the picture free.
export function covers({ left, top, width, height }, [wholeWidth, wholeHeight]) {
  return left <= 0 && top <= 0 && left + width >= wholeWidth && top + height >= wholeHeight;
}
