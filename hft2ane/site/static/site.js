// Search, filters and sorting over the table that is there already, and copy buttons. Without this, all can be read.
"use strict";

const form = document.querySelector("#filters");
if (form) filter(form);
document.querySelectorAll("figure.code").forEach(copying);

function filter(form) {
  const body = document.querySelector("#models tbody");
  const rows = Array.from(body.rows, (row) => {
    const [, task, family, , , , license] = Array.from(row.cells, (cell) => cell.textContent.trim());
    const offers = row.dataset.v.split(";").map((offer) => offer.split(",").map(Number));
    return { row, task, family, license, offers, text: row.textContent.toLowerCase(), shown: true };
  });
  const count = document.querySelector("#count");
  const none = document.querySelector("#none");
  const named = Array.from(form.elements).filter((control) => control.name);

  function apply() {
    const wanted = Object.fromEntries(named.map((control) => [control.name, control.value.trim()]));
    const words = wanted.q.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const each of rows) {
      // One variant has to satisfy everything that is asked of variants.
      const offered = each.offers.some(([size, psnr, os]) =>
        (!wanted.size || size <= Number(wanted.size)) &&
        (!wanted.psnr || psnr >= Number(wanted.psnr)) &&
        (!wanted.os || os <= Number(wanted.os)));
      const fits = offered && words.every((word) => each.text.includes(word)) &&
        ["task", "family", "license"].every((key) => !wanted[key] || each[key] === wanted[key]);
      each.row.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown === rows.length ? `All ${shown} models` : `${shown} of ${rows.length} models`;
    none.hidden = shown > 0;
    return wanted;
  }

  function remember() {
    const asked = new URLSearchParams(Object.entries(apply()).filter(([, value]) => value));
    history.replaceState(null, "", asked.size ? `?${asked}` : location.pathname);
  }

  function recall() {
    const asked = new URLSearchParams(location.search);
    for (const control of named) {
      control.value = asked.get(control.name) ?? "";
      if (control.selectedIndex === -1) control.value = ""; // what nothing here has
    }
    apply();
  }

  for (const event of ["input", "change"]) form.addEventListener(event, remember);
  form.addEventListener("reset", () => setTimeout(remember));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("pageshow", recall);
  addEventListener("popstate", recall);
  form.hidden = false;
  recall();
  sorting(body);
}

function sorting(body) {
  const number = (index) => (row) => row.dataset.v.split(";").map((offer) => Number(offer.split(",")[index]));
  const keys = {
    0: [(row) => row.cells[0].textContent.toLowerCase(), 1],
    3: [(row) => Math.min(...number(0)(row)), 1],
    4: [(row) => Math.max(...number(1)(row)), -1],
  };
  const heads = document.querySelectorAll("#models thead th");
  for (const [column, [key, first]] of Object.entries(keys)) {
    const head = heads[column];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = { ascending: 1, descending: -1 }[head.getAttribute("aria-sort")];
      const way = now ? -now : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const keyed = Array.from(body.rows, (row) => [key(row), row]);
      keyed.sort(([a], [b]) => (a < b ? -way : a > b ? way : 0));
      body.append(...keyed.map(([, row]) => row));
    });
  }
}

function copying(figure) {
  const code = figure.querySelector("code");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${figure.querySelector("figcaption").textContent.trim()}`);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // no permission, or no secure connection
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  figure.querySelector("figcaption").append(button);
}
