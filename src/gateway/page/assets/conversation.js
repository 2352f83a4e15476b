// What a tab knows of one conversation: its turns, from history and from the stream. Nothing here waits for anything but calls
// of the API; who reads the stream, this tab or another, is decided in stream.js.

import { backoff, call, identifier, path, pause } from "./api.js";
import { SharedStream } from "./stream.js";

/** Turns that one reading of the history asks for. */
const PAGE = 30;
/** For how long a message is sent again while it is not known to be armed, in milliseconds. */
const PATIENCE = 60_000;

const isOver = (phase) => phase === "Succeeded" || phase === "Failed";

/** A turn of which nothing is known but its id. */
const unknown = (id) => ({ id, message: null, phase: "Armed", text: "", tools: [], progress: null, error: null });

/** The tools of a record, or of a stream, as calls with their results. */
function addTool(tools, frame) {
  if (frame.type === "tool-call") {
    return [...tools, { id: frame.id, name: frame.name, arguments: frame.arguments }];
  }
  const known = tools.some((tool) => tool.id === frame.id && !("result" in tool));
  if (!known) return [...tools, { id: frame.id, name: "result", result: frame.result }];
  return tools.map((tool) => (tool.id === frame.id && !("result" in tool) ? { ...tool, result: frame.result } : tool));
}

/** A turn as its record tells it. */
function ofRecord(record) {
  const shared = record.reply && record.reply.turnIds.length > 1 ? record.reply.turnIds : null;
  return {
    id: record.turnId, messageId: record.messageId, number: record.number, message: record.message, agent: record.agent,
    user: record.user, phase: record.phase, armedAt: record.armedAt, endedAt: record.endedAt,
    text: record.reply?.text ?? record.partial ?? "", tools: (record.tools ?? []).reduce(addTool, []),
    textGone: record.reply != null && record.reply.text == null, toolsTruncated: record.toolsTruncated, progress: null, error: record.error, finishReason: record.finishReason,
    // One reply to several turns is shown with the last of them.
    answeredWith: shared && shared.at(-1) !== record.turnId ? shared.at(-1) : null,
  };
}

export class Conversation {
  /** `name` is what the gateway is asked by: an id, or for a new conversation the name that it is to have. */
  constructor(name, { isNew = false, agent = null, whoami }) {
    this.name = name;
    this.isNew = isNew;
    this.whoami = whoami;
    this.state = { id: isNew ? null : name, agent, owner: isNew ? whoami.user : null, turns: [], older: null, cursor: null };
    this.loading = !isNew;
    this.problem = null;
    this.link = "idle";
    this.listeners = new Set();
    this.closed = new AbortController();
  }

  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  changed() {
    this.listeners.forEach((listener) => listener());
  }

  get running() {
    return this.state.turns.filter((turn) => !isOver(turn.phase) && turn.phase !== "Unsent");
  }

  get isOwn() {
    return this.state.owner == null || this.state.owner === this.whoami.user;
  }

  /** Loads the newest history, and follows the conversation from then on. */
  async open() {
    if (this.isNew) return;
    await this.load();
    if (!this.problem) this.follow();
  }

  close() {
    this.closed.abort();
    this.stream?.close();
  }

  follow() {
    if (this.stream || this.closed.signal.aborted) return;
    this.stream = new SharedStream(this);
    this.stream.run();
  }

  async load() {
    for (let tries = 0; !this.closed.signal.aborted; tries += 1) {
      try {
        await this.refresh();
        this.problem = null;
        break;
      } catch (problem) {
        this.problem = problem;
        this.changed();
        if (!problem.passes) break;
        await pause(backoff(tries), this.closed.signal);
      }
    }
    this.loading = false;
    this.changed();
  }

  /** Reads the newest history, and takes from it what is not known here yet. */
  async refresh() {
    const page = await call("GET", path(["v1", "conversations", this.name, "turns"], { limit: PAGE }));
    const first = this.state.turns.length === 0;
    page.turns.forEach((record) => this.take(record));
    if (first) this.state.older = page.next;
    this.changed();
  }

  async loadOlder() {
    const query = { limit: PAGE, before: this.state.older };
    const page = await call("GET", path(["v1", "conversations", this.name, "turns"], query));
    page.turns.forEach((record) => this.take(record));
    this.state.older = page.next;
    this.changed();
  }

  /** Takes a turn's record. What the stream has told of a turn that is under way stays. */
  take(record) {
    const told = ofRecord(record);
    const known = this.find(told.id);
    this.state.agent ??= told.agent;
    this.state.owner ??= told.user;
    if (!known || isOver(told.phase)) this.put(told);
    else this.put({ ...told, ...live(known) });
  }

  find(id) {
    return this.state.turns.find((turn) => turn.id === id);
  }

  put(turn) {
    const others = this.state.turns.filter((other) => other.id !== turn.id && (!turn.messageId || other.messageId !== turn.messageId));
    const place = (one) => one.number ?? Infinity;
    this.state.turns = [...others, turn].sort((a, b) => place(a) - place(b));
  }

