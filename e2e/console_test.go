package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// atDex logs who in at Dex, with a browser.
func atDex(t *testing.T, s *demo.Site, who string) tab {
	t.Helper()
	p := newTab(t)
	p.do(t, `
await page.goto(url + "/console");
await page.getByRole("link", {name: "dex", exact: true}).click();
await page.fill("#login", who);
await page.fill("#password", password);
await page.click("#submit-login");
await page.waitForURL(url + "/console/**");`, "url", s.URL(), "who", who, "password", localserver.DexPassword)
	return p
}

// TestConsoleGrants: a reviewer logs in, sees what psql waits for and grants it.
func TestConsoleGrants(t *testing.T) {
	t.Parallel()
	s := site(t)
	grace := atDex(t, s, demo.Grace)
	psql := exec.CommandContext(t.Context(), filepath.Join(s.Database.Bin, "psql"), "-X", "-At", s.ConnString(false),
		"-c", "update orders set status = 'from the browser' where id = 61 returning status")
	psql.Env = append(psql.Environ(), "PGPASSWORD="+token(t, s, demo.Ada))
	answered := make(chan string, 1)
	go func() {
		out, err := psql.Output()
		if err != nil {
			out = append(out, err.Error()...)
		}
		answered <- string(out)
	}()
	// The list shows it without being loaded again.
	card := grace.do(t, `
await page.locator("#approvals a", {hasText: "UPDATE public.orders"}).first().click();
return page.locator("main").innerText();`)
	for _, part := range []string{"from the browser", "public.orders", "nightly-report", "has WHERE", "estimate", "orders-agents/fix-an-order"} {
		if !strings.Contains(card, part) {
			t.Errorf("the card lacks %q:\n%s", part, card)
		}
	}
	grace.do(t, `
await page.fill("#comment", "ticket 4711");
await page.getByRole("button", {name: "Grant, once"}).click();
await page.getByText(/granted by/).waitFor();`)
	if out := <-answered; !strings.HasPrefix(out, "from the browser\n") {
		t.Errorf("psql: %q", out)
	}
}
