// What a person has said about an image: objects, each with its clicks, box and prior mask.
// States are values that never change; undo and redo go from one to another.

const COLOURS = ["#2f8fff", "#ec64af", "#1fd1a5", "#aa82ff", "#ff7043", "#c6e03a", "#22d3ee", "#ffb300"];

function newObject(id) {
  const colour = COLOURS[(id - 1) % COLOURS.length];
  return { id, name: `object ${id}`, colour, clicks: [], box: null, prior: null };
}

export function empty() {
  return { objects: [newObject(1)], active: 1 };
}

export const active = (state) => state.objects.find((each) => each.id === state.active);

export const isUntouched = (object) => !object.clicks.length && !object.box && !object.prior;

// Whether a mask can be predicted: something says where the object is.
export const isAnswerable = (object) =>
  Boolean(object.box || (object.prior && object.clicks.length) || object.clicks.some((each) => each.is_positive));

// Whether nothing is known of an object yet: the model may look at it twice.
export const isNew = (object) => object.clicks.length + Boolean(object.box) === 1;

// What an object's mask depends on, beside the image.
export const promptOf = ({ id, clicks, box, prior }) => JSON.stringify([id, clicks, box, prior?.id]);

export function change(state, changes, id = state.active) {
  return { ...state, objects: state.objects.map((each) => (each.id === id ? { ...each, ...changes } : each)) };
}

export function addObject(state) {
  const id = Math.max(0, ...state.objects.map((each) => each.id)) + 1;
  return { objects: [...state.objects, newObject(id)], active: id };
}

export function removeObject(state, id) {
  const objects = state.objects.filter((each) => each.id !== id);
  if (!objects.length) return empty();
  return { objects, active: state.active === id ? objects[objects.length - 1].id : state.active };
}

export class History {
  constructor() {
    this.reset();
  }

  reset() {
    this.state = empty();
    this.past = [];
    this.future = [];
  }

  set(state) {
    this.past.push(this.state);
    this.state = state;
    this.future = [];
  }

  // Choosing or naming an object is not worth an undo of its own.
  amend(state) {
    this.state = state;
  }

  undo() {
    if (!this.past.length) return false;
    this.future.push(this.state);
    this.state = this.past.pop();
    return true;
  }

  redo() {
    if (!this.future.length) return false;
    this.past.push(this.state);
    this.state = this.future.pop();
    return true;
  }
}
