// The page: who is logged in, what is shown, and where everything stands.

import { render } from "./vendor/preact.js";
import { useCallback, useEffect, useRef, useState } from "./vendor/hooks.js";
import { call, identifier, path } from "./api.js";
import { Chat } from "./chat.js";
import { Conversation } from "./conversation.js";
import { Login } from "./login.js";
import { Icon, html } from "./parts.js";
import { Sidebar, useConversations } from "./sidebar.js";
import { TurnDetail, Turns } from "./turns.js";

/** What the address asks to see. */
function routeOf(hash) {
  const [, view, id] = hash.replace(/^#/, "").split("/");
  if (view === "c" && id) return { view: "chat", id: decodeURIComponent(id) };
  if (view === "turns") return { view: "turns", id: id && decodeURIComponent(id) };
  return { view: "new" };
}

function useRoute() {
  const [route, setRoute] = useState(() => routeOf(location.hash));
  useEffect(() => {
    const changed = () => setRoute(routeOf(location.hash));
    window.addEventListener("hashchange", changed);
    return () => window.removeEventListener("hashchange", changed);
  }, []);
  return route;
}

/** Logins and logouts of this browser, told among its tabs. */
const logins = new BroadcastChannel("lastword login");

function App() {
  const [whoami, setWhoami] = useState(undefined);
  const ask = useCallback(async () => {
    try {
      setWhoami(await call("GET", "/session"));
    } catch (problem) {
      if (problem.status === 401) setWhoami(null);
      else setTimeout(ask, 1500);
    }
  }, []);
  useEffect(() => {
    ask();
    logins.onmessage = () => location.reload();
    const out = () => setWhoami((known) => (known ? null : known));
    window.addEventListener("loggedout", out);
    return () => window.removeEventListener("loggedout", out);
  }, []);
  const logIn = (who) => {
    logins.postMessage("in");
    setWhoami(who);
  };
  const logOut = async () => {
    await call("DELETE", "/session").catch(() => {});
    logins.postMessage("out");
    location.hash = "#/";
    location.reload();
  };
  if (whoami === undefined) return html`<main class="loading" role="status">Loading…</main>`;
  if (whoami === null) return html`<${Login} onLogin=${logIn} />`;
  return html`<${Shell} whoami=${whoami} onLogout=${logOut} />`;
}

/** All Agents that this user may talk to. */
async function allAgents() {
  const agents = [];
  let next = null;
  do {
    const page = await call("GET", path(["v1", "agents"], { limit: 500, after: next }));
    agents.push(...page.agents);
    next = page.next;
  } while (next);
  return agents;
}

function Shell({ whoami, onLogout }) {
  const route = useRoute();
  const list = useConversations();
  const [agents, setAgents] = useState([]);
  const [open, setOpen] = useState(false);
  const main = useRef(null);
  useEffect(() => { allAgents().then(setAgents, () => {}); }, [route.view]);
  const conversation = useConversation(route, whoami, agents);
  const close = useCallback(() => setOpen(false), []);
  useEffect(() => {
    const pressed = (event) => event.key === "Escape" && setOpen(false);
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, []);
  const sent = useCallback((id) => {
    list.touch();
    // A new conversation has an address of its own from its first message on; the page stays as it is.
    if (id && routeOf(location.hash).view === "new") location.replace(`#/c/${id}`);
  }, []);
  const known = list.conversations.find((one) => one.conversationId === route.id);
  const title = { new: "New chat", turns: route.id ? "Turn" : "All turns", chat: known?.title ?? "Chat" }[route.view];
  useEffect(() => { document.title = `${title} · Lastword`; }, [title]);
  const skip = (event) => {
    event.preventDefault();
    main.current.focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <div class=${`shell ${open ? "menu-open" : ""}`}>
      <${Sidebar} list=${list} whoami=${whoami} route=${route} onClose=${close} onLogout=${onLogout} />
      <div class="shade" onClick=${close}></div>
      <main id="main" ref=${main} tabindex="-1">
        <header class=${route.view === "turns" ? "bare" : ""}>
          <button class="quiet icon-only menu" onClick=${() => setOpen(true)} aria-label="Menu" aria-expanded=${open} aria-controls="sidebar">
            <${Icon} name="menu" /></button>
          ${route.view === "turns" ? html`<span class="title">Operations</span>` : html`
            <h1 class="title">${route.view === "new" ? "New chat" : known?.title ?? "Chat"}</h1>
            ${conversation?.state.agent && html`<span class="with">${conversation.state.agent}</span>`}
            ${route.view === "chat" && conversation?.isOwn && html`<${Erase} conversation=${conversation} onErased=${list.touch} />`}`}
        </header>
        ${route.view === "turns" && (route.id ? html`<${TurnDetail} id=${route.id} />` : html`<${Turns} agents=${agents} />`)}
        ${conversation && route.view !== "turns" && html`<${Chat} key=${conversation.key} conversation=${conversation} agents=${agents}
          onAgent=${(name) => { conversation.state.agent = name; conversation.changed(); }} onSent=${sent} />`}
      </main>
    </div>
    <div id="announcer" class="hidden" role="status" aria-live="polite"></div>`;
}

/** The conversation that the address names; a new one becomes the one that its first message made. */
function useConversation(route, whoami, agents) {
  const [conversation, setConversation] = useState(null);
  const current = useRef(null);
  const [, redraw] = useState(0);
  useEffect(() => {
    if (route.view === "turns") return;
    if (current.current && route.id && current.current.state.id === route.id) return;
    current.current?.close();
    const made = route.view === "new"
      ? new Conversation(`web-${identifier()}`, { isNew: true, agent: agents.length === 1 ? agents[0].name : null, whoami })
      : new Conversation(route.id, { whoami });
    made.key = made.name;
    made.subscribe(() => redraw((n) => n + 1));
    made.open();
    current.current = made;
    setConversation(made);
  }, [route.view, route.id]);
  useEffect(() => () => { current.current?.close(); current.current = null; }, [route.view === "turns"]);
  useEffect(() => {
    // The only Agent needs no choice.
    if (conversation?.isNew && !conversation.state.agent && agents.length === 1) {
      conversation.state.agent = agents[0].name;
      conversation.changed();
    }
  }, [agents, conversation]);
  return conversation;
}

function Erase({ conversation, onErased }) {
  const erase = async () => {
    if (!confirm("Erase this conversation for good? An answer that is under way is stopped.")) return;
    await call("DELETE", path(["v1", "conversations", conversation.name])).catch(() => {});
    onErased();
    location.hash = "#/";
  };
  return html`<button class="quiet icon-only erase" onClick=${erase} aria-label="Erase this conversation" title="Erase this conversation">
    <${Icon} name="bin" /></button>`;
}

render(html`<${App} />`, document.getElementById("app"));
