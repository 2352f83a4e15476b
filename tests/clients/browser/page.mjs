// Drives the web page in a headless Chromium as a person would, and holds what it shows against what the agents said.
//
// usage: page.mjs URL USER-KEY OPERATOR-KEY SCREENSHOTS; lines on stdout that are `cut` and `mend` ask for the network to be cut and
// mended. What the agents do is said by the message: see tests/machine/browser/page.rs.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createInterface } from "node:readline";

import AxeBuilder from "@axe-core/playwright";
import { chromium } from "playwright-core";

const [url, userKey, operatorKey, shots] = process.argv.slice(2);
const answers = createInterface({ input: process.stdin });

/** Asks for something to be done to the network, and waits until it is. */
async function network(what) {
  console.log(what);
  await once(answers, "line");
}

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
/** What pages have complained of. A request that fails while the network is cut is none of it. */
const complaints = [];
let cut = false;

async function visitor(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  context.setDefaultTimeout(20_000);
  await context.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  context.on("page", (page) => {
    page.on("console", (message) => {
      const expected = cut || /the server responded with a status of 401/.test(message.text());
      if (["error", "warning"].includes(message.type()) && !expected) complaints.push(message.text());
    });
    page.on("pageerror", (error) => complaints.push(error.stack));
    // Nothing may be loaded from elsewhere.
    page.on("request", (request) => {
      if (!request.url().startsWith(url) && !request.url().startsWith("blob:")) complaints.push(`asked ${request.url()}`);
    });
  });
  return context;
}

async function step(name, work) {
  console.log(`step ${name}`);
  await work();
}

async function logIn(page, key) {
  await page.goto(url);
  await page.getByLabel("API key").fill(key);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByRole("link", { name: "New chat" }).waitFor();
}

async function say(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByLabel("Message", { exact: true }).press("Enter");
}

async function newChat(page, text) {
  await page.goto(`${url}/#/`);
  await page.locator("label.agent").filter({ hasText: "bot" }).click();
  await say(page, text);
}