  change(id, change) {
    const turn = this.find(id);
    if (!turn) {
      // Somebody else sent it: another device of this user's.
      this.put({ ...unknown(id), ...change(unknown(id)) });
      this.fetch(id);
    } else if (!isOver(turn.phase)) {
      this.put({ ...turn, ...change(turn) });
    }
  }

  async fetch(id) {
    try {
      this.take(await call("GET", path(["v1", "turns", id]), { signal: this.closed.signal }));
      this.changed();
    } catch { /* The stream tells the turn's end all the same. */ }
  }

  /** Takes a frame of the stream. Only `complete` ends a turn. */
  apply({ event, id, data }) {
    if (id) this.state.cursor = id;
    switch (event) {
      case "text":
        this.change(data.turnId, (turn) => ({ phase: "Running", text: turn.text + data.text }));
        break;
      case "tool-call":
      case "tool-result":
        this.change(data.turnId, (turn) => ({ phase: "Running", tools: addTool(turn.tools, { ...data, type: event }) }));
        break;
      case "progress":
        this.change(data.turnId, () => ({ phase: "Running", progress: data.message }));
        break;
      case "agent-error":
        this.change(data.turnId, () => ({ error: { reason: data.reason, message: data.message, retryable: data.retryable } }));
        break;
      case "complete":
        this.complete(data);
        break;
    }
    this.changed();
  }

  complete(data) {
    const phase = data.outcome === "reply" ? "Succeeded" : "Failed";
    for (const id of data.turnIds) {
      const with_ = id === data.turnId ? null : data.turnId;
      this.change(id, () => ({ phase, progress: null, finishReason: data.finishReason, answeredWith: with_ }));
    }
    // An operator is told more than the stream tells.
    if (phase === "Failed" && this.whoami.operator) this.fetch(data.turnId);
    this.onEnd?.(this.find(data.turnId));
  }

  /** What the stream is to tell again from the beginning: a stream without a cursor begins at the oldest open turn. */
  forgetRunning() {
    this.state.cursor = null;
    this.state.turns = this.state.turns.map((turn) =>
      isOver(turn.phase) || turn.phase === "Unsent" ? turn : { ...turn, text: "", tools: [], progress: null, error: null });
  }

  /** Sends a message, again and again under one id while it is not known to be armed. */
  async send(message, messageId = identifier()) {
    const agent = this.state.agent;
    const pending = { ...unknown(`sending ${messageId}`), messageId, message, agent, phase: "Sending" };
    this.put(pending);
    this.changed();
    const until = Date.now() + PATIENCE;
    for (let tries = 0; ; tries += 1) {
      try {
        const target = path(["v1", "conversations", this.name, "turns"]);
        const armed = await call("POST", target, { body: { agent, message, messageId }, signal: this.closed.signal });
        return this.armed({ ...pending, id: armed.turnId, phase: "Armed" }, armed);
      } catch (problem) {
        if (this.closed.signal.aborted) return null;
        if (!problem.passes || Date.now() > until) {
          this.put({ ...pending, phase: "Unsent", error: { message: problem.message, reason: problem.reason, retryable: problem.passes } });
          this.changed();
          return null;
        }
        await pause(problem.retryAfter ? problem.retryAfter * 1000 : backoff(tries), this.closed.signal);
      }
    }
  }

  /** Takes the answer to a submit. The stream may have told of the turn before. */
  armed(turn, answer) {
    this.takeArmed(turn);
    this.state.id = answer.conversationId;
    this.name = answer.conversationId;
    if (this.isNew) this.state.cursor = answer.cursor;
    this.isNew = false;
    this.follow();
    this.stream.tell({ type: "armed", turn });
    this.changed();
    return answer.conversationId;
  }

  takeArmed(turn) {
    const known = this.find(turn.id);
    this.put(known ? { ...turn, ...live(known), phase: known.phase } : turn);
    if (this.find(turn.id).number == null) this.fetch(turn.id);
  }

  async stop(id) {
    this.take(await call("POST", path(["v1", "turns", id, "cancel"])));
    this.changed();
  }

  /** Takes another tab's state, which is further than this one's. */
  restore(state) {
    const unsent = this.state.turns.filter((turn) => turn.phase === "Unsent" || turn.phase === "Sending");
    this.state = { ...state, turns: state.turns.filter((turn) => turn.phase !== "Unsent" && turn.phase !== "Sending") };
    unsent.forEach((turn) => this.state.turns.some((other) => other.messageId === turn.messageId) || this.put(turn));
    this.loading = false;
    this.changed();
  }
}

/** What the stream alone tells of a turn that is under way. */
function live({ text, tools, progress, error, phase, finishReason }) {
  return { text, tools, progress, error, finishReason, ...(phase === "Running" || isOver(phase) ? { phase } : {}) };
}
