// The user's conversations, newest first, and the way to everything else.

import { useCallback, useEffect, useState } from "./vendor/hooks.js";
import { call, path } from "./api.js";
import { Icon, html, moment, usePolling } from "./parts.js";

/** The list is read again this often, in milliseconds: another device may have changed it. */
const AGAIN = 15_000;

/** The user's conversations, and what brings them up to date. */
export function useConversations() {
  const [list, setList] = useState({ conversations: [], next: null, loaded: false });
  const [stale, setStale] = useState(0);
  const refresh = useCallback(() => setStale((n) => n + 1), []);
  usePolling(async (ended) => {
    const page = await call("GET", path(["v1", "conversations"], { limit: 50 })).catch(() => null);
    if (!page || ended()) return;
    setList(({ conversations, next, loaded }) => {
      const known = new Set(page.conversations.map((one) => one.conversationId));
      // Those of further pages stay.
      const last = page.conversations.at(-1)?.conversationId;
      const older = page.next ? conversations.filter((one) => !known.has(one.conversationId) && one.conversationId < last) : [];
      return { conversations: [...page.conversations, ...older], next: loaded && older.length ? next : page.next, loaded: true };
    });
  }, AGAIN, [stale]);
  useEffect(() => {
    const channel = new BroadcastChannel("lastword conversations");
    channel.onmessage = refresh;
    return () => channel.close();
  }, []);
  const more = async () => {
    const page = await call("GET", path(["v1", "conversations"], { limit: 50, before: list.next })).catch(() => null);
    if (page) setList((known) => ({ ...known, conversations: [...known.conversations, ...page.conversations], next: page.next }));
  };
  /** They have changed here: other tabs are told. */
  const touch = useCallback(() => {
    refresh();
    const channel = new BroadcastChannel("lastword conversations");
    channel.postMessage("changed");
    channel.close();
  }, []);
  return { ...list, more, touch };
}

export function Sidebar({ list, whoami, route, onClose, onLogout }) {
  const at = (view, id) => (route.view === view && route.id === id ? "page" : undefined);
  return html`
    <nav class="sidebar" id="sidebar" aria-label="Conversations">
      <div class="top">
        <a class="wordmark" href="#/">Lastword</a>
        <button class="quiet icon-only close" onClick=${onClose} aria-label="Close the menu"><${Icon} name="close" /></button>
      </div>
      <a class="new" href="#/" onClick=${onClose} aria-current=${at("new")}><${Icon} name="plus" />New chat</a>
      ${whoami.operator && html`<a class="new" href="#/turns" onClick=${onClose} aria-current=${route.view === "turns" ? "page" : undefined}>
        <${Icon} name="list" />All turns</a>`}
      <h2>Your chats</h2>
      <ul>
        ${list.conversations.map((one) => html`
          <li key=${one.conversationId}>
            <a href=${`#/c/${one.conversationId}`} onClick=${onClose} aria-current=${at("chat", one.conversationId)}>
              <span class="title">${one.title}</span>
              <span class="about"><${Mark} newest=${one.newest} />${one.agent} · ${moment(one.newest?.armedAt ?? one.createdAt)}</span>
            </a>
          </li>`)}
      </ul>
      ${list.loaded && !list.conversations.length && html`<p class="none">Nothing yet. What you write is kept here.</p>`}
      ${list.next && html`<button class="quiet more" onClick=${list.more}>Older chats</button>`}
      <div class="me">
        <span class="name" title=${`${whoami.user} of ${whoami.organization}`}>${whoami.user}<small>${whoami.organization}${whoami.operator ? ", operator" : ""}</small></span>
        ${whoami.login && html`<button class="quiet icon-only" onClick=${onLogout} aria-label="Log out" title="Log out"><${Icon} name="leave" /></button>`}
      </div>
    </nav>`;
}

/** How a conversation's newest turn stands, as a mark with a name. */
function Mark({ newest }) {
  if (!newest || newest.phase === "Succeeded") return null;
  const failed = newest.phase === "Failed";
  const stopped = newest.reason === "Cancelled";
  const name = stopped ? "stopped" : failed ? "no reply" : "answering";
  return html`<span class=${`mark ${stopped ? "stopped" : failed ? "failed" : "running"}`} role="img" aria-label=${name} title=${name}></span>`;
}
