// Makes one call with OpenAI's library for Node, and tells what it made of the answer: a line of JSON for each event, and for the
// end. Usage: as tests/clients/openai_calls.py.
import OpenAI from "openai";

const [base, text] = process.argv.slice(2);
const call = JSON.parse(text);
const client = new OpenAI({ baseURL: base, apiKey: call.key ?? "none", maxRetries: call.retries ?? 0, timeout: 60_000 });
const tell = (line) => process.stdout.write(JSON.stringify(line) + "\n");

let target = client;
const path = call.call.split(".");
// In this language the library's names are in camel case.
for (const name of path.slice(0, -1)) target = target[name.replace(/_(.)/g, (_, letter) => letter.toUpperCase())];
const positional = [...(call.on ?? [])];
if (call.args && Object.keys(call.args).length > 0) positional.push(call.args);
try {
  const answer = target[path.at(-1)](...positional);
  if (call.call === "responses.stream") {
    for await (const event of answer) tell({ event });
    const final = await answer.finalResponse();
    tell({ result: final, text: final.output_text });
  } else {
    const value = await answer;
    if (call.args?.stream) {
      for await (const event of value) tell({ event });
    } else {
      tell({ result: value ?? null, text: value?.output_text });
    }
  }
  tell({ end: "clean" });
} catch (error) {
  tell({ end: error.constructor.name, status: error.status, code: error.code, message: error.message, type: error.type });
}
