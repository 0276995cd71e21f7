"use strict";
// Everything that a server's answer holds enters the page as text, never as HTML.

const TYPING = 80; // ms without a key before a text is searched
const RESTING = 250; // ms without a key before its words' regions are asked for
const SLOW = 600; // ms after which the page says that it waits
const PAGE = 12; // hits at first
const COLOURS = 8; // of serve.css

const at = (id) => document.getElementById(id);
const query = at("query");
const state = { health: null, limits: null, count: PAGE, asked: null, typed: false };
const visit = crypto.getRandomValues(new Uint32Array(1))[0]; // files are those of one visit of the page
const files = []; // that were searched with: the address has no place for them
let running = null; // aborts what the page doesn't wait for any more
let waiting = null; // says that the page waits

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
  const { signal } = running;
  let answer, body;
  try {
    answer = await fetch(url, { ...options, signal });
    body = await answer.json();
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error("The server doesn't answer. Is `selfalign serve` still running?");
  }
  if (!answer.ok) throw new Error(`${sentence(`${whose(body.where)}: ${body.error}`)} ${sentence(body.fix)}`);
  return body;
}

const whose = (where) => (where === "the picture" && state.asked?.file ? state.asked.file.name : where);
// Names of indexes and files keep their case.
const sentence = (text) => `${text.replace(/^[a-z]+(?= )/, (word) => word[0].toUpperCase() + word.slice(1))}.`;
const index = () => at("index").value;
const facts = () => state.health.indexes.find((one) => one.name === index());

// What is asked: a text, {row, id} of an image of the index, or {file}.

async function search(asked, { keep = false } = {}) {
  if (!keep) state.count = PAGE;
  state.asked = asked;
  running?.abort();
  running = new AbortController();
  const mine = running;
  clearTimeout(waiting);
  document.body.classList.add("busy");
  waiting = setTimeout(() => (at("status").textContent = "Searching …"), SLOW);
  try {
    if (typeof asked === "string") await searchText(asked);
    else await searchPicture(asked);
  } catch (error) {
    if (error.name !== "AbortError" && mine === running) refuse(error);
  } finally {
    if (mine === running) answered();
  }
}

function answered() {
  clearTimeout(waiting);
  document.body.classList.remove("busy");
}

async function searchText(text) {
  if (!text.trim()) return welcome();
  if (!/[\p{L}\p{N}\p{S}]/u.test(text)) return welcome(`“${text.trim()}” has no word. Say what is to be seen.`);
  const found = await ask("/api/search", { index: index(), text, count: state.count });
  clear();
  showStatus(found);
  if (!found.hits.length) return;
  const most = facts().unit_scores ? "1 is the same" : "more is better";
  showHits(found, `How alike the text and the picture are: ${most}. Compare scores of one text only.`);
  await rest();
  const rows = found.hits.map((hit) => ["row", hit.row]);
  const { matches } = await ask("/api/regions", [["index", index()], ["text", text], ...rows]);
  showWords(at("words"), matches[0], at("hits"));
  at("words").hidden = false;
  const pictures = [...at("hits").querySelectorAll(".picture")];
  matches.forEach((match, place) => drawRegions(pictures[place], match));
}

async function searchPicture({ file, id }) {
  const sent = file ? { method: "POST", body: file } : {};
  if (file && file.size > state.limits.bytes)
    throw new Error(`The picture has ${file.size} bytes, more than ${state.limits.bytes}. Choose a smaller one.`);
  const common = { ...(file ? {} : { id }), index: index() };
  const captions = facts().captions ? await ask("/api/picture", { ...common, find: "captions", count: 10 }, sent) : null;
  // One that is asked with by its id is no answer: one more makes up for it.
  const count = Math.min(state.limits.hits, state.count + (file ? 0 : 1));
  const alike = await ask("/api/picture", { ...common, find: "alike", count }, sent);
  const others = file ? alike.hits : alike.hits.filter((hit) => hit.row !== alike.row).slice(0, state.count);
  const hits = others.map((hit, place) => ({ ...hit, rank: place + 1 }));
  clear();
  showStatus({ ...alike, hits });
  // Its address has the picture's hash: another picture may have this row in the next index.
  const own = alike.hits.find((hit) => hit.row === alike.row)?.picture;
  const newest = `/pictures/${encodeURIComponent(index())}/${alike.row}?v=${Date.now()}`;
  const source = file ? URL.createObjectURL(file) : own ?? newest;
  const shown = picture(source, id ?? file.name);
  at("asked").replaceChildren(shown);
  at("asked").hidden = false;
  if (captions?.hits.length) showCaptions(captions, shown);
  const beside = captions?.hits.length ? " Beside a caption: how alike the caption and the picture are." : "";
  showHits({ ...alike, hits }, `How alike two pictures are: 1 is the same.${beside}`);
  at("results-title").textContent = "Images like it";
  at("results-title").hidden = false;
}

// Puts what is asked into the address. A text that is being typed replaces what was typed before it.
function remember(asked, typing = false) {
  const { id, file } = typeof asked === "string" ? {} : asked;
  const parameters = { index: index(), q: typeof asked === "string" ? asked : "", id: file ? "" : id };
  const address = `?${new URLSearchParams(Object.entries(parameters).filter(([, value]) => value))}`;
  const entry = file ? { visit, file: files.push(file) - 1 } : null;
  const same = address === location.search && !file && !history.state;
  history[same || (typing && state.typed) ? "replaceState" : "pushState"](entry, "", address);
  state.typed = typing;
}

