// What is on the canvas: the image, the masks, the tokens, clicks and boxes.

const SCALES = ["#ffb300", "#4fb3ff", "#ec64af", "#aa82ff"]; // of tokens, by the size of their patches
const CLICKS = { true: "#2ecc71", false: "#e74c3c" };
const CRISP = 3; // screen pixels of a pixel from which on its square is shown
const OUTLINE = 2; // screen pixels

export const tokenColour = (sizes, size) => SCALES[sizes.indexOf(size) % SCALES.length];

export const tokenSizes = (tokens) => [...new Set(tokens.map((each) => each.patch_size))].sort((a, b) => a - b);

export class Painting {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.layer = new OffscreenCanvas(1, 1);
  }

  // scene: {image, view, opacity, objects: [{object, mask, isActive}], tokens, boxing}
  paint(scene) {
    const { canvas, pen } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
      [this.layer.width, this.layer.height] = [canvas.width, canvas.height];
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    this.picture(pen, scene.view, scene.image);
    if (scene.tokens) this.dim(scene.view);
    for (const each of scene.objects) if (each.mask) this.mask(each, scene, ratio);
    if (scene.tokens) this.tokens(scene.tokens, scene.view);
    for (const { object, isActive } of scene.objects) if (isActive) this.prompts(object, scene.view);
    if (scene.boxing) this.box(scene.boxing, scene.view, "#ffffff");
  }

  picture(pen, view, picture) {
    pen.imageSmoothingEnabled = view.scale < CRISP;
    pen.imageSmoothingQuality = "high";
    const { image, scale, left, top } = view;
    pen.drawImage(picture, left, top, image.width * scale, image.height * scale);
  }

  dim(view) {
    this.pen.fillStyle = "rgb(12 14 18 / 55%)";
    this.pen.fillRect(view.left, view.top, view.image.width * view.scale, view.image.height * view.scale);
  }

  // The mask's tint, and an outline that is as wide at every zoom: the mask moved around, less the mask.
  mask({ mask, isActive }, { view, opacity }, ratio) {
    const { pen } = this;
    pen.globalAlpha = isActive ? opacity : 0.7 * opacity;
    this.picture(pen, view, mask);
    pen.globalAlpha = 1;
    if (!isActive) return;
    const layer = this.layer.getContext("2d");
    layer.setTransform(1, 0, 0, 1, 0, 0);
    layer.globalCompositeOperation = "source-over";
    layer.clearRect(0, 0, this.layer.width, this.layer.height);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1], [0.7, 0.7], [0.7, -0.7], [-0.7, 0.7], [-0.7, -0.7]]) {
      layer.setTransform(ratio, 0, 0, ratio, OUTLINE * ratio * dx, OUTLINE * ratio * dy);
      this.picture(layer, view, mask);
    }
    layer.setTransform(ratio, 0, 0, ratio, 0, 0);
    layer.globalCompositeOperation = "destination-out";
    this.picture(layer, view, mask);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(this.layer, 0, 0);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  // Large patches first, so that small ones are seen on them; the most similar are the strongest.
  tokens(tokens, view) {
    const { pen } = this;
    const sizes = tokenSizes(tokens);
    pen.lineWidth = 1.5;
    for (const { patch_size: size, boxes, scores } of [...tokens].sort((a, b) => b.patch_size - a.patch_size)) {
      const [least, most] = [Math.min(...scores), Math.max(...scores)];
      pen.strokeStyle = pen.fillStyle = tokenColour(sizes, size);
      boxes.forEach(([left, top, right, bottom], number) => {
        const strength = most > least ? (scores[number] - least) / (most - least) : 1;
        const [x, y] = [left * view.scale + view.left, top * view.scale + view.top];
        const [width, height] = [(right - left) * view.scale, (bottom - top) * view.scale];
        pen.globalAlpha = 0.08 + 0.22 * strength;
        pen.fillRect(x, y, width, height);
        pen.globalAlpha = 0.45 + 0.55 * strength;
        pen.strokeRect(x + 0.75, y + 0.75, Math.max(1, width - 1.5), Math.max(1, height - 1.5));
      });
    }
    pen.globalAlpha = 1;
  }

  prompts(object, view) {
    if (object.box) this.box(object.box, view, object.colour);
    object.clicks.forEach((click, number) => this.click(click, view, number === object.clicks.length - 1));
  }

  click({ x, y, is_positive: isPositive }, view, isLast) {
    const { pen } = this;
    const [at, down] = [(x + 0.5) * view.scale + view.left, (y + 0.5) * view.scale + view.top];
    pen.beginPath();
    pen.arc(at, down, isLast ? 8 : 6.5, 0, 2 * Math.PI);
    pen.fillStyle = CLICKS[isPositive];
    pen.fill();
    pen.lineWidth = 2;
    pen.strokeStyle = "white";
    pen.stroke();
    pen.beginPath(); // a plus or a minus: green and red look alike to many
    pen.moveTo(at - 3, down);
    pen.lineTo(at + 3, down);
    if (isPositive) {
      pen.moveTo(at, down - 3);
      pen.lineTo(at, down + 3);
    }
    pen.stroke();
  }

  box([left, top, right, bottom], view, colour) {
    const { pen } = this;
    const [x, y] = [left * view.scale + view.left, top * view.scale + view.top];
    const [width, height] = [(right - left) * view.scale, (bottom - top) * view.scale];
    pen.lineWidth = 3.5;
    pen.strokeStyle = "rgb(0 0 0 / 50%)";
    pen.strokeRect(x, y, width, height);
    pen.lineWidth = 1.75;
    pen.setLineDash([6, 4]);
    pen.strokeStyle = colour;
    pen.strokeRect(x, y, width, height);
    pen.setLineDash([]);
  }
}
