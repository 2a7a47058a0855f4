// Drives one Chromium for the tests: a line of JSON in is a script for a page, a
// line out its result. Each page name is a browser of its own, with no cookies.
"use strict";
const { chromium } = require(process.env.PLAYWRIGHT);
const Script = Object.getPrototypeOf(async () => {}).constructor;

(async () => {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, headless: true, args: ["--no-sandbox"] });
  const pages = new Map();
  const open = async (name) => {
    const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1100, height: 720 } });
    context.setDefaultTimeout(30000);
    const page = await context.newPage();
    const said = [];
    page.on("dialog", (dialog) => { said.push("dialog: " + dialog.message()); dialog.dismiss(); });
    page.on("console", (message) => message.type() === "error" && said.push("console: " + message.text()));
    page.on("pageerror", (error) => said.push("error: " + error.message));
    return { page, said, context };
  };
  let rest = "";
  process.stdin.on("data", (chunk) => {
    rest += chunk;
    for (let end; (end = rest.indexOf("\n")) >= 0; rest = rest.slice(end + 1)) {
      const { id, name, script, args } = JSON.parse(rest.slice(0, end));
      (async () => {
        const answer = { id };
        try {
          if (!pages.has(name)) {
            pages.set(name, open(name));
          }
          const { page, said, context } = await pages.get(name);
          answer.result = String((await new Script("page", "said", "context", ...Object.keys(args), script)(page, said, context, ...Object.values(args))) ?? "");
        } catch (error) {
          answer.error = String(error.stack || error);
        }
        process.stdout.write(JSON.stringify(answer) + "\n");
      })();
    }
  });
  process.stdin.on("end", () => browser.close());
  process.stdout.write("{}\n");
})();
