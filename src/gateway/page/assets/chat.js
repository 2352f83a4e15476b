// A conversation: its turns, what an agent is doing, and the place to write.

import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
import { Markdown } from "./markdown.js";
import { Icon, announce, html, inWords, moment, useChanges } from "./parts.js";

/** What an end that is no usual one means. */
const FINISHES = {
  length: "The reply is cut off: the model reached its limit of length.",
  content_filter: "The reply is cut off: the model's server filtered it.",
};

export function Chat({ conversation, agents, onAgent, onSent }) {
  useChanges(conversation);
  const { state } = conversation;
  const log = useRef(null);
  const follows = useRef(true);
  useEffect(() => {
    conversation.onEnd = (turn) => {
      if (!turn) return;
      announce(turn.error ? `No reply. ${turn.error.message}` : `${state.agent} replied: ${turn.text.slice(0, 600)}`);
      onSent();
    };
  }, [conversation]);
  const top = useRef(0);
  // Whoever has scrolled up is left there. (What grows below moves nothing up.)
  const scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = log.current;
    if (scrollHeight - scrollTop - clientHeight < 80) follows.current = true;
    else if (scrollTop < top.current) follows.current = false;
    top.current = scrollTop;
  };
  useLayoutEffect(() => {
    const settle = () => { if (follows.current && log.current) log.current.scrollTop = log.current.scrollHeight; };
    settle();
    const watcher = new ResizeObserver(settle);
    if (log.current?.firstElementChild) watcher.observe(log.current.firstElementChild);
    return () => watcher.disconnect();
  }, [conversation]);
  const submit = useCallback(async (text) => {
    follows.current = true;
    announce("Sent.");
    const id = await conversation.send(text);
    if (id) onSent(id);
  }, [conversation]);
  const gone = conversation.problem && !conversation.problem.passes;
  const empty = !conversation.loading && !state.turns.length && !gone;
  return html`
    <${Link} conversation=${conversation} />
    <div class="log" ref=${log} onScroll=${scrolled} tabindex="0" role="region" aria-label="Conversation">
      <div class="turns" aria-busy=${conversation.running.length > 0}>
        ${state.older != null && html`<button class="quiet older" onClick=${() => conversation.loadOlder()}>Earlier messages</button>`}
        ${conversation.loading && html`<p class="loading" role="status">Loading…</p>`}
        ${gone && html`<div class="failure"><strong>This conversation cannot be shown</strong><p>${conversation.problem.message}</p></div>`}
        ${empty && html`<${Welcome} agents=${agents} agent=${state.agent} isNew=${conversation.isNew} onAgent=${onAgent} />`}
        ${state.turns.map((turn) => html`<${Turn} key=${turn.messageId ?? turn.id} turn=${turn} conversation=${conversation} />`)}
      </div>
    </div>
    ${!gone && html`<${Composer} conversation=${conversation} onSubmit=${submit} ready=${Boolean(state.agent)} />`}`;
}

