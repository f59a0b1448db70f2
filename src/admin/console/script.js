// Live updates: when the state of the fleet changes, the page is asked for again and its content replaced. Every page
// works without this script.
"use strict";

(() => {
  let source = null;
  let timer = 0;

  const main = () => document.getElementById("main");
  const isLive = () => main() !== null && main().dataset.revision !== undefined;

  const say = (text) => {
    const place = document.getElementById("live");
    if (place !== null) place.textContent = text;
  };

  // What somebody types in stays as it is.
  const isBusy = () => {
    const active = document.activeElement;
    return active !== null && active.matches("main input, main select, main textarea");
  };

  const refresh = async () => {
    if (isBusy()) return later(2000);
    let text;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
      if (answer.type === "opaqueredirect") return location.reload();
      text = await answer.text();
    } catch {
      say(" · not connected");
      return;
    }
    const next = new DOMParser().parseFromString(text, "text/html");
    const [ours, theirs] = [main(), next.getElementById("main")];
    if (ours === null || theirs === null || isBusy()) return;
    const open = [...ours.querySelectorAll("details[open][id]")].map((details) => details.id);
    const focused = document.activeElement === null ? "" : document.activeElement.id;
    const scrolled = [...ours.querySelectorAll(".scroll")].map((part) => part.scrollLeft);
    ours.replaceChildren(...theirs.childNodes);
    for (const [name, value] of Object.entries(theirs.dataset)) ours.dataset[name] = value;
    for (const id of open) {
      const details = document.getElementById(id);
      if (details !== null) details.open = true;
    }
    [...ours.querySelectorAll(".scroll")].forEach((part, n) => { part.scrollLeft = scrolled[n] ?? 0; });
    if (focused !== "" && document.activeElement === document.body) {
      const element = document.getElementById(focused);
      if (element !== null) element.focus({ preventScroll: true });
    }
    say(" · live");
  };

  const later = (time) => {
    clearTimeout(timer);
    timer = setTimeout(refresh, time);
  };

  const connect = () => {
    if (source !== null || document.hidden || !isLive()) return;
    source = new EventSource("/console/events");
    source.onopen = () => say(" · live");
    source.onmessage = (event) => {
      if (main().dataset.revision !== event.data) later(50);
    };
    source.onerror = () => say(" · not connected");
  };

  const disconnect = () => {
    if (source !== null) source.close();
    source = null;
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", connect);
  // A worker that waits for Redis is asked again for a page; never for an action, which may have been carried out.
  const isAction = location.pathname.startsWith("/console/do/");
  if (document.querySelector("[data-waits]") !== null && !isAction) {
    setTimeout(() => location.replace(location.href), 3000);
  }
  connect();
})();
