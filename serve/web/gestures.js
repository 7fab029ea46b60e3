// Mouse, pen and fingers on the canvas, told as what they mean:
// click(point, isPositive), box(a, b), boxing(a, b) or boxing(null), pan(dx, dy), zoom(factor, x, y).

const STILL = 6; // screen pixels that a click may move
const STILL_FINGER = 12;

export class Gestures {
  // mode(): "add", "remove" or "box", what a finger or a left button does.
  constructor(canvas, mode, told) {
    Object.assign(this, { canvas, mode, told });
    this.pointers = new Map();
    this.drag = null; // {id, start, kind}: what one pointer is about to do
    this.isSpaceDown = false;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.cancel(event));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  down(event) {
    const point = this.at(event);
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, point);
    if (event.button === 1) event.preventDefault(); // the browser's own scrolling
    if (this.pointers.size > 1) {
      this.stop(); // a second finger: it was no tap
      return;
    }
    const isFinger = event.pointerType === "touch";
    const isPositive = event.button !== 2 && !event.shiftKey && this.mode() !== "remove";
    let kind = event.button === 2 ? "click" : "box";
    if (event.button === 1 || this.isSpaceDown) kind = "pan";
    else if (isFinger && this.mode() !== "box") kind = "tap";
    this.drag = { id: event.pointerId, start: point, kind, isPositive, isFinger, hasMoved: false };
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const point = this.at(event);
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, point);
    this.pointers.set(event.pointerId, point);
    const { drag } = this;
    if (!drag || drag.id !== event.pointerId) return;
    const still = drag.isFinger ? STILL_FINGER : STILL;
    drag.hasMoved ||= Math.hypot(point.x - drag.start.x, point.y - drag.start.y) > still;
    if (!drag.hasMoved) return;
    if (drag.kind === "box") this.told.boxing(drag.start, point);
    else if (drag.kind !== "click") this.told.pan(point.x - before.x, point.y - before.y);
  }

  up(event) {
    const point = this.at(event);
    this.pointers.delete(event.pointerId);
    const { drag } = this;
    if (!drag || drag.id !== event.pointerId) return;
    this.stop();
    if (drag.hasMoved && drag.kind === "box") this.told.box(drag.start, point);
    else if (!drag.hasMoved && drag.kind !== "pan") this.told.click(drag.start, drag.isPositive);
  }

  cancel(event) {
    this.pointers.delete(event.pointerId);
    this.stop();
  }

  // Forget what was begun; nothing is told of it.
  stop() {
    this.drag = null;
    this.told.boxing(null);
  }

  pinch(id, before, now) {
    const other = [...this.pointers].find(([key]) => key !== id)[1];
    const distance = (point) => Math.hypot(point.x - other.x, point.y - other.y);
    this.told.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    const factor = distance(now) / Math.max(1, distance(before));
    this.told.zoom(factor, (now.x + other.x) / 2, (now.y + other.y) / 2);
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    const { x, y } = this.at(event);
    this.told.zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), x, y);
  }
}