/** Tells how the connection is, where it is not as it should be. */
function Link({ conversation }) {
  const texts = {
    lost: "Connection lost. Reconnecting…",
    polling: "Many tabs are open: this one is brought up to date every few seconds.",
  };
  const [shown, setShown] = useState(null);
  const text = texts[conversation.link] ?? (conversation.problem?.passes ? texts.lost : null);
  useEffect(() => {
    // A connection that is back at once is nothing to tell of.
    const timer = setTimeout(() => setShown(text), text ? 400 : 0);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<div class="link" role="status">${shown && html`<span class=${conversation.link}>${shown}</span>`}</div>`;
}

function Welcome({ agents, agent, isNew, onAgent }) {
  if (!isNew) return html`<div class="welcome"><p>All messages of this conversation are past the time that they are kept.</p></div>`;
  if (!agents.length) {
    return html`<div class="welcome"><h1>No agents yet</h1><p>Once there is an Agent in this organization, you can talk to it here.</p></div>`;
  }
  return html`
    <div class="welcome">
      <h1>Whom would you like to talk to?</h1>
      <div class="agents" role="radiogroup" aria-label="Agent">
        ${agents.map(({ name }) => html`
          <label class="agent" key=${name}>
            <input type="radio" name="agent" value=${name} checked=${name === agent} onChange=${() => onAgent(name)} />
            <span class="initial" aria-hidden="true">${name[0].toUpperCase()}</span><span class="name">${name}</span>
          </label>`)}
      </div>
    </div>`;
}

function Turn({ turn, conversation }) {
  const over = turn.phase === "Succeeded" || turn.phase === "Failed";
  const cancelled = turn.error?.reason === "Cancelled";
  const agent = turn.agent ?? conversation.state.agent;
  const busy = !over && turn.phase !== "Unsent";
  return html`
    <article class=${`turn ${turn.phase.toLowerCase()}`} aria-label=${turn.number ? `Message ${turn.number}` : "New message"}>
      ${turn.message != null && html`
        <div class="said">
          <span class="hidden">${conversation.isOwn ? "You" : conversation.state.owner}:</span>
          <p>${turn.message}</p>
          ${turn.armedAt && html`<time datetime=${turn.armedAt}>${moment(turn.armedAt)}</time>`}
        </div>`}
      <div class="answer">
        <div class="who"><span class="initial" aria-hidden="true">${(agent ?? "?")[0].toUpperCase()}</span><span>${agent}</span></div>
        ${turn.answeredWith && html`<p class="note">Answered together with a later message.</p>`}
        ${turn.tools.map((tool, n) => html`<${Tool} key=${n} tool=${tool} over=${over} />`)}
        ${turn.toolsTruncated && html`<p class="note">Further tool calls are not shown.</p>`}
        ${turn.text && !turn.answeredWith && html`<${Markdown} text=${turn.text} />`}
        ${busy && html`<${Busy} turn=${turn} conversation=${conversation} />`}
        ${turn.phase === "Succeeded" && !turn.text && !turn.answeredWith && html`<p class="note">
          ${turn.textGone ? "There was a reply; its text is gone." : "The reply is empty."}</p>`}
        ${FINISHES[turn.finishReason] && html`<p class="note cut">${FINISHES[turn.finishReason]}</p>`}
        ${cancelled && html`<p class="note">Stopped.</p>`}
        ${turn.error && !cancelled && html`<${Failure} turn=${turn} conversation=${conversation} />`}
      </div>
    </article>`;
}

function Busy({ turn, conversation }) {
  const words = { Sending: "Sending…", Armed: "Waiting for the agent…", Running: turn.text ? null : "Working…" };
  const stoppable = turn.phase === "Armed" || turn.phase === "Running";
  const [stopping, setStopping] = useState(false);
  const stop = async () => {
    setStopping(true);
    await conversation.stop(turn.id).catch((problem) => announce(problem.message));
    setStopping(false);
  };
  return html`
    <div class="busy">
      <span class="dots" aria-hidden="true"><i></i><i></i><i></i></span>
      <span>${turn.progress ?? words[turn.phase]}</span>
      ${stoppable && html`<button class="quiet stop" onClick=${stop} disabled=${stopping}><${Icon} name="stop" />Stop</button>`}
    </div>`;
}

const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");

function Tool({ tool, over }) {
  const done = "result" in tool;
  const state = done ? "done" : over ? "no result" : "running…";
  return html`
    <details class="tool">
      <summary><${Icon} name="tool" /><span class="name">${tool.name}</span><span class="how">${state}</span></summary>
      <div class="body">
        ${"arguments" in tool && html`<h4>Arguments</h4><pre tabindex="0">${pretty(tool.arguments)}</pre>`}
        ${done && html`<h4>Result</h4><pre tabindex="0">${pretty(tool.result)}</pre>`}
      </div>
    </details>`;
}

function Failure({ turn, conversation }) {
  const { reason, message, retryable, detail } = turn.error;
  const again = () => conversation.send(turn.message, turn.phase === "Unsent" ? turn.messageId : undefined);
  const may = conversation.isOwn && turn.message != null;
  return html`
    <div class="failure">
      <div class="head"><${Icon} name="alert" /><strong>${turn.phase === "Unsent" ? "Not sent" : "No reply"}</strong>
        ${reason && html`<span class="reason">${inWords(reason)}</span>`}</div>
      <p>${message}</p>
      <p class="hint">${retryable ? "It may succeed if you send it again." : "Sending it again will not help until somebody changes something."}</p>
      ${detail && html`<details class="detail"><summary>For operators</summary><pre tabindex="0">${detail}</pre></details>`}
      ${may && (retryable || turn.phase === "Unsent") && html`<button class="quiet again" onClick=${again}>Send again</button>`}
    </div>`;
}

function Composer({ conversation, onSubmit, ready }) {
  const [text, setText] = useState("");
  const field = useRef(null);
  const running = conversation.running.find((turn) => turn.phase === "Armed" || turn.phase === "Running");
  useEffect(() => { if (matchMedia("(pointer: fine)").matches) field.current?.focus(); }, [conversation]);
  useLayoutEffect(() => {
    const area = field.current;
    if (!area) return;
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight, 220)}px`;
  }, [text]);
  if (!conversation.isOwn) return html`<p class="foreign">This conversation belongs to ${conversation.state.owner}; only they write here.</p>`;
  const submit = (event) => {
    event.preventDefault();
    if (!text.trim() || !ready) return;
    onSubmit(text);
    setText("");
    field.current?.focus();
  };
  const pressed = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === "Escape" && running) conversation.stop(running.id).catch((problem) => announce(problem.message));
  };
  const to = conversation.state.agent;
  return html`
    <form class="composer" onSubmit=${submit}>
      <div class="card">
        <label class="hidden" for="message">Message</label>
        <textarea id="message" ref=${field} rows="1" value=${text} placeholder=${to ? `Message ${to}` : "Choose an agent first"}
          onInput=${(event) => setText(event.target.value)} onKeyDown=${pressed} enterkeyhint="send"></textarea>
        <button class="send" type="submit" aria-label="Send" title="Send" disabled=${!text.trim() || !ready}><${Icon} name="send" /></button>
      </div>
      <p class="keys" aria-hidden="true"><kbd>Enter</kbd> sends · <kbd>Shift</kbd> <kbd>Enter</kbd> new line${running ? html` · <kbd>Esc</kbd> stops` : null}</p>
    </form>`;
}
