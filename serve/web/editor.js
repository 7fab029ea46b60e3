// What a person does changes the state; a changed state is drawn, and its masks are asked for.

import { Gestures } from "./gestures.js";
import * as masks from "./masks.js";
import { Painting } from "./painting.js";
import { element, say, showLegend, showObjects } from "./panel.js";
import * as state from "./state.js";
import { View } from "./view.js";

const nameOf = (object) => `${object.name} ${state.promptOf(object)}`;

const KEPT_BYTES = 300e6; // of masks, so that undo and redo are there at once

export class Editor {
  // server: answers clicks; mode(): what a finger or a left button does.
  constructor(server, mode) {
    this.history = new state.History();
    this.view = new View();
    this.canvas = element("canvas");
    this.painting = new Painting(this.canvas);
    this.server = server;
    this.answers = new Map(); // by prompt: {png, tinted, score, ...}, the oldest first
    this.shown = new Map(); // by object: the answer on the screen while a new one is awaited
    this.waiting = new Set(); // prompts that are asked for
    this.accepted = new Map(); // by object: {name, id} of the mask that the server keeps
    this.priors = 0;
    this.openings = 0;
    this.image = this.file = this.imageId = this.draft = null; // the draft is a box that is being dragged
    new ResizeObserver(() => this.resize()).observe(element("stage"));
    this.gestures = new Gestures(this.canvas, mode, this);
  }

  get state() {
    return this.history.state;
  }

  get active() {
    return state.active(this.state);
  }

  answerOf(object) {
    return this.answers.get(state.promptOf(object));
  }

  // Gestures

  click(point, isPositive) {
    const pixel = this.view.pixel(point);
    if (!pixel || !this.imageId) return;
    const click = { ...pixel, is_positive: isPositive };
    this.set(state.change(this.state, { clicks: [...this.active.clicks, click] }));
  }

  box(first, second) {
    const box = this.view.box(first, second);
    if (box && this.imageId) this.set(state.change(this.state, { box }));
  }

  boxing(first, second) {
    this.draft = first && this.view.box(first, second);
    this.draw();
  }

  pan(dx, dy) {
    this.view.pan(dx, dy);
    this.draw();
  }

  zoom(factor, x, y) {
    this.view.zoom(factor, x, y);
    this.draw();
  }

  // State

  set(next) {
    this.history.set(next);
    this.changed();
  }

  amend(next) {
    this.history.amend(next);
    this.changed();
  }

  undo() {
    if (this.history.undo()) this.changed();
  }

  redo() {
    if (this.history.redo()) this.changed();
  }

  changed() {
    for (const object of this.state.objects) if (state.isAnswerable(object)) this.segment(object);
    this.report();
    this.draw();
  }

  choose(id) {
    if (id !== this.state.active) this.amend({ ...this.state, active: id });
  }

  rename(id, name) {
    this.amend(state.change(this.state, { name }, id));
  }

  remove(id = this.state.active) {
    this.set(state.removeObject(this.state, id));
  }

  add() {
    if (this.image) this.set(state.addObject(this.state));
  }

  clear() {
    this.set(state.change(this.state, { clicks: [], box: null, prior: null }));
  }

  // Server