// Asks what the address says.
function recall() {
  document.querySelector("dialog[open]")?.close();
  const parameters = new URLSearchParams(location.search);
  const name = parameters.get("index");
  if (state.health.indexes.some((served) => served.name === name)) at("index").value = name;
  examples();
  query.value = parameters.get("q") ?? "";
  state.typed = false;
  const file = history.state?.visit === visit ? files[history.state.file] : undefined;
  const id = parameters.get("id");
  return search(file ? { file } : id ? { id } : query.value);
}

const rest = () => new Promise((done, failed) => {
  const wait = setTimeout(done, RESTING - TYPING);
  running.signal.addEventListener("abort", () => (clearTimeout(wait), failed(new DOMException("", "AbortError"))));
});

function clear() {
  answered();
  at("examples").hidden = true;
  for (const id of ["words", "error", "asked", "captions", "results-title", "more"]) at(id).hidden = true;
  at("hits").replaceChildren();
  at("caption-list").replaceChildren();
}

function welcome(message = "") {
  clear();
  at("legend").hidden = true;
  at("examples").hidden = false;
  const { images, captions, dataset, run } = facts();
  at("status").textContent = message ||
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
  const poor = found.fits ? "" : "Nothing here fits well: captions score as much with pictures that they don't describe. · ";
  at("status").textContent = `${poor}${found.hits.length} of ${found.searched} · ${Math.ceil(found.milliseconds)} ms${unknown}`;
}

function picture(source, name, click = null) {
  const box = click
    ? make("button", { type: "button", class: "picture", "aria-label": `Show ${name} large`, click })
    : make("div", { class: "picture" });
  const missing = () => (box.classList.add("missing"), (box.disabled = true), image.remove());
  const image = make("img", { src: source, alt: name, loading: "lazy", error: missing });
  box.append(image);
  return box;
}

function enlarge(hit, drawn) {
  const shown = picture(`${hit.picture}&side=1280`, `image ${hit.id}`);
  const image = shown.querySelector("img");
  image.addEventListener("load", () => shown.style.setProperty("--aspect", image.naturalWidth / image.naturalHeight));
  shown.append(...[...drawn.querySelectorAll("svg")].map((regions) => regions.cloneNode(true)));
  at("large-picture").replaceChildren(shown);
  at("large-caption").textContent = hit.caption;
  at("large-file").textContent = hit.file;
  at("copy").textContent = "Copy the path";
  at("large").showModal();
  at("close").focus();
}

async function copy() {
  getSelection().selectAllChildren(at("large-file"));
  const done = await navigator.clipboard?.writeText(at("large-file").textContent).then(() => true, () => false);
  at("copy").textContent = done ? "Copied" : "Press Ctrl+C";
}

function showHits(found, legend) {
  at("score-legend").textContent = legend;
  at("legend").hidden = false;
  at("unknown-legend").hidden = facts().knows_all_words;
  const hits = found.hits.map((hit) =>
    make("article", { class: "hit" },
      make("p", { class: "tag" }, make("b", {}, `${hit.rank}`), make("span", { title: "score" }, hit.score.toFixed(4)),
        make("span", { class: "id", title: hit.id }, hit.id)),
      picture(hit.picture, `image ${hit.id}`, (event) => enlarge(hit, event.currentTarget)),
      make("p", { class: "caption", title: hit.caption }, hit.caption),
      make("p", { class: "tools" },
        make("button", { type: "button", click: () => askWith(hit) }, "Search with it"))));
  at("hits").replaceChildren(...hits);
  at("more").hidden = found.hits.length < state.count || state.count >= state.limits.hits;
}

function askWith(hit) {
  query.value = "";
  scrollTo({ top: 0 });
  begin({ id: hit.id });
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
    else {
      // What stands behind a word stays on its line.
      const behind = slice(end, match.words[number + 1]?.start).match(/^[^\s\p{L}\p{N}]*/u)[0];
      end += [...behind].length;
      const button = wordButton(text, word.colour, number, into, where);
      parts.push(behind ? make("span", { class: "kept" }, button, behind) : button);
    }
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
  const drawn = make("svg", { viewBox: `0 0 ${match.width} ${match.height}`, preserveAspectRatio: "xMidYMid meet", "aria-hidden": "true" });
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
  begin({ file });
}

// Asks with an address of its own, to which the browser's Back comes back.
function begin(asked, typing = false) {
  remember(asked, typing);
  search(asked);
}

function listen() {
  let wait = null;
  query.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(() => begin(query.value, true), TYPING);
  });
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(wait);
    begin(query.value);
  });
  at("index").addEventListener("change", () => {
    examples();
    begin(state.asked?.id ? "" : state.asked ?? "");
  });
  addEventListener("popstate", () => (clearTimeout(wait), recall()));
  at("more").addEventListener("click", () => {
    state.count = Math.min(state.limits.hits, state.count * 2);
    search(state.asked, { keep: true });
  });
  at("file").addEventListener("change", (event) => choose(event.target.files));
  at("close").addEventListener("click", () => at("large").close());
  at("large").addEventListener("click", (event) => event.target === at("large") && at("large").close());
  at("copy").addEventListener("click", copy);
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
    make("button", { type: "button", click: () => ((query.value = text), begin(text)) }, text));
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
  if (!matchMedia("(pointer: coarse), (max-width: 520px)").matches) query.placeholder = "Describe a picture, or drop one here";
  listen();
  await recall();
}

start().catch(refuse);
