// For operators: the turns of all users as they come and go, and what became of one of them.

import { useEffect, useState } from "./vendor/hooks.js";
import { call, path } from "./api.js";
import { Icon, State, announce, html, inWords, moment, span, usePolling } from "./parts.js";

/** The list is read again this often, in milliseconds. */
const AGAIN = 2000;
const PHASES = { "": "Any state", Armed: "Waiting", Running: "Answering", Succeeded: "Replied", Failed: "Failed" };

const isOver = (turn) => turn.phase === "Succeeded" || turn.phase === "Failed";
const age = (turn) => span(new Date(turn.endedAt ?? Date.now()) - new Date(turn.armedAt));

export function Turns({ agents }) {
  const [filter, setFilter] = useState({ phase: "", agent: "", user: "", conversation: "" });
  const [page, setPage] = useState(null);
  const [problem, setProblem] = useState(null);
  usePolling(async (ended) => {
    try {
      const read = await call("GET", path(["v1", "turns"], { ...filter, limit: 50 }));
      if (ended()) return;
      setPage(read);
      setProblem(null);
    } catch (refused) {
      if (!ended()) setProblem(refused);
    }
  }, AGAIN, [filter]);
  const set = (name) => (event) => setFilter((all) => ({ ...all, [name]: event.target.value.trim() }));
  return html`
    <div class="panel">
      <div class="heading"><h1>All turns</h1><span class="live" title="Read again every two seconds"><i aria-hidden="true"></i>Live</span></div>
      <form class="filters" role="search" aria-label="Turns" onSubmit=${(event) => event.preventDefault()}>
        <label>State<select value=${filter.phase} onChange=${set("phase")}>
          ${Object.entries(PHASES).map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select></label>
        <label>Agent<select value=${filter.agent} onChange=${set("agent")}>
          <option value="">Any agent</option>${agents.map(({ name }) => html`<option value=${name}>${name}</option>`)}</select></label>
        <label>User<input type="search" placeholder="Anybody" onInput=${set("user")} /></label>
        <label>Conversation<input type="search" placeholder="Name or id" onInput=${set("conversation")} /></label>
      </form>
      ${problem && html`<p class="problem" role="status">${problem.message}</p>`}
      ${page && !page.turns.length && html`<p class="none">No turn is like that.</p>`}
      ${page && page.turns.length > 0 && html`
        <table class="list">
          <thead><tr><th scope="col">State</th><th scope="col">Agent</th><th scope="col">User</th><th scope="col">Message</th>
            <th scope="col">Worker</th><th scope="col">Began</th><th scope="col">Time</th></tr></thead>
          <tbody>${page.turns.map((turn) => html`<${Row} key=${turn.turnId} turn=${turn} />`)}</tbody>
        </table>`}
    </div>`;
}

