"use strict";
// Everything that a server's answer holds enters the page as text, never as HTML.

const TYPING = 80; // ms without a key before a text is searched
const RESTING = 250; // ms without a key before its words' regions are asked for
const SLOW = 600; // ms after which the page says that it waits
const PAGE = 12; // hits at first
const COLOURS = 8; // of serve.css

const at = (id) => document.getElementById(id);
const query = at("query");
const state = { health: null, limits: null, count: PAGE, asked: null, last: null };
let running = null; // aborts what the page doesn't wait for any more

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  made.append(...children);
  return made;
}

async function ask(path, parameters, options = {}) {
  const url = `${path}?${new URLSearchParams(parameters)}`;
  const answer = await fetch(url, { ...options, signal: running.signal });
  const body = await answer.json();
  if (!answer.ok) throw new Error([`${body.where}: ${body.error}`, body.fix].map(sentence).join(" "));
  return body;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;
const index = () => at("index").value;
const facts = () => state.health.indexes.find((one) => one.name === index());

// What is asked: a text, {row, id} of an image of the index, or {file}.

async function search(what, { keep = false } = {}) {
  if (!keep) state.count = PAGE;
  state.asked = what;
  running?.abort();
  running = new AbortController();
  const mine = running;
  document.body.classList.add("busy");
  const slow = setTimeout(() => (at("status").textContent = "Searching …"), SLOW);
  try {
    if (typeof what === "string") await searchText(what);
    else await searchPicture(what);
  } catch (error) {
    if (error.name !== "AbortError" && mine === running) refuse(error);
  } finally {
    clearTimeout(slow);
    if (mine === running) document.body.classList.remove("busy");
  }
}

async function searchText(text) {
  remember({ q: text });
  if (!/[\p{L}\p{N}\p{S}]/u.test(text)) return welcome();
  const found = await ask("/api/search", { index: index(), text, count: state.count });
  clear();
  showStatus(found);
  if (!found.hits.length) return;
  showHits(found, "The product of the text's and the image's embeddings. Compare scores of one text only.");
  await rest();
  const rows = found.hits.map((hit) => ["row", hit.row]);
  const { matches } = await ask("/api/regions", [["index", index()], ["text", text], ...rows]);
  showWords(at("words"), matches[0], at("hits"));
  at("words").hidden = false;
  const pictures = [...at("hits").querySelectorAll(".picture")];
  matches.forEach((match, place) => drawRegions(pictures[place], match));
}

async function searchPicture(what) {
  const named = what.file ? {} : { id: what.id };
  const sent = what.file ? { method: "POST", body: what.file } : {};
  if (what.file && what.file.size > state.limits.bytes)
    throw new Error(`The picture has ${what.file.size} bytes, more than ${state.limits.bytes}. Choose a smaller one.`);
  remember(what.file ? {} : { id: what.id });
  const common = { ...named, index: index(), count: state.count };
  const captions = facts().captions ? await ask("/api/picture", { ...common, find: "captions", count: 10 }, sent) : null;
  const alike = await ask("/api/picture", { ...common, find: "alike" }, sent);
  clear();
  showStatus(alike);
  const source = what.file ? URL.createObjectURL(what.file) : alike.hits.find((hit) => hit.row === alike.row)?.picture;
  const shown = picture(source, what.id ?? what.file.name);
  at("asked").replaceChildren(shown);
  at("asked").hidden = false;
  if (captions?.hits.length) showCaptions(captions, shown);
  showHits(alike, "The cosine of two images' embeddings: 1 for the same image.");
  at("results-title").textContent = "Images like it";
  at("results-title").hidden = false;
}

function remember(what) {
  const address = new URLSearchParams(Object.entries({ index: index(), ...what }).filter(([, value]) => value));
  history.replaceState(null, "", `?${address}`);
}

const rest = () => new Promise((done, failed) => {
  const wait = setTimeout(done, RESTING - TYPING);
  running.signal.addEventListener("abort", () => (clearTimeout(wait), failed(new DOMException("", "AbortError"))));
});

function clear() {
  at("examples").hidden = true;
  for (const id of ["words", "error", "asked", "captions", "results-title", "more"]) at(id).hidden = true;
  at("hits").replaceChildren();
  at("caption-list").replaceChildren();
}

function welcome() {
  clear();
  at("legend").hidden = true;
  at("examples").hidden = false;
  const { images, captions, dataset, run } = facts();
  at("status").textContent =
    `${images.toLocaleString()} images and ${captions.toLocaleString()} captions of ${dataset}, as ${run} sees them.`;
}

function refuse(error) {
  clear();
  at("status").textContent = "";
  at("error").textContent = error.message;
  at("error").hidden = false;
}

function showStatus(found) {
  if (!found.hits.length) {
    at("legend").hidden = true;
    at("status").textContent = `The model knows none of these words: ${found.unknown.join(", ")}.`;
    return;
  }
  const unknown = found.unknown.length ? ` · unknown words, without boxes: ${found.unknown.join(", ")}` : "";
  at("status").textContent = `${found.hits.length} of ${found.searched} · ${Math.ceil(found.milliseconds)} ms${unknown}`;
}

function picture(source, name) {
  const box = make("div", { class: "picture" });
  const missing = () => (box.classList.add("missing"), image.remove());
  const image = make("img", { src: source, alt: name, loading: "lazy", error: missing });
  box.append(image);
  return box;
}

function showHits(found, legend) {
  state.last = found;
  at("score-legend").textContent = legend;
  at("legend").hidden = false;
  const hits = found.hits.map((hit) =>
    make("article", { class: "hit" },
      make("p", { class: "tag" }, make("b", {}, `${hit.rank}`), make("span", { title: "score" }, hit.score.toFixed(4)),
        make("span", { class: "id", title: "id" }, hit.id)),
      picture(hit.picture, `image ${hit.id}`),
      make("p", { class: "caption" }, hit.caption),
      make("p", { class: "tools" },
        make("button", { type: "button", click: () => askWith(hit) }, "Search with it"))));
  at("hits").replaceChildren(...hits);
  at("more").hidden = found.hits.length < state.count || state.count >= state.limits.hits;
}

function askWith(hit) {
  query.value = "";
  scrollTo({ top: 0 });
  search({ id: hit.id, row: hit.row });
}

// A text with its coloured words as buttons; one that is pressed shows its own regions alone, in `where`.
function showWords(into, match, where) {
  const parts = [];
  const letters = [...match.text]; // places count characters, and JavaScript's strings count halves of some
  const slice = (from, to) => letters.slice(from, to).join("");
  let end = 0;
  match.words.forEach((word, number) => {
    parts.push(slice(end, word.start));
    const text = slice(word.start, word.end);
    end = word.end;
    if (!word.known) parts.push(make("span", { class: "unknown", title: "the model doesn't know this word" }, text));
    else if (word.colour === null) parts.push(text);
    else parts.push(wordButton(text, word.colour, number, into, where));
  });
  into.replaceChildren(...parts, slice(end));
}

function wordButton(text, colour, number, into, where) {
  const look = (number) => {
    where.classList.toggle("looking", number !== null);
    for (const box of where.querySelectorAll("g"))
      box.classList.toggle("on", number !== null && box.dataset.words.split(" ").includes(`${number}`));
  };
  const press = () => {
    const pressed = button.getAttribute("aria-pressed") === "true";
    for (const other of into.querySelectorAll(".word")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", `${!pressed}`);
    look(pressed ? null : number);
  };
  const button = make("button", { type: "button", class: `word k${colour}`, "aria-pressed": "false", click: press }, text);
  return button;
}

function drawRegions(box, match) {
  box.querySelector("svg")?.remove();
  if (!match.regions.length || box.classList.contains("missing")) return;
  const drawn = make("svg", { viewBox: `0 0 ${match.width} ${match.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const taken = new Map(); // of one region several words: each box inside the last
  for (const region of match.regions) {
    const key = region.box.join();
    const inset = (taken.get(key) ?? 0) * Math.max(match.width, match.height) * 0.012;
    taken.set(key, (taken.get(key) ?? 0) + 1);
    const [x1, y1, x2, y2] = region.box;
    const place = { x: x1 + inset, y: y1 + inset, width: Math.max(1, x2 - x1 - 2 * inset), height: Math.max(1, y2 - y1 - 2 * inset) };
    drawn.append(make("g", { class: `k${region.colour}`, "data-words": region.words.join(" ") },
      make("rect", { class: "halo", ...place }), make("rect", { class: "box", ...place })));
  }
  box.append(drawn);
}

function showCaptions(found, shown) {
  const items = found.hits.map((hit, place) => {
    const words = make("span");
    const match = byRegion(found.matches[place]);
    showWords(words, match, shown);
    const draw = () => {
      drawRegions(shown, match);
      shown.classList.remove("looking");
    };
    words.addEventListener("click", draw, { capture: true });
    return make("li", { pointerenter: draw, focusin: draw }, words, make("small", { title: "score" }, hit.score.toFixed(4)));
  });
  at("caption-list").replaceChildren(...items);
  at("captions").hidden = false;
  drawRegions(shown, byRegion(found.matches[0]));
}

// The same with one box and one colour for all words that match one region: of one picture that can be.
function byRegion(match) {
  const regions = new Map();
  for (const { box, words } of match.regions) {
    const key = box.join();
    const own = regions.get(key) ?? { box, colour: regions.size % COLOURS, words: [] };
    own.words.push(...words);
    regions.set(key, own);
  }
  const words = match.words.map((word) => ({ ...word, colour: null }));
  for (const region of regions.values()) for (const number of region.words) words[number].colour = region.colour;
  return { ...match, words, regions: [...regions.values()] };
}

function choose(files) {
  const file = [...files].find((one) => one.type.startsWith("image/"));
  if (!file) return refuse(new Error("That is no picture. Choose a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file."));
  query.value = "";
  search({ file });
}

function listen() {
  let wait = null;
  query.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(() => search(query.value), TYPING);
  });
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(wait);
    search(query.value);
  });
  at("index").addEventListener("change", () => {
    examples();
    search(state.asked?.id ? "" : state.asked ?? "");
  });
  at("more").addEventListener("click", () => {
    state.count = Math.min(state.limits.hits, state.count * 2);
    search(state.asked, { keep: true });
  });
  at("file").addEventListener("change", (event) => choose(event.target.files));
  at("choose").addEventListener("keydown", (event) => event.key === "Enter" && at("file").click());
  let inside = 0;
  addEventListener("dragenter", (event) => (event.preventDefault(), inside++, (at("drop").hidden = false)));
  addEventListener("dragleave", () => --inside || (at("drop").hidden = true));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    at("drop").hidden = true;
    choose(event.dataTransfer.files);
  });
}

function examples() {
  const buttons = facts().examples.map((text) =>
    make("button", { type: "button", click: () => ((query.value = text), search(text)) }, text));
  at("examples").replaceChildren(...(buttons.length ? ["Try: ", ...buttons] : []));
  at("choose").hidden = !facts().takes_pictures;
}

async function start() {
  running = new AbortController();
  state.health = await ask("/api/health", {});
  state.limits = state.health.limits;
  query.maxLength = state.limits.characters;
  at("index").replaceChildren(...state.health.indexes.map(({ name }) => make("option", { value: name }, name)));
  at("indexes").hidden = state.health.indexes.length < 2;
  const asked = new URLSearchParams(location.search);
  if (state.health.indexes.some(({ name }) => name === asked.get("index"))) at("index").value = asked.get("index");
  examples();
  listen();
  query.value = asked.get("q") ?? "";
  await search(asked.get("id") ? { id: asked.get("id") } : query.value);
}

start().catch(refuse);
