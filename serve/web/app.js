// The page: its buttons, keys, and the ways in which an image comes in.

import { adapt } from "./adapting.js";
import { Editor } from "./editor.js";
import { ask, element, say } from "./panel.js";
import { Server } from "./server.js";

async function askKey(wasRefused) {
  const field = element("key");
  field.value = "";
  element("refused").hidden = !wasRefused;
  return (await ask(element("login"))) === "ok" ? field.value : null;
}

const server = new Server(askKey, () => say("the server is busy; trying again …", "busy"));
const chosenMode = () => document.querySelector("[name=mode]:checked").value;
export const editor = new Editor(server, chosenMode);

const tokens = element("tokens");
const opacity = element("opacity");
const STEP = 60; // screen pixels that an arrow moves the image

const press = (id, action) => element(id).addEventListener("click", action);
press("undo", () => editor.undo());
press("redo", () => editor.redo());
press("fit", () => fit());
press("help", () => ask(element("keys")));
press("new", () => editor.add());
press("clear", () => editor.clear());
press("accept", () => editor.accept());
press("adapt", () => adapt(server));
press("save-png", () => editor.savePng());
press("save-coco", () => editor.saveCoco());
press("example", () => openExample());
opacity.addEventListener("input", () => editor.draw());
tokens.addEventListener("change", () => editor.draw());

for (const [id, use] of [["file", (file) => editor.open(file)], ["prior", (file) => editor.usePrior(file)]]) {
  element(id).addEventListener("change", (event) => {
    use(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
}

function fit() {
  editor.view.fit();
  editor.draw();
}

async function openExample() {
  const response = await fetch(new URL("example.jpg", import.meta.url));
  editor.open(new File([await response.blob()], "example.jpg", { type: "image/jpeg" }));
}

function changeOpacity(by) {
  opacity.value = Number(opacity.value) + by;
  editor.draw();
}

function chooseNumber(number) {
  const object = editor.state.objects[number - 1];
  if (object) editor.choose(object.id);
}

const KEYS = {
  n: () => editor.add(),
  s: () => editor.savePng(),
  d: () => element("accept").click(),
  t: () => tokens.click(),
  0: fit,
  "+": () => editor.zoom(1.25),
  "=": () => editor.zoom(1.25),
  "-": () => editor.zoom(0.8),
  "[": () => changeOpacity(-10),
  "]": () => changeOpacity(10),
  "?": () => ask(element("keys")),
  Delete: () => editor.remove(),
  Backspace: () => editor.remove(),
  ArrowLeft: () => editor.pan(STEP, 0),
  ArrowRight: () => editor.pan(-STEP, 0),
  ArrowUp: () => editor.pan(0, STEP),
  ArrowDown: () => editor.pan(0, -STEP),
};

function shortcut(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") return event.shiftKey ? () => editor.redo() : () => editor.undo();
    return key === "y" ? () => editor.redo() : null;
  }
  if (event.altKey || (!editor.image && key !== "?")) return null;
  return KEYS[key] ?? (/^[1-9]$/.test(key) ? () => chooseNumber(Number(key)) : null);
}

window.addEventListener("keydown", (event) => {
  const isElsewhere = document.querySelector("dialog[open]") || event.target.matches("input:not([type=checkbox])");
  if (isElsewhere) return;
  if (event.key === " " && (event.target === document.body || event.target === editor.canvas)) {
    editor.gestures.isSpaceDown = true;
    event.preventDefault();
  }
  const action = shortcut(event);
  if (!action) return;
  event.preventDefault();
  action();
});
window.addEventListener("keyup", (event) => {
  if (event.key === " ") editor.gestures.isSpaceDown = false;
});

for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    element("stage").classList.toggle("over", name === "dragenter" || name === "dragover");
  });
}
window.addEventListener("drop", (event) => editor.open(event.dataTransfer.files[0]));
window.addEventListener("paste", (event) => editor.open(event.clipboardData.files[0]));