function Row({ turn }) {
  return html`
    <tr>
      <td><${State} phase=${turn.phase} reason=${turn.error?.reason} />
        ${turn.error && turn.error.reason !== "Cancelled" && html`<span class="reason">${inWords(turn.error.reason)}</span>`}</td>
      <td>${turn.agent}</td>
      <td>${turn.user}</td>
      <td class="message"><a href=${`#/turns/${turn.turnId}`}>${turn.message.slice(0, 140)}</a></td>
      <td class="worker">${turn.worker ? html`<code title=${turn.worker}>${turn.worker.slice(-8)}</code>` : "–"}</td>
      <td class="when">${moment(turn.armedAt)}</td>
      <td class="age">${age(turn)}</td>
    </tr>`;
}

/** One turn: what became of it, moment by moment. */
export function TurnDetail({ id }) {
  const [turn, setTurn] = useState(null);
  const [problem, setProblem] = useState(null);
  usePolling(async (ended) => {
    try {
      const record = await call("GET", path(["v1", "turns", id]));
      if (!ended()) setTurn(record);
    } catch (refused) {
      if (!ended()) setProblem(refused);
    }
  }, AGAIN, [id]);
  useEffect(() => { document.getElementById("detail")?.focus(); }, [turn == null]);
  const cancel = () => call("POST", path(["v1", "turns", id, "cancel"])).then(setTurn, (refused) => announce(refused.message));
  return html`
    <div class="panel">
      <a class="quiet up" href="#/turns"><${Icon} name="back" />All turns</a>
      ${problem && !turn && html`<p class="problem" role="status">${problem.message}</p>`}
      ${turn && html`
        <div class="heading"><h1 id="detail" class="quoted" tabindex="-1">${turn.message.slice(0, 200)}</h1>
          <${State} phase=${turn.phase} reason=${turn.error?.reason} />
          ${!isOver(turn) && html`<button class="quiet" onClick=${cancel}><${Icon} name="stop" />Stop</button>`}</div>
        <${Timeline} turn=${turn} />
        ${turn.error && html`<section class="failure"><div class="head"><${Icon} name="alert" /><strong>No reply</strong>
          <span class="reason">${inWords(turn.error.reason)}</span></div><p>${turn.error.message}</p>
          ${turn.error.detail && html`<pre tabindex="0">${turn.error.detail}</pre>`}</section>`}
        <dl class="facts">
          ${turn.message.length > 200 && html`<dt>Message</dt><dd class="text">${turn.message}</dd>`}
          ${turn.reply && html`<dt>Reply</dt><dd class="text">${turn.reply.text}</dd>`}
          ${turn.superseded && html`<dt>Superseded</dt><dd class="text">${turn.superseded}</dd>`}
          <dt>Agent</dt><dd>${turn.agent}</dd>
          <dt>User</dt><dd>${turn.user}</dd>
          <dt>Conversation</dt><dd><a href=${`#/c/${turn.conversationId}`}>${turn.conversation}</a>, its turn ${turn.number}</dd>
          <dt>Worker</dt><dd>${turn.worker ? html`<code>${turn.worker}</code>` : "none yet"}</dd>
          <dt>Worker group</dt><dd><code>${turn.workerGroup}</code></dd>
          <dt>Turn id</dt><dd><code>${turn.turnId}</code></dd>
        </dl>`}
    </div>`;
}

/** What happened to a turn, in order. What has not happened yet stands there too. */
function Timeline({ turn }) {
  const armed = new Date(turn.armedAt);
  const over = isOver(turn);
  const end = turn.phase === "Succeeded" ? "Reply" : turn.error?.reason === "Cancelled" ? "Stopped" : "Error";
  const steps = [
    { name: "Armed", at: turn.armedAt, text: "Accepted: it gets exactly one last word." },
    { name: "Claimed", at: turn.claimedAt, text: "A worker took it.", skipped: over },
    { name: "First output", at: turn.firstOutputAt, text: "The agent began to speak.", skipped: over },
    { name: over ? end : "Last word", at: turn.endedAt, text: over ? "Its last word." : "Yet to come.", failed: turn.error != null },
    { name: "Delivered", done: turn.delivered, text: turn.delivered ? "Shown to its owner." : over ? "Not shown to its owner yet." : "Yet to come." },
    ...(turn.superseded ? [{ name: "Superseded", at: turn.supersededAt, text: "A worker's answer came too late, and was put aside." }] : []),
  ];
  return html`
    <ol class="timeline" aria-label="Timeline">
      ${steps.map(({ name, at, done, text, failed, skipped }) => {
        const reached = Boolean(at || done);
        return html`
          <li key=${name} class=${`${reached ? "reached" : "open"} ${failed ? "bad" : ""}`}>
            <strong>${name}</strong>
            <span>${reached || !skipped ? text : "Did not happen."}</span>
            ${at && html`<time datetime=${at} title=${new Date(at).toISOString()}>${at === turn.armedAt
              ? new Date(at).toLocaleTimeString() : `+ ${span(new Date(at) - armed)}`}</time>`}
          </li>`;
      })}
    </ol>`;
}
