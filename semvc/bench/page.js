"use strict";
// Tables: a click on a heading sorts by it, another one turns the order around.
for (const head of document.querySelectorAll("thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const table = head.closest("table");
    const body = table.tBodies[0];
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[column];
      if (!head.classList.contains("n")) return cell.textContent.toLowerCase();
      return "v" in cell.dataset ? Number(cell.dataset.v) : null;
    };
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null); // nothing measured: last
      const order = x < y ? -1 : x > y ? 1 : 0;
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}

// Before and after: two of the stills, one over the other, cut where the slider stands.
for (const box of document.querySelectorAll(".compare")) {
  const stills = [...box.closest(".clip").querySelectorAll(".stills img")];
  const [left, right] = box.querySelectorAll("select");
  const [under, over] = box.querySelectorAll("img");
  const [leftName, rightName] = box.querySelectorAll(".stage span");
  const stage = box.querySelector(".stage");
  const slider = box.querySelector("input[type=range]");
  const show = () => {
    over.src = stills[left.value].src;
    under.src = stills[right.value].src;
    over.alt = stills[left.value].alt;
    under.alt = stills[right.value].alt;
    leftName.textContent = left.selectedOptions[0].textContent;
    rightName.textContent = right.selectedOptions[0].textContent;
  };
  const cut = () => stage.style.setProperty("--cut", slider.value + "%");
  const follow = (event) => {
    const place = stage.getBoundingClientRect();
    slider.value = (100 * (event.clientX - place.left)) / place.width;
    cut();
  };
  left.addEventListener("change", show);
  right.addEventListener("change", show);
  slider.addEventListener("input", cut);
  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.buttons) follow(event);
  });
  box.querySelector("input[type=checkbox]").addEventListener("change", (event) => {
    box.querySelector(".view").classList.toggle("real", event.target.checked);
  });
  box.hidden = false;
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    show();
    cut();
  }, { rootMargin: "600px" });
  seen.observe(box);
}

// Loops: some browsers play no data URI, but all play the same bytes as a blob.
for (const video of document.querySelectorAll("video")) {
  video.addEventListener("error", () => {
    const [kind, data] = video.src.slice(5).split(";base64,");
    if (!data) return;
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    video.src = URL.createObjectURL(new Blob([bytes], { type: kind }));
  }, { once: true });
}
