// Reads Server-Sent Events from a response's body. Frames are those of docs/api.md: `event`, `id` and one line of JSON.

/** A stream that says nothing for this long is lost, in milliseconds: the gateway sends a comment every 15 s. */
const SILENCE = 45_000;

/** Yields `{event, id, data}` until the body ends, which says nothing about any turn. Throws when it breaks or falls silent. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await within(reader.read());
      if (done) return;
      text += value;
      for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
        const event = parse(text.slice(0, end));
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function within(read) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("the stream fell silent")), SILENCE);
  });
  return Promise.race([read, silence]).finally(() => clearTimeout(timer));
}

function parse(block) {
  const fields = {};
  for (const line of block.split("\n")) {
    const [, name, value] = line.match(/^(event|id|data): (.*)$/) ?? [];
    if (name) fields[name] = value;
  }
  return fields.event && fields.data ? { ...fields, data: JSON.parse(fields.data) } : null;
}