  async open(file) {
    if (!file) return;
    const mine = ++this.openings;
    say("loading the image …", "busy");
    try {
      const image = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => {
        throw new Error(`${file.name || "this"} is no image that the browser can show`);
      });
      const stored = await this.server.upload(file);
      if (mine !== this.openings) return; // another one was opened since
      if (stored.width !== image.width || stored.height !== image.height) throw new Error("the image's size is unclear");
      [this.image, this.file, this.imageId] = [image, file, stored.image_id];
      element("accept").hidden = !stored.keeps_annotations;
      element("adapting").hidden = !stored.adapts;
    } catch (error) {
      if (mine === this.openings) say(error.message, "error");
      return;
    }
    for (const each of [this.answers, this.shown, this.waiting, this.accepted]) each.clear();
    this.history.reset();
    element("hint").hidden = true;
    this.canvas.hidden = element("modes").hidden = false;
    this.resize();
    this.view.open(this.image);
    this.changed();
  }

  async segment(object) {
    const [prompt, imageId] = [state.promptOf(object), this.imageId];
    if (this.answers.has(prompt) || this.waiting.has(prompt)) return;
    this.waiting.add(prompt);
    if (state.isNew(object)) this.glance(object);
    try {
      const reply = await this.withImage(imageId, () => this.server.mask(imageId, object));
      const answer = await this.tinted(reply, object);
      if (imageId !== this.imageId) return;
      this.answers.set(prompt, answer);
      this.forget();
    } catch (error) {
      if (imageId !== this.imageId) return;
      this.waiting.delete(prompt);
      const now = this.state.objects.find((each) => each.id === object.id);
      if (now && state.promptOf(now) === prompt) this.refused(object.id, error);
      return;
    }
    this.waiting.delete(prompt);
    this.report();
    this.draw();
  }

  // Shows what a first look finds while the answer is awaited; whatever is wrong, the answer's call says it.
  async glance(object) {
    const [prompt, imageId] = [state.promptOf(object), this.imageId];
    const reply = await this.server.mask(imageId, object, true).catch(() => null);
    if (!reply || reply.is_final) return;
    const look = await this.tinted(reply, object);
    if (imageId !== this.imageId || !this.waiting.has(prompt)) return;
    this.shown.set(object.id, look);
    this.report();
    this.draw();
  }

  async tinted(answer, object) {
    const tinted = masks.coloured(await masks.decoded(answer.mask), object.colour);
    return { ...answer, png: answer.mask, tinted };
  }

  // What is not on the screen goes first; a mask takes four bytes for each pixel.
  forget() {
    const most = KEPT_BYTES / (4 * this.image.width * this.image.height);
    const used = new Set(this.state.objects.map(state.promptOf));
    for (const prompt of [...this.answers.keys()]) {
      if (this.answers.size <= most) return;
      if (!used.has(prompt)) this.answers.delete(prompt);
    }
  }

  // The server may have swept the image away since; then it is sent again.
  async withImage(imageId, call) {
    try {
      return await call();
    } catch (error) {
      if (error.status !== 404 || imageId !== this.imageId) throw error;
      await this.server.upload(this.file);
      return call();
    }
  }

  // Objects whose masks are there and not accepted yet, as they are now.
  acceptable() {
    const isKept = (object) => this.accepted.get(object.id)?.name === nameOf(object);
    return this.state.objects.filter((each) => this.answerOf(each) && !isKept(each));
  }

  // The page's "Done": the server keeps the masks, for training, each in place of an object's earlier one.
  async accept() {
    const [imageId, objects] = [this.imageId, this.acceptable()];
    try {
      for (const object of objects) {
        const { png, model, score } = this.answerOf(object);
        const { clicks, box, name } = object;
        const annotation = { label: name, mask: png, clicks, box, model, score };
        const { annotation_id: id } = await this.withImage(imageId, () => this.server.accept(imageId, annotation));
        const earlier = this.accepted.get(object.id)?.id;
        this.accepted.set(object.id, { name: nameOf(object), id });
        if (earlier && earlier !== id) await this.server.withdraw(imageId, earlier);
      }
      say(objects.length === 1 ? "1 mask is kept" : `${objects.length} masks are kept`);
    } catch (error) {
      say(error.message, "error");
    }
    this.offer();
  }

  refused(id, error) {
    this.shown.delete(id); // it does not belong to these clicks
    say(error.message, "error");
    this.draw();
  }

  async usePrior(file) {
    if (!file || !this.image) return;
    const bitmap = await createImageBitmap(file).catch(() => null);
    const { width, height } = this.image;
    if (!bitmap || bitmap.width !== width || bitmap.height !== height) {
      const size = bitmap ? `has ${bitmap.width} × ${bitmap.height} pixels` : "is no image";
      say(`the mask ${size}; it must be a PNG of ${width} × ${height}, white on black`, "error");
      return;
    }
    const mask = masks.thresholded(masks.drawn(bitmap));
    const tinted = masks.coloured(mask, this.active.colour);
    const prior = { id: ++this.priors, png: await masks.base64(mask), tinted };
    this.set(state.change(this.state, { prior, clicks: [], box: null }));
  }

  // Screen

  // What an object looks like: its answer, the mask it begins with, or the last answer while the next is awaited.
  look(object) {
    if (!state.isAnswerable(object)) {
      this.shown.delete(object.id);
      return object.prior;
    }
    const answer = this.answerOf(object);
    if (answer) this.shown.set(object.id, answer);
    return this.shown.get(object.id) ?? object.prior;
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = element("stage");
    this.view.resize({ width, height });
    this.draw();
  }

  // The buttons at once, so that they agree with the words; the picture with the next frame.
  draw() {
    this.offer();
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.drawNow();
    });
  }

  offer() {
    const { image, history } = this;
    element("undo").disabled = !history.past.length;
    element("redo").disabled = !history.future.length;
    element("fit").disabled = element("new").disabled = element("prior").disabled = !image;
    element("prior-label").classList.toggle("disabled", !image);
    element("clear").disabled = state.isUntouched(this.active);
    element("save-png").disabled = !this.look(this.active);
    element("accept").disabled = !this.acceptable().length;
    element("save-coco").disabled = !this.state.objects.some((each) => this.look(each));
  }

  drawNow() {
    const { view, image } = this;
    const answer = this.answerOf(this.active);
    const tokens = element("tokens").checked && image ? (answer?.tokens ?? []) : null;
    showLegend(tokens);
    showObjects(this.state, (object) => this.answerOf(object), this);
    if (!image) return;
    const objects = this.state.objects.map((object) => ({
      object,
      mask: this.look(object)?.tinted,
      isActive: object.id === this.state.active,
    }));
    objects.sort((a, b) => a.isActive - b.isActive); // the active one on top
    const opacity = element("opacity").value / 100;
    this.painting.paint({ image, view, opacity, objects, tokens, boxing: this.draft });
  }

  report() {
    const { active } = this;
    const answer = this.answerOf(active);
    if (!this.image) return;
    if (!state.isAnswerable(active)) {
      const hint = active.clicks.length ? "left-click on the object first" : "click on an object, or drag a box around it";
      say(active.prior ? "click where the mask is wrong" : hint);
    } else if (!answer) {
      say(this.shown.get(active.id)?.is_final === false ? "looking closer …" : "segmenting …", "busy");
    } else {
      const count = active.clicks.length === 1 ? "1 click" : `${active.clicks.length} clicks`;
      const said = [active.prior && "a mask", active.box && "a box", active.clicks.length && count];
      say(`${said.filter(Boolean).join(" and ")} · expected IoU ${answer.score.toFixed(2)}`);
      const { milliseconds, timing_ms: timing, model } = answer;
      element("latency").textContent = `${Math.round(milliseconds)} ms · model ${Math.round(timing.model)} ms`;
      element("model").textContent = `${model.name}/${model.version}`;
    }
  }

  // Files

  fileName(ending) {
    return `${(this.file.name || "image").replace(/\.[^.]*$/, "")}_${ending}`;
  }

  savePng() {
    const { png } = this.look(this.active) ?? {};
    if (png) masks.save(masks.file(png), this.fileName(`${this.active.name.replace(/[^\w-]+/g, "_")}.png`));
  }

  async saveCoco() {
    const looks = this.state.objects.map((object) => ({ object, ...this.look(object) })).filter((each) => each.png);
    const entries = looks.map(async ({ object, png, score }) => {
      return { object, score: score ?? null, ...masks.measured(await masks.decoded(png)) };
    });
    const text = JSON.stringify(masks.coco(this.file.name || "image", this.image, await Promise.all(entries)));
    masks.save(new Blob([text], { type: "application/json" }), this.fileName("coco.json"));
  }
}
