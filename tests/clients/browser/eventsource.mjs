// Shows a turn's stream as npm's `eventsource` sees it: a line of JSON for each event and for each end of a connection, until the
// source stops by itself.
//
// usage: eventsource.mjs URL [KEY]

import { EventSource } from "eventsource";

const [url, key] = process.argv.slice(2);
const print = (line) => console.log(JSON.stringify(line));
const names = ["connected", "text", "tool-call", "tool-result", "progress", "data", "agent-error", "complete"];

const source = new EventSource(url, {
  fetch: async (input, init) => {
    const headers = key ? { ...init.headers, authorization: `Bearer ${key}` } : init.headers;
    const answer = await fetch(input, { ...init, headers });
    print({ status: answer.status, lastEventId: init.headers["Last-Event-ID"] ?? null });
    return answer;
  },
});
for (const name of names) {
  source.addEventListener(name, (event) => print({ event: name, id: event.lastEventId, data: JSON.parse(event.data) }));
}
source.addEventListener("error", (event) => {
  if (event.data) return print({ event: "error", id: event.lastEventId, data: JSON.parse(event.data) });
  print({ closed: source.readyState === EventSource.CLOSED });
});
