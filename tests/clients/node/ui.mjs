// A chat as `useChat` of the Vercel AI SDK runs it, without a page: a line of JSON for each part of the stream, then one for how
// the chat ended.
//
// usage: ui.mjs send URL CHAT MESSAGE_ID TEXT [KEY] | ui.mjs resume URL CHAT [KEY]

import { AbstractChat, DefaultChatTransport } from "ai";

const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const [what, api, id, ...rest] = process.argv.slice(2);
const [messageId, text, key] = what === "send" ? rest : [null, null, ...rest];

/** What a page keeps of a chat. */
class State {
  messages = [];
  status = "ready";
  error = undefined;
  pushMessage = (message) => void this.messages.push(message);
  popMessage = () => void this.messages.pop();
  replaceMessage = (index, message) => void (this.messages[index] = message);
  snapshot = (value) => structuredClone(value);
}

class Chat extends AbstractChat {
  constructor(init) {
    super({ ...init, state: new State() });
  }
}

/** The library's own transport, which tells what passes. */
class Told extends DefaultChatTransport {
  processResponseStream(stream) {
    const telling = new TransformStream({
      transform(part, onward) {
        tell({ part });
        onward.enqueue(part);
      },
    });
    return super.processResponseStream(stream).pipeThrough(telling);
  }
}

let finish = null;
const chat = new Chat({
  id,
  transport: new Told({ api, headers: key ? { authorization: `Bearer ${key}` } : {} }),
  onFinish: ({ isAbort, isDisconnect, isError, finishReason }) => {
    finish = { isAbort, isDisconnect, isError, finishReason };
  },
});
if (what === "send") {
  await chat.sendMessage({ id: messageId, parts: [{ type: "text", text }] });
} else {
  await chat.resumeStream();
}
tell({ end: chat.status, error: chat.error ? String(chat.error) : null, finish, messages: chat.messages });
