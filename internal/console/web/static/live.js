// Keeps the list of approvals, or one approval's state, as it is now. Texts come
// inert from the gateway and are set as text, never as markup.
"use strict";
(() => {
  const ask = async (url) => {
    const answer = await fetch(url, { headers: { Accept: "application/json" }, cache: "no-store" });
    if (answer.status === 401) {
      location.reload(); // to the login
    }
    if (!answer.ok) {
      throw new Error("status " + answer.status);
    }
    return answer.json();
  };

  const every = (look) => {
    let failed = false;
    const again = async () => {
      try {
        await look();
        failed = false;
      } catch {
        failed = true;
      }
      const said = document.getElementById("live");
      if (said) {
        said.textContent = failed ? "The gateway does not answer; this may be out of date." : "";
      }
      // A page that nobody looks at asks less often; one that fails, too.
      setTimeout(again, document.hidden || failed ? 15000 : 2000);
    };
    setTimeout(again, 2000);
  };

  const table = document.getElementById("approvals");
  if (table) {
    const title = document.title;
    let shown = "";
    every(async () => {
      const { rows } = await ask(table.dataset.rows);
      const now = JSON.stringify(rows);
      if (now === shown) {
        return;
      }
      shown = now;
      const focus = document.activeElement instanceof HTMLAnchorElement ? document.activeElement.getAttribute("href") : "";
      const body = document.createElement("tbody");
      for (const { href, cells } of rows) {
        const line = body.insertRow();
        cells.forEach((text, i) => {
          const cell = line.insertCell();
          if (i === 0 && href) {
            const link = document.createElement("a");
            link.setAttribute("href", href);
            link.textContent = text;
            cell.append(link);
          } else {
            cell.textContent = text;
          }
        });
      }
      table.tBodies[0].replaceWith(body);
      for (const link of body.querySelectorAll("a")) {
        if (link.getAttribute("href") === focus) {
          link.focus();
        }
      }
      document.getElementById("none").hidden = rows.length > 0;
      document.title = (rows.length ? "(" + rows.length + ") " : "") + title;
    });
  }

  const state = document.getElementById("state");
  if (state && state.dataset.poll) {
    every(async () => {
      const now = await ask(state.dataset.poll);
      if (now.state !== state.dataset.state) {
        state.querySelector("strong").textContent = now.state;
        for (const button of document.querySelectorAll("#answer button")) {
          button.disabled = true;
        }
      }
    });
  }
})();
