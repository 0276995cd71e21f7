for (const example of document.querySelectorAll(".example")) {
  let held = null;
  const show = (number) => {
    example.classList.toggle("looking", number !== null);
    for (const box of example.querySelectorAll("[data-words]"))
      box.classList.toggle("on", number !== null && box.dataset.words.split(" ").includes(number));
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
