// An agent's text as markdown. It is made by a model, so nothing in it is trusted: what it becomes is sanitised, has no images (a
// picture's address could carry off what was said), and its links open elsewhere and tell nothing of this page.

import { useLayoutEffect, useRef } from "./vendor/hooks.js";
import { marked } from "./vendor/marked.js";
import purify from "./vendor/purify.js";
import { html } from "./parts.js";

const escaped = (text) => text.replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);

marked.use({
  gfm: true,
  breaks: true,
  async: false,
  renderer: {
    // Tags are shown as they were written: even to sanitise a handler is to break the page's policy.
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
  },
});

const TAGS = ["a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "li", "ol", "p",
  "pre", "s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"];

function fragment(text) {
  const made = purify.sanitize(marked.parse(text), {
    RETURN_DOM_FRAGMENT: true,
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["href", "start", "align", "colspan", "rowspan"],
    ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
  });
  for (const link of made.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  // What is wider than the page can be scrolled, by keyboard too.
  for (const block of made.querySelectorAll("pre, table")) {
    const frame = document.createElement("div");
    frame.className = block.localName === "pre" ? "code" : "wide";
    block.replaceWith(frame);
    frame.append(block);
    const scrolls = block.localName === "pre" ? block : frame;
    scrolls.tabIndex = 0;
    if (block.localName === "pre") frame.append(copyButton(block));
    else { frame.role = "group"; frame.ariaLabel = "Table"; }
  }
  return made;
}

function copyButton(block) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(block.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

/** Text as markdown. While it grows it is drawn anew once a frame of the screen at the most. */
export function Markdown({ text }) {
  const place = useRef(null);
  useLayoutEffect(() => {
    const drawing = requestAnimationFrame(() => place.current?.replaceChildren(fragment(text)));
    return () => cancelAnimationFrame(drawing);
  }, [text]);
  return html`<div class="prose" ref=${place}></div>`;
}
