// One stream for all tabs that show a conversation. A browser opens six connections to a host over HTTP/1.1, and a stream takes
// one: so of the tabs with the same conversation one reads the stream and passes its frames on, and all tabs together read four
// streams at the most. A tab whose conversation has no place reads the history now and then until there is one.
//
// Which tab reads is decided by a lock that the browser gives to one of them, and takes back when the tab is gone. The next one
// goes on behind the last frame that it was passed.

import { Refusal, backoff, pause, send, path } from "./api.js";
import { events } from "./sse.js";

/** Streams that all tabs may read at once. */
const PLACES = 4;
/** How often a tab without a place reads the history, in milliseconds. */
const POLL = 2500;

export class SharedStream {
  constructor(conversation) {
    this.conversation = conversation;
    this.id = conversation.state.id;
    this.closed = new AbortController();
    this.channel = new BroadcastChannel(`lastword conversation ${this.id}`);
    this.channel.onmessage = ({ data }) => this.hear(data);
    /** The reader whose frames this tab has, and the last of them; null: not in step with any. */
    this.epoch = null;
    this.sequence = 0;
    this.leads = false;
    this.wake = () => {};
    this.retry = () => {};
    const nudge = () => { this.wake(); this.retry(); };
    for (const [target, name] of [[document, "visibilitychange"], [window, "online"]]) {
      target.addEventListener(name, nudge, { signal: this.closed.signal });
    }
  }

  close() {
    this.closed.abort();
    this.channel.close();
  }

  /** Whether this tab needs the stream: somebody looks at it, or an answer is under way. */
  get isWanted() {
    return document.visibilityState === "visible" || this.conversation.running.length > 0;
  }

  async run() {
    const { signal } = this.closed;
    this.say({ type: "hello" });
    while (!signal.aborted) {
      if (!this.isWanted) {
        await new Promise((resolve) => { this.wake = resolve; signal.addEventListener("abort", resolve, { once: true }); });
        continue;
      }
      // Without a lock manager (plain HTTP beyond loopback) each tab reads for itself.
      if (!navigator.locks) await this.lead(signal);
      else await this.locked(`lastword conversation ${this.id}`, signal, () => this.withPlace());
    }
  }

  async locked(name, signal, work, options = {}) {
    try {
      return await navigator.locks.request(name, options.ifAvailable ? options : { signal, ...options }, work);
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  /** Reads the stream as soon as there is a place for it. */
  async withPlace() {
    const place = (n) => `lastword stream ${n}`;
    for (let n = 0; n < PLACES; n += 1) {
      const done = await this.locked(place(n), this.closed.signal, async (lock) => {
        if (lock) await this.lead(this.closed.signal);
        return lock != null;
      }, { ifAvailable: true });
      if (done || this.closed.signal.aborted) return;
    }
    const waiting = new AbortController();
    this.closed.signal.addEventListener("abort", () => waiting.abort(), { once: true });
    this.poll(waiting.signal);
    try {
      await this.locked(place(Math.floor(Math.random() * PLACES)), waiting.signal, () => {
        waiting.abort();
        return this.lead(this.closed.signal);
      });
    } catch { /* Given up: the tab was closed. */ }
    waiting.abort();
  }

  async poll(signal) {
    this.linked("polling");
    while (!signal.aborted) {
      await pause(POLL, signal);
      if (!signal.aborted) await this.conversation.refresh().catch(() => {});
    }
  }

  /** Reads the stream until nobody needs it here, and passes everything on. */
  async lead(signal) {
    this.leads = true;
    const begins = this.epoch == null && this.conversation.state.cursor == null;
    this.epoch = crypto.getRandomValues(new Uint32Array(2)).join("-");
    this.sequence = 0;
    if (begins) this.conversation.forgetRunning();
    this.tellState();
    for (let tries = 0; !signal.aborted && this.isWanted;) {
      const outcome = await this.read(signal).catch((problem) => problem);
      if (signal.aborted || outcome === "unwanted") break;
      if (outcome?.received) tries = 0;
      if (outcome instanceof Refusal && !outcome.passes) {
        if (outcome.status !== 410) {
          this.conversation.problem = outcome;
          this.linked("ended");
          this.close();
          break;
        }
        // Past its retention: what there is now is read, and the stream begins anew.
        this.conversation.forgetRunning();
        await this.conversation.load();
      }
      this.linked("lost");
      const wait = outcome?.retryAfter ? outcome.retryAfter * 1000 : backoff(tries);
      tries += 1;
      await Promise.race([pause(wait, signal), new Promise((resolve) => { this.retry = resolve; })]);
    }
    this.leads = false;
    if (!signal.aborted) this.linked("idle");
  }

  /** Reads one connection. Its end, however it comes, is no turn's end. */
  async read(signal) {
    const once = new AbortController();
    const end = () => once.abort();
    signal.addEventListener("abort", end, { once: true });
    this.wake = () => { if (!this.isWanted) end(); };
    let received = false;
    try {
      const { state } = this.conversation;
      const response = await send("GET", path(["v1", "conversations", this.id, "events"], { after: state.cursor }), {
        signal: once.signal,
        headers: { accept: "text/event-stream" },
      });
      this.linked("open");
      for await (const event of events(response.body)) {
        if (!received) {
          received = true;
          // What ended before the stream began is not on it.
          this.conversation.refresh().then(() => this.tellState(), () => {});
        }
        this.take(event);
      }
    } catch (problem) {
      if (once.signal.aborted && !signal.aborted) return "unwanted";
      if (problem instanceof Refusal) throw problem;
    } finally {
      once.abort();
      signal.removeEventListener("abort", end);
      this.wake = () => {};
    }
    return { received };
  }

  take(event) {
    this.sequence += 1;
    this.say({ type: "frame", epoch: this.epoch, sequence: this.sequence, frame: event });
    this.conversation.apply(event);
    if (!this.isWanted) this.wake();
  }

  linked(link) {
    this.conversation.link = link;
    if (this.leads) this.say({ type: "link", link });
    this.conversation.changed();
  }

  tellState() {
    if (!this.leads) return;
    const { state, link } = this.conversation;
    this.say({ type: "state", epoch: this.epoch, sequence: this.sequence, state, link });
  }

  say(message) {
    if (!this.closed.signal.aborted) this.channel.postMessage(message);
  }

  /** Tells the other tabs what this one has done. */
  tell(message) {
    this.say(message);
  }

  /** Takes a frame that another tab has read, if it is the next one. A tab that is out of step asks for all of it. */
  follow({ epoch, sequence, frame }) {
    if (epoch === this.epoch && sequence === this.sequence + 1) {
      this.sequence = sequence;
      this.conversation.apply(frame);
    } else if (this.epoch != null && (epoch !== this.epoch || sequence > this.sequence)) {
      this.epoch = null;
      this.say({ type: "hello" });
    }
  }

  /** Hears another tab. */
  hear(message) {
    switch (message.type) {
      case "hello":
        this.tellState();
        break;
      case "armed":
        this.conversation.takeArmed(message.turn);
        this.conversation.changed();
        this.wake();
        break;
      case "state":
        if (this.leads) break;
        [this.epoch, this.sequence] = [message.epoch, message.sequence];
        this.conversation.link = message.link;
        this.conversation.restore(message.state);
        break;
      case "link":
        if (this.leads) break;
        this.conversation.link = message.link;
        this.conversation.changed();
        break;
      case "frame":
        if (!this.leads) this.follow(message);
        break;
    }
  }
}
