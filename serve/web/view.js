// Where the image lies on the screen: a pixel (x, y) of the image is at scale * x + left, scale * y + top.

const MARGIN = 16;
const BELOW = 60; // for the switch of what a tap does
const CLOSEST = 40; // screen pixels of one pixel of the image

export class View {
  constructor() {
    this.scale = 1;
    this.left = this.top = 0;
    this.image = this.screen = { width: 1, height: 1 };
    this.isFitted = true;
  }

  // A window of another size shows the whole image again, unless a person chose a part of it.
  resize(screen) {
    this.screen = screen;
    if (this.isFitted) this.fit();
  }

  open(image) {
    this.image = image;
    this.fit();
  }

  fitScale() {
    const { image, screen } = this;
    const margin = Math.min(MARGIN, screen.width / 20);
    return Math.min((screen.width - 2 * margin) / image.width, (screen.height - margin - BELOW) / image.height);
  }

  fit() {
    this.scale = Math.max(this.fitScale(), 1e-3);
    this.left = (this.screen.width - this.image.width * this.scale) / 2;
    this.top = (this.screen.height - BELOW + MARGIN - this.image.height * this.scale) / 2;
    this.isFitted = true;
  }

  zoom(factor, x = this.screen.width / 2, y = this.screen.height / 2) {
    const least = Math.min(this.fitScale() / 2, 1);
    const scale = Math.min(Math.max(this.scale * factor, least), Math.max(CLOSEST, least));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.isFitted = false;
    this.keepVisible();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.isFitted = false;
    this.keepVisible();
  }

  // Some of the image stays on the screen, or it would be lost.
  keepVisible() {
    const least = 48;
    const { image, screen, scale } = this;
    this.left = Math.min(Math.max(this.left, least - image.width * scale), screen.width - least);
    this.top = Math.min(Math.max(this.top, least - image.height * scale), screen.height - least);
  }

  toImage({ x, y }) {
    return { x: (x - this.left) / this.scale, y: (y - this.top) / this.scale };
  }

  // The pixel under a point of the screen, or null beside the image.
  pixel(point) {
    const { x, y } = this.toImage(point);
    if (x < 0 || y < 0 || x >= this.image.width || y >= this.image.height) return null;
    return { x: Math.floor(x), y: Math.floor(y) };
  }

  // The pixels between two points of the screen: [left, top, right, bottom], half-open; null if there are none.
  box(first, second) {
    const [a, b] = [this.toImage(first), this.toImage(second)];
    const clamp = (value, most) => Math.min(Math.max(value, 0), most);
    const { width, height } = this.image;
    const left = Math.floor(clamp(Math.min(a.x, b.x), width));
    const top = Math.floor(clamp(Math.min(a.y, b.y), height));
    const right = Math.ceil(clamp(Math.max(a.x, b.x), width));
    const bottom = Math.ceil(clamp(Math.max(a.y, b.y), height));
    return right > left && bottom > top ? [left, top, right, bottom] : null;
  }
}