/** Nothing serious is wrong for those who cannot see, or use a keyboard alone. */
async function accessible(page, what) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const told = serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).slice(0, 3).join("\n")}`);
  assert.deepEqual(told, [], what);
}

const shot = (page, name) => page.screenshot({ path: `${shots}/${name}.png` });
const replies = (page) => page.locator(".prose");
const answer = (page) => page.locator(".turn").last().locator(".answer");
const words = (n) => Array.from({ length: n }, (_, i) => `word${i}`).join(" ");

const user = await visitor();
const page = await user.newPage();

await step("a wrong key is refused and a good one logs in", async () => {
  await page.goto(url);
  await accessible(page, "the login");
  await shot(page, "login");
  await page.getByLabel("API key").fill("lwk_wrong");
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByText("unknown, revoked or expired").waitFor();
  await logIn(page, userKey);
  const cookies = await user.cookies();
  assert.equal(cookies.length, 1);
  assert.ok(cookies[0].httpOnly && cookies[0].sameSite === "Strict", JSON.stringify(cookies));
  assert.equal(await page.evaluate(() => document.cookie), "", "no script reads it");
  assert.equal(await page.evaluate((key) => JSON.stringify({ ...localStorage, ...sessionStorage }).includes(key), userKey), false);
  assert.equal(await page.getByRole("link", { name: "All turns" }).count(), 0, "for operators alone");
  await page.locator("label.agent").filter({ hasText: "bot" }).waitFor();
  await shot(page, "new-chat");
  await accessible(page, "a new chat");
});

await step("a chat streams, and what the agent says is markdown and nothing else", async () => {
  await newChat(page, "markdown please");
  await answer(page).getByRole("heading", { name: "Two ways" }).waitFor();
  await answer(page).getByRole("link", { name: "docs" }).waitFor();
  assert.equal(await answer(page).getByRole("link", { name: "docs" }).getAttribute("rel"), "noopener noreferrer");
  for (const [selector, count] of [["script", 0], ["img", 0], ["[onclick]", 0], ["a[href^='javascript']", 0], ["pre code", 1], ["table", 1]]) {
    assert.equal(await answer(page).locator(selector).count(), count, selector);
  }
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  await page.getByRole("link", { name: /markdown please/ }).waitFor();
  assert.match(page.url(), /#\/c\/[0-9a-f-]{36}$/);
  await accessible(page, "a chat");
});

await step("tool calls are folded, and open by keyboard", async () => {
  await say(page, "tools");
  const tool = answer(page).locator("details.tool");
  await answer(page).getByText("It is sunny.").waitFor();
  assert.equal(await tool.getAttribute("open"), null);
  await tool.locator("summary").focus();
  await page.keyboard.press("Enter");
  await tool.getByText('"city": "Basel"').waitFor();
  await tool.getByText('"sky": "clear"').waitFor();
  await shot(page, "chat");
});

await step("an error is shown as one, with its cause, and may be tried again", async () => {
  await say(page, "fail");
  await answer(page).getByText("No reply").waitFor();
  await answer(page).getByText("Agent error").waitFor();
  await answer(page).getByText("It may succeed if you send it again.").waitFor();
  await answer(page).getByText("half an answer").waitFor();
  assert.equal(await answer(page).getByText("For operators").count(), 0);
  const before = await page.locator(".turn").count();
  await shot(page, "error");
  await accessible(page, "an error");
  await answer(page).getByRole("button", { name: "Send again" }).click();
  await page.locator(".turn").nth(before).waitFor();
  await answer(page).getByText("No reply").waitFor();
});

await step("a reply that is cut off says so", async () => {
  await say(page, "length");
  await answer(page).getByText("the model reached its limit of length").waitFor();
});

await step("an answer is stopped by button and by Escape", async () => {
  await say(page, "slow 400");
  await answer(page).getByText("word3").waitFor();
  await answer(page).getByRole("button", { name: "Stop" }).click();
  await answer(page).getByText("Stopped.").waitFor();
  assert.equal(await answer(page).locator(".failure").count(), 0, "stopped is no failure");
  await say(page, "slow 400");
  await answer(page).getByText("word3").waitFor();
  await page.getByLabel("Message", { exact: true }).press("Escape");
  await answer(page).getByText("Stopped.").waitFor();
});

await step("a reload in mid-answer goes on, and so does a connection that breaks", async () => {
  await newChat(page, "slow 40");
  await answer(page).getByText("word3").waitFor();
  await page.reload();
  await answer(page).getByText("word8").waitFor();
  cut = true;
  await network("cut");
  await page.getByText("Reconnecting").waitFor();
  await shot(page, "reconnecting");
  await network("mend");
  await page.getByText("Reconnecting").waitFor({ state: "detached" });
  cut = false;
  await answer(page).locator(".busy").waitFor({ state: "detached" });
  assert.equal((await answer(page).locator(".prose").innerText()).trim(), words(40), "each word once, in order");
});

await step("two tabs are in step", async () => {
  const other = await user.newPage();
  await other.goto(page.url());
  await other.getByText("slow 40").first().waitFor();
  await say(page, "slow 20");
  for (const tab of [page, other]) {
    await tab.locator(".turn").nth(1).getByText("word19").waitFor();
    assert.equal((await answer(tab).locator(".prose").innerText()).trim(), words(20));
  }
  await say(other, "and back");
  await replies(page).getByText("You said: and back").waitFor();
  // The tab that reads the stream is closed in mid-answer: the other goes on.
  await say(other, "slow 30");
  await answer(other).getByText("word5").waitFor();
  await page.close();
  await answer(other).locator(".busy").waitFor({ state: "detached" });
  assert.equal((await answer(other).locator(".prose").innerText()).trim(), words(30));
  await other.close();
});

await step("ten tabs at once, with one conversation and with ten", async () => {
  const first = await user.newPage();
  await newChat(first, "hello");
  await replies(first).getByText("You said: hello").waitFor();
  const address = first.url();
  const same = [first];
  for (let n = 1; n < 10; n += 1) {
    const tab = await user.newPage();
    await tab.goto(address);
    await replies(tab).getByText("You said: hello").waitFor();
    same.push(tab);
  }
  await say(same[7], "slow 15");
  await Promise.all(same.map(async (tab) => {
    await answer(tab).getByText("word14").waitFor();
    assert.equal((await answer(tab).locator(".prose").innerText()).trim(), words(15));
  }));
  await Promise.all(same.map((tab, n) => newChat(tab, `number ${n}`)));
  await Promise.all(same.map((tab, n) => replies(tab).getByText(`You said: number ${n}`).waitFor()));
  await Promise.all(same.map((tab) => say(tab, "slow 10")));
  await Promise.all(same.map(async (tab) => {
    await answer(tab).getByText("word9").waitFor();
    assert.equal((await answer(tab).locator(".prose").innerText()).trim(), words(10));
  }));
  await Promise.all(same.slice(1).map((tab) => tab.close()));
  await say(first, "one more");
  await replies(first).getByText("You said: one more").waitFor();
  assert.equal(await first.locator(".sidebar li").count(), 13, "every chat is listed");
  await first.close();
});

await step("an operator sees turns come and go, and what became of one", async () => {
  const operators = await visitor();
  const desk = await operators.newPage();
  await logIn(desk, operatorKey);
  await desk.getByRole("link", { name: "All turns" }).click();
  await desk.getByRole("heading", { name: "All turns" }).waitFor();
  const worker = await user.newPage();
  await newChat(worker, "slow 60 for the desk");
  const row = desk.getByRole("row").filter({ hasText: "slow 60 for the desk" });
  await row.getByText("Answering").waitFor();
  assert.equal(await row.locator(".worker code").count(), 1);
  await worker.getByRole("button", { name: "Stop" }).click();
  await row.getByText("Stopped").waitFor();
  await worker.close();
  await shot(desk, "turns");
  await accessible(desk, "the list of turns");
  await desk.getByLabel("State").selectOption("Failed");
  await row.waitFor();
  await desk.getByRole("row").filter({ hasText: "Replied" }).first().waitFor({ state: "detached" });
  await desk.getByLabel("User").fill("nobody");
  await desk.getByText("No turn is like that.").waitFor();
  await desk.getByLabel("User").fill("");
  const failed = desk.getByRole("row").filter({ hasText: "Agent error" }).first();
  await failed.getByRole("link").click();
  await desk.getByRole("list", { name: "Timeline" }).waitFor();
  const timeline = await desk.getByRole("list", { name: "Timeline" }).innerText();
  for (const moment of ["Armed", "Claimed", "First output", "Error", "Delivered"]) assert.ok(timeline.includes(moment), timeline);
  await desk.getByText("by the test's agent").waitFor();
  await shot(desk, "turn");
  await accessible(desk, "a turn");
  await desk.locator(".facts a").click();
  await desk.getByText("only they write here").waitFor();
  await desk.locator(".failure summary").first().click();
  await desk.getByText("by the test's agent").first().waitFor();
  await operators.close();
});

await step("on a phone, in the dark", async () => {
  const state = await user.storageState();
  const phone = await visitor({ viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: "dark", storageState: state });
  const small = await phone.newPage();
  await newChat(small, "markdown please");
  await answer(small).getByRole("link", { name: "docs" }).waitFor();
  await say(small, "tools");
  await answer(small).getByText("It is sunny.").waitFor();
  await shot(small, "phone-chat");
  await accessible(small, "a chat on a phone");
  const wide = await small.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wide <= 0, `nothing is wider than the screen: ${wide}`);
  await small.getByRole("button", { name: "Menu" }).click();
  await small.getByRole("link", { name: "New chat" }).waitFor();
  await small.waitForTimeout(300);
  await shot(small, "phone-menu");
  await accessible(small, "the menu on a phone");
  await phone.close();
});

await step("whoever logs out is out, in every tab", async () => {
  const [one, two] = [await user.newPage(), await user.newPage()];
  for (const tab of [one, two]) {
    await tab.goto(url);
    await tab.getByRole("button", { name: "Log out" }).waitFor();
  }
  await one.getByRole("button", { name: "Log out" }).click();
  for (const tab of [one, two]) await tab.getByLabel("API key").waitFor();
  assert.deepEqual(await user.cookies(), []);
});

assert.deepEqual(complaints, [], "the console is silent, and the policy is kept");
await browser.close();
process.exit(0);
