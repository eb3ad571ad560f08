// Sends one image to `POST /classify`, as it is, and shows the five most likely classes; then to `POST /explain`,
// where the server has an explainer, and shows where the network looked and the nearest training images.

const ASK_AGAIN_MS = 3000;
const TINT = [140, 40, 255]; // of what speaks for the class: no fruit is violet
const STRENGTH = 0.7;
const UNSEEN = "rgb(0 0 0 / 60%)"; // over what the crop left out

const at = (id) => document.getElementById(id);
const input = at("file");
const drop = at("drop");
const preview = at("preview");
const maxBytes = Number(input.dataset.maxBytes);
let latest = 0; // an answer that was overtaken by another image is not shown
let lastFile = null;
let explains = true; // until the server says otherwise
let explanation = null;

async function classify(file) {
  const turn = ++latest;
  lastFile = file;
  showPreview(file);
  at("problem").hidden = true;
  at("why").hidden = true;
  if (file.size > maxBytes) {
    return showProblem("This file is too large", `It has ${mebibytes(file.size)}; at most ${mebibytes(maxBytes)} are taken.`);
  }
  if (file.size === 0) {
    return showProblem("This file is empty", "Choose another one.");
  }
  setBusy(true);
  say("Asking the server.");
  const started = performance.now();
  let response, answer;
  try {
    response = await fetch(`classify?top_k=5&abstain=true&${model()}`, { method: "POST", headers: keyHeader(), body: file });
    answer = await response.json();
  } catch {
    if (turn === latest) showAway();
    return;
  } finally {
    if (turn === latest) setBusy(false);
  }
  const milliseconds = performance.now() - started;
  if (turn !== latest) return;
  if (response.ok) {
    showAnswer(answer, milliseconds);
    explain(file, turn);
  } else if (response.status === 400) {
    showProblem("This image was rejected", sentence(answer.error));
  } else if (response.status === 401) {
    showProblem("This server asks for an API key", sentence(answer.error), true);
    at("key-row").hidden = false;
    at("key").focus();
  } else if (response.status === 413) {
    showProblem("This file is too large", sentence(answer.error));
  } else if (response.status === 502) {
    showAway();
  } else {
    showProblem("The server did not answer this image", sentence(answer.error), true);
  }
}

// The key stays in the field: it is stored nowhere.
function keyHeader() {
  return at("key").value ? { "x-api-key": at("key").value.trim() } : {};
}

const model = () => `model=${at("model").value}`;

function showAnswer(answer, milliseconds) {
  const isKnown = answer.label !== null;
  at("answer-title").textContent = isKnown ? "Most likely" : "Not a known class";
  at("answer").toggleAttribute("data-unknown", !isKnown);
  at("bars").replaceChildren(...answer.top_k.map(bar));
  at("latency").textContent = `${Math.round(milliseconds)} ms`;
  at("model-version").textContent = answer.model_version;
  at("answer").hidden = false;
  say(isKnown ? `${answer.label}, ${percent(answer.probability)}.` : "Not a known class.");
}

function bar({ label, probability }) {
  const [row, name, number, track, filled] = ["li", "span", "span", "div", "div"].map((tag) => document.createElement(tag));
  name.textContent = label;
  name.className = "label";
  number.textContent = percent(probability);
  number.className = "share";
  track.className = "track";
  track.ariaHidden = "true";
  filled.className = "bar";
  filled.style.width = `${100 * probability}%`;
  track.append(filled);
  row.append(name, number, track);
  return row;
}

async function explain(file, turn) {
  if (!explains) return;
  let response, found;
  try {
    response = await fetch(`explain?${model()}`, { method: "POST", headers: keyHeader(), body: file });
    found = await response.json();
  } catch {
    return; // the answer stands without its reasons
  }
  explains = response.status !== 404;
  if (!response.ok || turn !== latest) return;
  explanation = found;
  at("map").replaceChildren(...found.activations.map(({ label }, index) => new Option(label, index)));
  at("explained").src = preview.src;
  await at("explained").decode().catch(() => {});
  if (turn !== latest) return;
  at("neighbours").replaceChildren(...found.neighbours.map(neighbour));
  at("seen").hidden = !found.neighbours.some((one) => one.is_nearly_identical);
  showMap();
  at("why").hidden = false;
}

