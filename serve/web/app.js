// The page: an image, the clicks on it, and the mask that the server answers with.
// The list of clicks is the whole state; every change of it asks for a mask anew.

const MASK_COLOUR = [56, 180, 139];
const MASK_OPACITY = 0.5;

const element = (id) => document.getElementById(id);
const stage = element("stage");
const canvas = element("canvas");
const context = canvas.getContext("2d");

let image = null; // ImageBitmap
let imageId = null;
let clicks = []; // {x, y, is_positive}, in pixels of the image
let mask = null; // canvas with the coloured mask, or null
let opening = 0; // number of the newest image that was opened; older ones that arrive late are dropped
let request = 0; // number of the newest request for a mask; answers to older ones are dropped

async function call(path, options) {
  const response = await fetch(path, { method: "POST", ...options });
  if (response.ok) return response.json();
  const body = await response.json().catch(() => ({}));
  const detail = Array.isArray(body.detail) ? body.detail.map((each) => each.msg).join("; ") : body.detail;
  throw new Error(detail || `the server answered ${response.status}`);
}

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

async function openImage(file) {
  if (!file) return;
  const mine = ++opening;
  document.body.classList.add("busy");
  say("loading the image …");
  try {
    const [bitmap, stored] = await Promise.all([
      createImageBitmap(file, { imageOrientation: "from-image" }),
      call("/v1/images", { body: file }),
    ]);
    if (mine !== opening) return;
    request += 1; // what is still asked of the image before this one is of no use
    [image, imageId, clicks, mask] = [bitmap, stored.image_id, [], null];
    [canvas.width, canvas.height] = [stored.width, stored.height];
    canvas.hidden = false;
    element("hint").hidden = true;
    say("click on an object");
  } catch (error) {
    if (mine !== opening) return;
    say(error.message, true);
  }
  document.body.classList.remove("busy");
  draw();
}

async function segment() {
  const mine = ++request;
  draw();
  if (!clicks.some((click) => click.is_positive)) {
    mask = null;
    document.body.classList.remove("busy");
    say(clicks.length ? "left-click on the object first" : "click on an object");
    draw();
    return;
  }
  document.body.classList.add("busy");
  const start = performance.now();
  try {
    const reply = await call(`/v1/images/${imageId}/mask`, {
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ clicks, format: "png" }),
    });
    const answer = await coloured(reply.mask);
    if (mine !== request) return;
    mask = answer;
    const total = Math.round(performance.now() - start);
    const count = clicks.length === 1 ? "1 click" : `${clicks.length} clicks`;
    say(`${count} · confidence ${(100 * reply.score).toFixed(0)} % · ${total} ms`);
    element("model").textContent = `${reply.model.name} version ${reply.model.version}`;
  } catch (error) {
    if (mine !== request) return;
    mask = null; // the old one does not belong to these clicks
    say(error.message, true);
  }
  document.body.classList.remove("busy");
  draw();
}

// A grey PNG, 255 on the object, as a canvas in the mask's colour.
async function coloured(base64) {
  const blob = await (await fetch(`data:image/png;base64,${base64}`)).blob();
  const bitmap = await createImageBitmap(blob);
  const out = new OffscreenCanvas(bitmap.width, bitmap.height);
  const pen = out.getContext("2d");
  pen.drawImage(bitmap, 0, 0);
  const pixels = pen.getImageData(0, 0, out.width, out.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data[i + 3] = pixels.data[i];
    [pixels.data[i], pixels.data[i + 1], pixels.data[i + 2]] = MASK_COLOUR;
  }
  pen.putImageData(pixels, 0, 0);
  return out;
}

// The image fills the stage, however small it is.
function fit() {
  const style = getComputedStyle(stage);
  const width = stage.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const height = stage.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  const scale = Math.min(width / canvas.width, height / canvas.height);
  canvas.style.width = `${canvas.width * scale}px`;
  canvas.style.height = `${canvas.height * scale}px`;
}

function draw() {
  element("undo").disabled = element("clear").disabled = clicks.length === 0;
  element("download").disabled = mask === null;
  if (!image) return;
  fit();
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (mask) {
    context.globalAlpha = MASK_OPACITY;
    context.drawImage(mask, 0, 0);
    context.globalAlpha = 1;
  }
  // Dots keep their size on the screen, whatever the size of the image.
  const unit = canvas.width / Math.max(1, canvas.getBoundingClientRect().width);
  for (const click of clicks) {
    context.beginPath();
    context.arc(click.x + 0.5, click.y + 0.5, 6 * unit, 0, 2 * Math.PI);
    context.fillStyle = click.is_positive ? "#2ecc71" : "#e74c3c";
    context.fill();
    context.lineWidth = 2 * unit;
    context.strokeStyle = "white";
    context.stroke();
  }
}

function addClick(event, isPositive) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) * canvas.width) / box.width);
  const y = Math.floor(((event.clientY - box.top) * canvas.height) / box.height);
  if (x < 0 || y < 0 || x >= canvas.width || y >= canvas.height) return;
  clicks.push({ x, y, is_positive: isPositive });
  segment();
}

function undo() {
  if (!clicks.length) return;
  clicks.pop();
  segment();
}

function clear() {
  clicks = [];
  segment();
}

function download() {
  const out = new OffscreenCanvas(canvas.width, canvas.height);
  const pen = out.getContext("2d");
  pen.drawImage(mask, 0, 0);
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = "white";
  pen.fillRect(0, 0, out.width, out.height);
  pen.globalCompositeOperation = "destination-over";
  pen.fillStyle = "black";
  pen.fillRect(0, 0, out.width, out.height);
  out.convertToBlob({ type: "image/png" }).then((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "mask.png";
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

canvas.addEventListener("click", (event) => addClick(event, true));
canvas.addEventListener("contextmenu", (event) => {
  event.preventDefault();
  addClick(event, false);
});
element("file").addEventListener("change", (event) => openImage(event.target.files[0]));
element("undo").addEventListener("click", undo);
element("clear").addEventListener("click", clear);
element("download").addEventListener("click", download);
window.addEventListener("resize", draw);
window.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z") {
    event.preventDefault();
    undo();
  }
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    stage.classList.toggle("over", name === "dragenter" || name === "dragover");
  });
}
window.addEventListener("drop", (event) => openImage(event.dataTransfer.files[0]));
