// Binary messages (api_schemas/wire.py): one preview frame, or a batch of them.

const FRAME = 4;
const BATCH = 5;

// Previews of a message: {data, image}, where data is the rectangle in px and image a JPEG Blob.
export function unpackPreviews(buffer) {
  const view = new DataView(buffer);
  if (view.byteLength < 8) return [];
  if (view.getUint32(0) !== BATCH) return [unpackFrame(buffer, 0, view.byteLength)].filter(Boolean);
  const previews = [];
  for (let at = 4; at + 4 <= view.byteLength; ) {
    const length = view.getUint32(at);
    previews.push(unpackFrame(buffer, at + 4, length));
    at += 4 + length;
  }
  return previews.filter(Boolean);
}

function unpackFrame(buffer, at, length) {
  const view = new DataView(buffer, at, length);
  if (view.getUint32(0) !== FRAME) return null;
  const size = view.getUint32(4);
  const metadata = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, at + 8, size)));
  const image = new Blob([new Uint8Array(buffer, at + 8 + size, length - 8 - size)], { type: "image/jpeg" });
  return { data: metadata.data, image };
}
