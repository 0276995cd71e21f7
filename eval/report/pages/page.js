for (const example of document.querySelectorAll(".example")) {
  let held = null;
  const show = (number) => {
    example.classList.toggle("looking", number !== null);
    for (const box of example.querySelectorAll("[data-words]")) {
      const place = number === null ? -1 : box.dataset.words.split(" ").indexOf(number);
      if (box.dataset.styles) {
        box.dataset.alone ??= box.getAttribute("class");
        box.setAttribute("class", place < 0 ? box.dataset.alone : box.dataset.styles.split(",")[place]);
      }
      box.classList.toggle("on", place >= 0);
    }
    for (const word of example.querySelectorAll(".word"))
      word.setAttribute("aria-pressed", word.dataset.word === number);
  };
  for (const word of example.querySelectorAll(".word")) {
    const number = word.dataset.word;
    word.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show(number));
    word.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(held));
    word.addEventListener("click", () => show((held = held === number ? null : number)));
  }
}

for (const button of document.querySelectorAll("[data-show]"))
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("[data-show]"))
      other.setAttribute("aria-pressed", other === button);
    for (const example of document.querySelectorAll(".example"))
      example.hidden = button.dataset.show !== "all" && !example.classList.contains(button.dataset.show);
  });

const links = new Map([...document.querySelectorAll(".parts a")].map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const watch = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    const current = [...links.keys()].find((id) => seen.has(id));
    for (const [id, link] of links)
      if (id === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
  },
  { rootMargin: "-25% 0px -60% 0px" },
);
for (const id of links.keys()) watch.observe(document.getElementById(id));
