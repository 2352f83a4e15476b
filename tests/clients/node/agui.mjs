// Runs an AG-UI agent as `@ag-ui/client` does, with its verifier: a line of JSON for each event as its observers see it, then one
// for how the run ended.
//
// usage: agui.mjs URL THREAD RUN MESSAGE [KEY]

import { HttpAgent } from "@ag-ui/client";

const [url, threadId, runId, message, key] = process.argv.slice(2);
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
// A connection that breaks leaves a rejection behind that nobody handles: the library's, which is no end of the process.
process.on("unhandledRejection", (error) => tell({ unhandled: String(error) }));

const headers = key ? { authorization: `Bearer ${key}` } : {};
const agent = new HttpAgent({ url, threadId, headers });
agent.setMessages([{ id: "m-1", role: "user", content: message }]);
const seen = { event: 0, finished: 0, error: 0 };
const observer = {
  onEvent: ({ event }) => {
    seen.event += 1;
    tell({ event });
  },
  onRunFinishedEvent: () => void (seen.finished += 1),
  onRunErrorEvent: () => void (seen.error += 1),
};
let end;
try {
  await agent.runAgent({ runId }, observer);
  end = "resolved";
} catch (error) {
  end = "rejected";
  tell({ rejected: String(error), status: error.status ?? null, payload: error.payload ?? null });
}
const { finished, error } = seen;
tell({ end, finished, error, messages: agent.messages });
