// Small parts that several views share.

import { h } from "./vendor/preact.js";
import { useEffect, useReducer } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);

const PATHS = {
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  tool: "M14.7 6.3a4 4 0 0 0-5.2 5.2L4 17v3h3l5.5-5.5a4 4 0 0 0 5.2-5.2L15 12l-3-3z",
  chat: "M4 5h16v11H9l-5 4z",
  list: "M9 6h11M9 12h11M9 18h11M4 6h.01M4 12h.01M4 18h.01",
  leave: "M10 5H5v14h5M14 8l4 4-4 4M18 12H9",
  back: "M15 5l-7 7 7 7",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  alert: "M12 4L2.8 20h18.4zM12 10v4M12 17h.01",
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;
}

/** A phase as a word and a colour. */
export function State({ phase, reason }) {
  const words = { Armed: "Waiting", Running: "Answering", Succeeded: "Replied", Failed: reason === "Cancelled" ? "Stopped" : "Failed" };
  const tone = phase === "Failed" && reason === "Cancelled" ? "Stopped" : phase;
  return html`<span class=${`state ${tone.toLowerCase()}`}>${words[phase] ?? phase}</span>`;
}

/** A reason in words: `OutOfMemory` is "out of memory". */
export function inWords(reason) {
  const words = (reason ?? "").replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  return words && words[0].toUpperCase() + words.slice(1);
}

/** A time span in milliseconds, short. */
export function span(milliseconds) {
  const seconds = Math.max(0, milliseconds) / 1000;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

/** A moment as people write it: the time, and the day unless it is today's. */
export function moment(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}

/** Draws a component anew whenever this source says that it changed. */
export function useChanges(source) {
  const [, redraw] = useReducer((n) => n + 1, 0);
  useEffect(() => source.subscribe(redraw), [source]);
}

/** Calls a function now and every so many milliseconds while somebody looks at the page. */
export function usePolling(work, every, inputs) {
  useEffect(() => {
    let timer;
    let ended = false;
    const turn = async () => {
      clearTimeout(timer);
      if (document.visibilityState === "visible") await work(() => ended);
      if (!ended) timer = setTimeout(turn, every);
    };
    const look = () => document.visibilityState === "visible" && turn();
    document.addEventListener("visibilitychange", look);
    turn();
    return () => { ended = true; clearTimeout(timer); document.removeEventListener("visibilitychange", look); };
  }, inputs);
}

/** Text for those who hear the page: said once, politely. */
export function announce(text) {
  const place = document.getElementById("announcer");
  if (place) place.textContent = text;
}
