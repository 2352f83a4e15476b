// A browser's own EventSource, on a page of another origin, by tickets: the events of a turn, over a connection that breaks.
//
// usage: other-origin.mjs PAGE GATEWAY KEY TURN; prints "cut" when the connection is to break, and then the events as JSON.

import { chromium } from "playwright-core";

const [page, gateway, key, turn] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
const tab = await (await browser.newContext()).newPage();
await tab.exposeFunction("tell", (line) => console.log(line));
await tab.goto(page);
const seen = await tab.evaluate(async ({ gateway, key, turn }) => {
  const seen = [];
  const path = `/v1/turns/${turn}/events`;
  const ticket = async () => {
    const answer = await fetch(`${gateway}/v1/streams/tickets`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify({ path }),
    });
    return (await answer.json()).ticket;
  };
  const follow = (after, query) => new Promise((resolve) => {
    const source = new EventSource(`${gateway}${path}?${query}`);
    const names = ["connected", "text", "agent-error", "complete"];
    let last = after;
    for (const name of names) {
      source.addEventListener(name, (event) => {
        last = event.lastEventId;
        seen.push({ event: name, id: last, data: JSON.parse(event.data) });
        if (name === "text" && seen.filter((one) => one.event === "text").length === 1) window.tell("cut");
        if (name === "complete") { source.close(); resolve({ after: last, over: true }); }
      });
    }
    source.onerror = (event) => {
      if (event.data) return;
      seen.push({ event: "lost", state: source.readyState });
      source.close();
      resolve({ after: last, over: false });
    };
  });
  let at = { after: null, over: false };
  for (let n = 0; n < 100 && !at.over; n += 1) {
    try {
      const shown = await ticket();
      at = await follow(at.after, new URLSearchParams(at.after ? { ticket: shown, after: at.after } : { ticket: shown }));
    } catch { /* The gateway cannot be reached. */ }
    if (!at.over) await new Promise((resolve) => { setTimeout(resolve, 100); });
  }
  // A stream that is over is over: an EventSource that comes back is told so, and stops by itself.
  const ended = new URLSearchParams({ ticket: await ticket(), after: at.after });
  const source = new EventSource(`${gateway}${path}?${ended}`);
  await new Promise((resolve) => { source.onerror = resolve; });
  seen.push({ event: "stopped", state: source.readyState });
  // Its cookies are not sent, and the page at / is not its.
  const refused = await fetch(`${gateway}/session`, { credentials: "include" }).then(() => "answered", () => "refused");
  seen.push({ event: "session", refused });
  return seen;
}, { gateway, key, turn });
console.log(JSON.stringify(seen));
await browser.close();