// Tints the picture where it speaks for the chosen class; the map covers the part that the network saw.
function showMap() {
  const { rows } = explanation.activations[at("map").value];
  const small = document.createElement("canvas");
  small.height = rows.length;
  small.width = rows[0].length;
  const tint = new ImageData(small.width, small.height);
  rows.flat().forEach((share, index) => tint.data.set([...TINT, 255 * STRENGTH * share], 4 * index));
  small.getContext("2d").putImageData(tint, 0, 0);
  const canvas = at("tint");
  canvas.width = at("explained").width;
  canvas.height = at("explained").height;
  const { aspect, share, is_squashed } = explanation.crop;
  const width = share * (is_squashed ? canvas.width : Math.min(canvas.width, canvas.height * aspect));
  const height = share * (is_squashed ? canvas.height : Math.min(canvas.height, canvas.width / aspect));
  const left = (canvas.width - width) / 2, top = (canvas.height - height) / 2;
  const drawing = canvas.getContext("2d");
  drawing.fillStyle = UNSEEN;
  drawing.fillRect(0, 0, canvas.width, canvas.height);
  drawing.clearRect(left, top, width, height);
  drawing.drawImage(small, left, top, width, height);
}

function neighbour({ label, similarity, is_nearly_identical, picture }) {
  const [item, image, name, share, seen] = ["li", "img", "span", "span", "span"].map((tag) => document.createElement(tag));
  image.src = picture;
  image.alt = "";
  name.textContent = label;
  share.textContent = `${similarity.toFixed(3)} alike`;
  share.className = "share";
  seen.textContent = is_nearly_identical ? "in training" : "";
  seen.className = "seen";
  item.append(image, name, share, seen);
  return item;
}

function showProblem(title, reason, canRepeat = false) {
  setBusy(false);
  at("answer").hidden = true;
  at("why").hidden = true;
  at("problem-title").textContent = title;
  at("problem-reason").textContent = reason;
  at("again").hidden = !canRepeat;
  at("key-row").hidden = true;
  at("problem").hidden = false;
  say(`${title}. ${reason}`);
}

function showAway() {
  showProblem("The server does not answer", "Is it still running? Start it with “fruitstand serve”, then try again.", true);
  askServer();
}

function showPreview(file) {
  URL.revokeObjectURL(preview.src);
  preview.hidden = true;
  preview.src = URL.createObjectURL(file);
  at("name").textContent = file.name;
  at("name").hidden = false;
  drop.toggleAttribute("data-chosen", true);
  at("choose").textContent = "Choose another image";
}
preview.addEventListener("load", () => { preview.hidden = false; });

function setBusy(busy) {
  document.querySelector("main").setAttribute("aria-busy", busy);
}

function say(text) {
  at("status").textContent = text;
}

function sentence(reason = "no reason was given") {
  return reason[0].toUpperCase() + reason.slice(1) + (/[.!?]$/.test(reason) ? "" : ".");
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

let asking = 0;
async function askServer() {
  clearTimeout(asking);
  const server = at("server");
  try {
    const ready = await fetch("v2/health/ready");
    if (!ready.ok) throw new Error("not ready");
    server.dataset.state = "ready";
    server.textContent = "The server is ready";
  } catch {
    server.dataset.state = "away";
    server.textContent = "The server does not answer";
    asking = setTimeout(askServer, ASK_AGAIN_MS);
  }
}

input.addEventListener("change", () => {
  const [file] = input.files;
  input.value = ""; // the same file can be chosen again
  if (file) classify(file);
});
at("map").addEventListener("change", showMap);
at("models").hidden = at("model").length < 2;
at("model").addEventListener("change", () => {
  explains = true;
  if (lastFile) classify(lastFile);
});
at("again").addEventListener("click", () => classify(lastFile));
at("key").addEventListener("keydown", (event) => { if (event.key === "Enter") classify(lastFile); });
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) classify(file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.toggleAttribute("data-over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
  });
}
askServer();
