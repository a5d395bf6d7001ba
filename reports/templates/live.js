"use strict";
// Fetches this page every few seconds, and puts its state in place of the old one where it changed. Without it the page reloads.
(() => {
  const EVERY = 5000;
  const box = document.getElementById("updating");
  const said = document.getElementById("said");
  let held = document.getElementById("state").innerHTML;
  box.closest("label").hidden = false;

  function replace(fresh) {
    const state = document.getElementById("state");
    const text = fresh.getElementById("state").innerHTML;
    if (text === held) return;
    held = text;
    const open = new Set([...state.querySelectorAll("details[open]")].map((one) => one.id));
    const focused = state.contains(document.activeElement) ? document.activeElement.closest("[id]").id : "";
    const headline = document.getElementById("headline").textContent;
    state.innerHTML = text;
    for (const one of state.querySelectorAll("details")) one.open = open.has(one.id);
    if (focused && document.getElementById(focused)) {
      const there = document.getElementById(focused);
      (there.matches("details") ? there.querySelector("summary") : there).focus();
    }
    const now = document.getElementById("headline").textContent;
    if (now !== headline) said.textContent = now;
  }

  async function update() {
    const asof = document.getElementById("asof");
    if (box.checked && !document.hidden) {
      try {
        const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(20000) });
        if (!answer.ok) throw new Error(String(answer.status));
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        replace(fresh);
        asof.textContent = fresh.getElementById("asof").textContent;
        document.title = fresh.title;
        delete asof.dataset.stale;
      } catch {
        if (!asof.dataset.stale) asof.textContent += " The monitor does not answer now; this may be out of date.";
        asof.dataset.stale = "yes";
      }
    }
    setTimeout(update, EVERY);
  }
  setTimeout(update, EVERY);
})();
