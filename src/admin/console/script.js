// Live updates: when the state of the fleet changes, the page is asked for again, and what differs is changed. Every
// page works without this script.
"use strict";

(() => {
  // The events, and the tries since the last one that was answered.
  let source = null;
  let tries = 0;
  let again = 0;
  // The next update, and whether one is under way: a second one waits for it, so that no older answer comes last.
  let timer = 0;
  let isAsking = false;
  let isWanted = false;

  const main = () => document.getElementById("main");
  const isLive = () => main() !== null && main().dataset.revision !== undefined;

  const say = (text) => {
    const place = document.getElementById("live");
    if (place !== null && place.textContent !== ` · ${text}`) place.textContent = ` · ${text}`;
  };

  // Parts of lists are told apart by what they link to, and others by their names.
  const nameOf = (node) => {
    if (node.nodeType !== Node.ELEMENT_NODE) return node.nodeName;
    const own = node.id || node.getAttribute("aria-labelledby") || node.getAttribute("aria-label");
    const link = node.matches("tr, li, a") ? (node.matches("a") ? node : node.querySelector("a[href]")) : null;
    return `${node.nodeName} ${own || link?.getAttribute("href") || ""}`;
  };

  // Changes what differs and leaves the rest: focus, selection, scrolling, and what somebody types.
  const change = (ours, theirs) => {
    if (ours.isEqualNode(theirs)) return;
    if (ours.nodeType !== Node.ELEMENT_NODE) {
      ours.textContent = theirs.textContent;
      return;
    }
    for (const name of ours.getAttributeNames()) {
      if (name !== "open" && !theirs.hasAttribute(name)) ours.removeAttribute(name);
    }
    for (const name of theirs.getAttributeNames()) {
      const value = theirs.getAttribute(name);
      if (ours.getAttribute(name) !== value) ours.setAttribute(name, value);
    }
    const left = new Map();
    for (const node of ours.childNodes) left.set(nameOf(node), [...(left.get(nameOf(node)) ?? []), node]);
    const pairs = [...theirs.childNodes].map((node) => [left.get(nameOf(node))?.shift(), node]);
    for (const nodes of left.values()) nodes.forEach((node) => node.remove());
    let place = ours.firstChild;
    for (const [own, next] of pairs) {
      const node = own ?? document.adoptNode(next);
      if (own !== undefined) change(own, next);
      if (node === place) place = place.nextSibling;
      else ours.insertBefore(node, place);
    }
  };

  const show = (text) => {
    const next = new DOMParser().parseFromString(text, "text/html");
    const [ours, theirs] = [main(), next.getElementById("main")];
    if (ours === null || theirs === null) return;
    const had = ours.contains(document.activeElement);
    if (theirs.dataset.revision === undefined) theirs.dataset.revision = ours.dataset.revision;
    change(ours, theirs);
    // What had the focus is gone: the keyboard goes on from here.
    if (had && !ours.contains(document.activeElement)) ours.focus({ preventScroll: true });
    say("live");
  };

  const ask = async () => {
    let answer;
    let text;
    try {
      answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
      if (answer.type === "opaqueredirect") return location.reload();
      text = await answer.text();
    } catch {
      return say("not connected");
    }
    if (answer.status < 500) return show(text);
    // What is shown stays, with the time at which it was read.
    const title = new DOMParser().parseFromString(text, "text/html").querySelector("main h1");
    say(title === null ? "not connected" : title.textContent);
    later(3000);
  };

  const refresh = async () => {
    isWanted = isAsking;
    if (isAsking) return;
    isAsking = true;
    try {
      await ask();
    } finally {
      isAsking = false;
    }
    if (isWanted) later(50);
  };

  const later = (time) => {
    clearTimeout(timer);
    timer = setTimeout(refresh, time);
  };

  const connect = () => {
    if (source !== null || document.hidden || !isLive()) return;
    source = new EventSource("/console/events");
    source.onopen = () => {
      tries = 0;
      say("live");
    };
    source.onmessage = (event) => {
      if (main().dataset.revision !== event.data) later(50);
    };
    source.onerror = () => {
      say("not connected");
      // Any other answer than 200 ends it: that of a proxy, of a worker that ends, or of a session that is over.
      if (source.readyState === EventSource.CLOSED) connectLater();
    };
  };

  const disconnect = () => {
    clearTimeout(again);
    if (source !== null) source.close();
    source = null;
  };

  // After 2 s at first and 30 s at last. The page is asked for as well: it leads to the page to log in.
  const connectLater = () => {
    disconnect();
    const time = Math.min(2000 * 2 ** tries, 30000) * (0.75 + Math.random() / 2);
    tries += 1;
    again = setTimeout(() => {
      later(0);
      connect();
    }, time);
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) {
      for (const button of document.querySelectorAll("form button")) button.disabled = false;
    }
    connect();
  });
  // A second click asks for nothing twice.
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post") return;
    setTimeout(() => event.target.querySelectorAll("button").forEach((button) => { button.disabled = true; }));
  });
  // A worker that waits for Redis is asked again for a page; never for an action, which may have been carried out.
  const isAction = location.pathname.startsWith("/console/do/");
  if (document.querySelector("[data-waits]") !== null && !isAction) {
    setTimeout(() => location.replace(location.href), 3000);
  }
  connect();
})();
