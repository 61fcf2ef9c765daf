// Works widgets in a real JupyterLab, as tests/test_browser.py asks: node browser.js < plan.json > what-was-seen.json
//
// plan: {chromium, profile, address, token, notebook, pictures, steps: [[verb, ...words], ...]}; a step's answer is what it
// saw, in the order of the steps. A cell is named by its place among the code cells, from 0.
const { chromium } = require("playwright-core");
const fs = require("fs");

const QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--no-sandbox"]; // root in a container has no sandbox

async function work(page, plan) {
  const cell = (place) => page.locator(".jp-Notebook .jp-CodeCell").nth(place);
  const view = (place) => cell(place).locator(".widget-html-content").first();
  const control = (place, label) => cell(place).getByLabel(label, { exact: true }).first();
  const changed = async (place, act) => { // what the view shows after it has changed
    const before = await view(place).innerHTML();
    await act();
    const node = await view(place).elementHandle();
    await page.waitForFunction(([one, was]) => one.innerHTML !== was, [node, before], { timeout: 30000 });
    for (let last = null, now = ""; now !== last; ) { // what was typed comes in piece by piece
      [last, now] = [now, await view(place).innerHTML()];
      await page.waitForTimeout(1000);
    }
    return view(place).innerText();
  };
  const focused = () => page.evaluate(() => document.activeElement.tagName);
  const verbs = {
    run: async () => {
      await page.click('.lm-MenuBar-itemLabel:text-is("Run")');
      await page.click('.lm-Menu-itemLabel:text-is("Run All Cells")');
    },
    idle: async (seconds) => {
      await page.waitForTimeout(500);
      await page.waitForFunction(() => {
        const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map((one) => one.textContent);
        return prompts.some((one) => /\d/.test(one)) && !prompts.some((one) => one.includes("*"));
      }, null, { timeout: 1000 * seconds });
      return page.locator('[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText[data-mime-type*="stderr"]').allInnerTexts();
    },
    show: async (place) => { await cell(place).scrollIntoViewIfNeeded(); await view(place).waitFor({ timeout: 60000 }); return view(place).innerText(); },
    html: async (place) => view(place).innerHTML(),
    labels: async (place) => cell(place).locator(".widget-label").allInnerTexts(),
    // keys are pressed where the focus is: nothing is set from the script
    keys: async (place, label, ...keys) => changed(place, async () => {
      await control(place, label).focus();
      for (const key of keys) {
        await page.keyboard.press(key);
        await page.waitForTimeout(100); // a list takes a moment to open
      }
    }),
    tab: async () => { await page.keyboard.press("Tab"); return focused(); },
    type: async (place, label, text) => changed(place, async () => { await control(place, label).focus(); await page.keyboard.type(text); }),
    clear: async (place, label) => changed(place, async () => {
      await control(place, label).focus(); await page.keyboard.press("Control+A"); await page.keyboard.press("Delete");
    }),
    choose: async (place, label, value) => changed(place, () => control(place, label).selectOption(value)),
    click: async (place, label) => changed(place, () => control(place, label).click()),
    press: async (place, name, key) => {
      const button = cell(place).getByRole("button", { name });
      if (!key) return button.click();
      await button.focus();
      return page.keyboard.press(key);
    },
    until: async (place, words, seconds) => {
      await view(place).waitFor({ timeout: 1000 * seconds });
      await page.waitForFunction(([one, said]) => one.innerText.includes(said), [await view(place).elementHandle(), words], { timeout: 1000 * seconds });
      return view(place).innerText();
    },
    picture: async (place, name) => {
      if (!plan.pictures) return;
      await cell(place).locator(".jp-Cell-outputWrapper").first().screenshot({ path: `${plan.pictures}/${name}.png` });
    },
    theme: async (name) => { await page.evaluate((theme) => window.jupyterapp && window.jupyterapp.commands.execute("apputils:change-theme", { theme }), name); await page.waitForTimeout(1500); },
    open: async (address) => { // a page from disk
      const sheet = await page.context().newPage();
      await sheet.goto(address, { waitUntil: "load" });
      await sheet.waitForTimeout(500);
      return sheet.locator("body").innerText();
    },
    output: async (place) => cell(place).locator(".jp-OutputArea-output").allInnerTexts(),
  };
  const seen = [];
  for (const [verb, ...words] of plan.steps) {
    try {
      seen.push((await verbs[verb](...words)) ?? null);
    } catch (error) {
      throw new Error(`step ${seen.length} (${verb} ${words.join(" ")}): ${error.message}`);
    }
  }
  return seen;
}

(async () => {
  const plan = JSON.parse(fs.readFileSync(0, "utf8"));
  const context = await chromium.launchPersistentContext(plan.profile,
    { executablePath: plan.chromium, headless: true, viewport: { width: 1280, height: 1100 }, args: QUIET });
  const page = await context.newPage();
  const outside = new Set(), dialogs = [];
  context.on("request", (one) => { if (/^(https?|wss?):/.test(one.url()) && !one.url().startsWith(plan.address)) outside.add(one.url()); });
  context.on("dialog", (one) => { dialogs.push(one.message()); one.dismiss(); });
  await page.goto(`${plan.address}/lab/tree/${plan.notebook}?token=${plan.token}&reset`, { waitUntil: "domcontentloaded" });
  await page.waitForSelector(".jp-Notebook .jp-CodeCell", { timeout: 120000 });
  await page.getByText("| Idle").first().waitFor({ timeout: 120000 }); // Run All before the kernel is there asks for one
  let seen = null, failed = null;
  try { seen = await work(page, plan); } catch (error) {
    failed = error.message;
    if (plan.pictures) await page.screenshot({ path: `${plan.pictures}/failed.png` });
  }
  await context.close();
  console.log(JSON.stringify({ seen, failed, outside: [...outside], dialogs }));
})().catch((error) => { console.error(error.message); process.exit(1); });
