// Logging in: a key is shown once, and the browser keeps a cookie that no script can read.

import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { call } from "./api.js";
import { html } from "./parts.js";

export function Login({ onLogin }) {
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const field = useRef(null);
  useEffect(() => field.current?.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    const key = field.current.value.trim();
    if (!key || busy) return;
    setBusy(true);
    try {
      onLogin(await call("POST", "/session", { headers: { authorization: `Bearer ${key}` } }));
    } catch (refused) {
      setProblem(refused.status === 401 ? "This key is unknown, revoked or expired." : refused.message);
      setBusy(false);
      field.current?.select();
    }
  };
  return html`
    <main class="login">
      <form onSubmit=${submit}>
        <h1 class="wordmark">Lastword</h1>
        <p class="lead">Every message gets exactly one last word.</p>
        <label for="key">API key</label>
        <input id="key" ref=${field} type="password" autocomplete="current-password" spellcheck=${false} autocapitalize="off"
          placeholder="lwk_…" aria-describedby="key-help key-problem" aria-invalid=${problem ? "true" : "false"} required />
        <p id="key-problem" class="problem" role="alert">${problem}</p>
        <button class="primary" type="submit" disabled=${busy}>${busy ? "Logging in…" : "Log in"}</button>
        <p id="key-help" class="hint">Whoever runs this gateway makes one with <code>lastword keys create</code>. It is shown to the
          gateway once; the browser keeps a login of its own, for a week at most.</p>
      </form>
    </main>`;
}
