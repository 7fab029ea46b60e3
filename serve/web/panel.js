// The panel beside the image: the list of objects, the tokens' legend, and which buttons can be pressed.

import { tokenColour, tokenSizes } from "./painting.js";

export const element = (id) => document.getElementById(id);

function made(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// told: choose(id), rename(id, name), remove(id)
export function showObjects(state, answerOf, told) {
  const items = state.objects.map((object) => {
    const score = answerOf(object)?.score;
    const name = made("input", { value: object.name, maxLength: 60, ariaLabel: "name of the object" });
    name.addEventListener("change", () => told.rename(object.id, name.value.trim() || object.name));
    name.addEventListener("keydown", (event) => {
      if (event.key === "Enter") name.blur();
      event.stopPropagation(); // letters are no shortcuts here
    });
    const chip = made("span", { className: "chip" });
    chip.style.background = object.colour;
    const remove = made("button", { className: "icon", title: "Remove this object", ariaLabel: "Remove" }, "×");
    remove.addEventListener("click", (event) => {
      event.stopPropagation();
      told.remove(object.id);
    });
    const text = score === undefined ? "" : `${Math.round(100 * score)} %`;
    const quality = made("span", { className: "score", title: "IoU that the model expects of the mask" }, text);
    const item = made("li", {}, chip, name, quality, remove);
    item.classList.toggle("active", object.id === state.active);
    item.addEventListener("click", () => told.choose(object.id));
    return item;
  });
  const list = element("objects");
  const isTyping = list.contains(document.activeElement) && document.activeElement.tagName === "INPUT";
  if (!isTyping) list.replaceChildren(...items);
  list.querySelector(".active")?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

export function showLegend(tokens) {
  const legend = element("legend");
  legend.hidden = !tokens;
  if (!tokens) return;
  const sizes = tokenSizes(tokens);
  const items = tokens.map(({ patch_size: size, boxes }, number) => {
    const chip = made("span", { className: "chip" });
    chip.style.background = tokenColour(sizes, size);
    return made("li", {}, chip, `stage ${number + 1}: ${boxes.length} tokens of ${size} px`);
  });
  legend.replaceChildren(...(items.length ? items : [made("li", {}, "click on the object to see them")]));
}

export function say(text, kind = "") {
  element("status").textContent = text;
  element("status").className = kind;
}

export function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}
