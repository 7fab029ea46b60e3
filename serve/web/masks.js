// Masks as pictures: from the server's PNG to a canvas in an object's colour, and to files.

// A PNG in base64 as a file.
export function file(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

// A grey PNG in base64, 255 on the object, as an opaque canvas: white on black.
export async function decoded(base64) {
  return drawn(await createImageBitmap(file(base64)));
}

export function drawn(bitmap) {
  const out = new OffscreenCanvas(bitmap.width, bitmap.height);
  out.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0);
  return out;
}

const pixelsOf = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);

// White on black as the colour on nothing.
export function coloured(mask, colour) {
  const pixels = pixelsOf(mask);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data[at + 3] = pixels.data[at] > 127 ? 255 : 0;
    [pixels.data[at], pixels.data[at + 1], pixels.data[at + 2]] = [red, green, blue];
  }
  const out = new OffscreenCanvas(mask.width, mask.height);
  out.getContext("2d").putImageData(pixels, 0, 0);
  return out;
}

// Black and white alone, whatever the file had: what is brighter than 127 belongs to the object.
export function thresholded(mask) {
  const pixels = pixelsOf(mask);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const level = pixels.data[at] > 127 && pixels.data[at + 3] > 127 ? 255 : 0;
    pixels.data.fill(level, at, at + 3);
    pixels.data[at + 3] = 255;
  }
  const out = new OffscreenCanvas(mask.width, mask.height);
  out.getContext("2d").putImageData(pixels, 0, 0);
  return out;
}

export async function base64(mask) {
  const bytes = new Uint8Array(await (await mask.convertToBlob({ type: "image/png" })).arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

// What COCO knows of a mask: uncompressed run lengths down the columns, box and area.
export function measured(mask) {
  const { data } = pixelsOf(mask);
  const { width, height } = mask;
  const counts = [];
  let [value, run, area] = [false, 0, 0];
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let x = 0; x < width; x += 1) {
    for (let y = 0; y < height; y += 1) {
      const isOn = data[4 * (y * width + x)] > 127;
      if (isOn !== value) {
        counts.push(run);
        [value, run] = [isOn, 0];
      }
      run += 1;
      if (!isOn) continue;
      area += 1;
      [left, top] = [Math.min(left, x), Math.min(top, y)];
      [right, bottom] = [Math.max(right, x + 1), Math.max(bottom, y + 1)];
    }
  }
  counts.push(run);
  const bbox = area ? [left, top, right - left, bottom - top] : [0, 0, 0, 0];
  return { segmentation: { size: [height, width], counts }, bbox, area };
}

// COCO's annotations of one image; entries are {object, score, segmentation, bbox, area}.
export function coco(fileName, { width, height }, entries) {
  const names = [...new Set(entries.map((each) => each.object.name))];
  return {
    images: [{ id: 1, file_name: fileName, width, height }],
    categories: names.map((name, number) => ({ id: number + 1, name })),
    annotations: entries.map(({ object, ...measured }, number) => ({
      id: number + 1,
      image_id: 1,
      category_id: names.indexOf(object.name) + 1,
      iscrowd: 0,
      ...measured,
    })),
  };
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
