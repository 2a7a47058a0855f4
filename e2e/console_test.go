package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// screenshots is where those of the documents are written anew:
// go test ./e2e -run 'TestConsole' -screenshots ../docs
var screenshots = flag.String("screenshots", "", "folder for the pictures of docs/console.md")

// picture takes one of a part of the page as it is.
func (p tab) picture(t *testing.T, part, name string) {
	t.Helper()
	if *screenshots == "" {
		return
	}
	path, err := filepath.Abs(filepath.Join(*screenshots, name))
	if err != nil {
		t.Fatal(err)
	}
	p.do(t, `await page.locator(part).last().screenshot({path});`, "path", path, "part", part)
}

// atDex logs who in at Dex, with a browser.
func atDex(t *testing.T, s *demo.Site, who string) tab {
	t.Helper()
	p := newTab(t)
	p.do(t, `
await page.goto(url + "/console/approvals?state=all");
await page.getByRole("link", {name: "dex", exact: true}).click();
await page.fill("#login", who);
await page.fill("#password", password);
await page.click("#submit-login");
await page.waitForURL(url + "/console/approvals?state=all");`, "url", s.URL(), "who", who, "password", localserver.DexPassword)
	return p
}

// post has a page of the console that is open send a form of its own session.
const post = `
const answer = await page.evaluate(async ([path, csrf]) => {
  const token = csrf ? document.querySelector("header form input[name=csrf]").value : "guessed";
  const answer = await fetch(path, {method: "POST", body: new URLSearchParams({csrf: token}), redirect: "manual"});
  return answer.type === "opaqueredirect" ? "done" : String(answer.status);
}, [path, csrf]);
return answer;`

// quiet fails when a page ran what it should not, or broke its own policy.
func (p tab) quiet(t *testing.T) {
	t.Helper()
	if said := p.do(t, `return said.filter((line) => !/status of 40[13]/.test(line)).join("\n")`); said != "" {
		t.Errorf("the page says: %s", said)
	}
}

// hostile is what a subagent would write to have a reviewer's browser act.
const hostile = `</pre><script>alert("ran")</script><img src=x onerror="alert('ran')"><a href="javascript:alert('ran')">here</a>` + "\u202e\u0007"

// TestConsoleGrants: a reviewer logs in, sees what psql waits for and grants it,
// whatever is written in it.
func TestConsoleGrants(t *testing.T) {
	t.Parallel()
	s := site(t)
	grace := atDex(t, s, demo.Grace)
	grace.do(t, `await page.goto(url + "/console/approvals");`, "url", s.URL())
	psql := exec.CommandContext(t.Context(), filepath.Join(s.Database.Bin, "psql"), "-X", "-At", s.ConnString(false),
		"-c", "update orders set status = 'from the browser' where id = 61 returning status, 'ticket 4711'")
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
	find := `
for (const until = Date.now() + 30_000; Date.now() < until; ) { // those of other tests may come first
  await page.goto(url + "/console/approvals");
  const link = page.locator("#approvals a", {hasText: "UPDATE public.orders"});
  await link.first().waitFor();
  for (const href of await link.evaluateAll((all) => all.map((a) => a.href))) {
    await page.goto(href);
    if ((await page.locator("main").innerText()).includes(text)) {
      return await page.locator("main").innerText();
    }
  }
}
throw new Error("it is not on the list");`
	grace.do(t, `await page.locator("#approvals a", {hasText: "UPDATE public.orders"}).first().waitFor();`)
	card := grace.do(t, find, "url", s.URL(), "text", "ticket 4711")
	for _, part := range []string{"from the browser", "public.orders", "nightly-report", "has WHERE", "estimate", "orders-agents/fix-an-order"} {
		if !strings.Contains(card, part) {
			t.Errorf("the card lacks %q:\n%s", part, card)
		}
	}
	grace.picture(t, "body", "console-approval.png")
	if wide := grace.do(t, `
await page.setViewportSize({width: 390, height: 800});
const wide = await page.evaluate(() => document.documentElement.scrollWidth);
await page.setViewportSize({width: 1100, height: 720});
return wide;`); wide > "390" {
		t.Errorf("on a phone the card is %s wide", wide)
	}
	grace.do(t, `
await page.fill("#comment", hostile);
await page.getByRole("button", {name: "Grant, once"}).click();
await page.getByText(/granted by/).waitFor();`, "hostile", "ticket 4711 "+hostile)
	if out := <-answered; !strings.HasPrefix(out, "from the browser|") {
		t.Errorf("psql: %q", out)
	}
	grace.quiet(t)
}

// TestConsoleRefuses: attacks on a grant from browsers. The twin is
// TestConsoleGrants; the control, that the cookie goes along, is in the answer.
func TestConsoleRefuses(t *testing.T) {
	t.Parallel()
	s := site(t)
	id, done, _ := hold(t, s, token(t, s, demo.Rhea), "update orders set status = '"+strings.ReplaceAll(hostile, "'", "''")+"' where id = 62")
	path := "/console/approvals/" + id
	for who, want := range map[string]string{demo.Sofia: "you are not a reviewer", demo.Rhea: "nobody reviews their own request", demo.Alan: "this needs a person with the role reviewer or auditor"} {
		p := atDex(t, s, who)
		if got := p.do(t, post, "path", path+"/approve", "csrf", "own"); got != "403" {
			t.Errorf("%s grants it: %s", who, got)
		}
		if text := p.do(t, `await page.goto(url); return await page.locator("main").innerText();`, "url", s.URL()+path); !strings.Contains(text, want) || strings.Contains(text, "Grant") {
			t.Errorf("%s sees:\n%s", who, text)
		}
		p.quiet(t)
	}
	grace := atDex(t, s, demo.Grace)
	grace.do(t, `await page.goto(url);`, "url", s.URL()+path)
	if found := grace.do(t, `return await page.locator("pre *, dd *, main img, main script, main a").count();`); found != "0" {
		t.Errorf("%s elements of the statement's own", found)
	}
	if text := grace.do(t, `return await page.locator("main").innerText();`); !strings.Contains(text, `<script>alert("ran")</script>`) || !strings.Contains(text, `\u202e\x07`) {
		t.Errorf("the statement is not shown as it is:\n%s", text)
	}
	grace.quiet(t)
	// The same text as a page's own: it would have run.
	if ran := grace.do(t, `
const other = await context.newPage();
const ran = new Promise((resolve) => other.on("dialog", (d) => { resolve(d.message()); d.dismiss(); }));
await other.setContent(hostile);
const message = await ran;
await other.close();
return message;`, "hostile", hostile); ran != "ran" {
		t.Errorf("the control: %q", ran)
	}
	if got := grace.do(t, post, "path", path+"/approve", "csrf", ""); got != "403" {
		t.Errorf("with a guessed token: %s", got)
	}
	// A page on another port of this host is of another origin, and the cookie goes along.
	forger := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<form method=post action="%s/approve"><button>Win a prize</button></form><iframe src="%s"></iframe>`, s.URL()+path, s.URL()+path)
	}))
	defer forger.Close()
	got := grace.do(t, `
await page.goto(forger);
const [request] = await Promise.all([page.waitForRequest((r) => r.method() === "POST"), page.getByRole("button").click()]);
await page.waitForURL(/approve$/);
return (/chaperone-session=/.test((await request.allHeaders()).cookie) ? "with the cookie: " : "without the cookie: ") + await page.locator("main").innerText();`,
		"forger", strings.Replace(forger.URL, "127.0.0.1", "localhost", 1))
	if !strings.HasPrefix(got, "with the cookie: ") || !strings.Contains(got, "did not come from a page of the console") {
		t.Errorf("a forged form: %s", got)
	}
	if out, err := cli(t, s, person(t, s, demo.Grace), "approvals", "refuse", id); err != nil {
		t.Errorf("it is not pending any more: %v %s", err, out)
	}
	if err := <-done; err == nil {
		t.Error("it ran")
	}
}

// TestConsoleReplays: an auditor plays a terminal back, and reads what a
// database's client saw, whatever was in them.
func TestConsoleReplays(t *testing.T) {
	t.Parallel()
	s := site(t)
	shell, sql := exchanged(t, s, token(t, s, demo.Omar), "", "audience", "web"), exchanged(t, s, token(t, s, demo.Ada), "", "audience", "orders")
	c := hostsWith(t, s, shell)
	script := `printf 'first \033[31mred\033[0m \033]0;title\007\033]8;;javascript:alert(1)\007link\033]8;;\007 <script>alert(1)</script>\n'; sleep 1; printf 'second\n'`
	if out, errs, status := c.run(t, "", "ssh", "-tt", "web", ": free; "+script); status != 0 || !strings.Contains(out, "second") {
		t.Fatalf("%d %q %q", status, out, errs)
	}
	conn := connect(t, s, sql)
	if _, err := read(t.Context(), conn, "select id, name, ssn, '"+strings.ReplaceAll(hostile, "'", "''")+"' as \"<b>note</b>\" from customers where id = 1"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	sofia := atDex(t, s, demo.Sofia)
	shown := sofia.do(t, `
await page.goto(url);
await page.locator(".speed").selectOption("10");
await page.getByRole("button", {name: "Play the terminal"}).click();
const screen = page.locator(".screen");
await screen.getByText("second").waitFor();
const shown = await screen.innerText();
if (picture) {
  await page.waitForTimeout(500);
}
return shown;`, "url", s.URL()+"/console/sessions/"+ended(t, s, person(t, s, demo.Sofia), shell), "picture", *screenshots)
	if text := strings.Join(strings.Fields(shown), " "); !strings.Contains(text, "first red link <script>alert(1)</script> second") {
		t.Errorf("the terminal shows %q", shown)
	}
	sofia.picture(t, ".act:has(.terminal)", "console-terminal.png")
	sofia.do(t, `
const screen = page.locator(".screen");
const at = (time) => page.evaluate((time) => document.querySelector(".terminal").player.seek(time), time);
await at(0);
await screen.getByText("second").waitFor({state: "detached"});
await at("100%");
await screen.getByText("second").waitFor();`)
	sofia.quiet(t)
	text := sofia.do(t, `await page.goto(url); return await page.locator("main").innerText();`, "url", s.URL()+"/console/sessions/"+ended(t, s, person(t, s, demo.Sofia), sql))
	for _, part := range []string{"allow", "orders-agents/read", "<b>note</b>", `<img src=x onerror="alert('ran')">`, `\u202e\x07`, "SELECT 1"} {
		if !strings.Contains(text, part) {
			t.Errorf("the session lacks %q:\n%s", part, text)
		}
	}
	if found := sofia.do(t, `return await page.locator("pre *, dd *").count();`); found != "0" {
		t.Errorf("%s elements of the client's own", found)
	}
	sofia.quiet(t)
}

// testConsoleAtKeycloak: a person logs in by SAML, and by OpenID Connect. Who
// has their cookie is them, until an operator takes it back.
func testConsoleAtKeycloak(t *testing.T, s *demo.Site) {
	login := `
await page.goto(url + "/console/sessions");
await page.getByRole("link", {name: way, exact: true}).click();
await page.fill("#username", who);
await page.fill("#password", password);
await page.click("#kc-login");
await page.waitForURL(url + "/console/sessions");
return await page.locator("header").innerText();`
	args := []string{"url", s.URL(), "who", kim, "password", localserver.KeycloakPassword, "way"}
	p, other, thief := newTab(t), newTab(t), newTab(t)
	if header := p.do(t, login, append(args, "keycloak by SAML")...); !strings.Contains(header, kim) || !strings.Contains(header, "Status") {
		t.Errorf("by SAML: %s", header)
	}
	if header := other.do(t, login, append(args, "keycloak")...); !strings.Contains(header, kim) {
		t.Errorf("by OpenID Connect: %s", header)
	}
	cookie := p.do(t, `
const found = (await context.cookies()).filter((c) => c.name.startsWith("__Host-chaperone"));
if (found.length !== 1 || !found[0].httpOnly || !found[0].secure || found[0].sameSite !== "Lax") {
  throw new Error(JSON.stringify(found));
}
return JSON.stringify(found);`)
	steal := `
await context.addCookies(JSON.parse(cookie));
await page.goto(url + "/console/sessions");
return await page.locator("main").innerText();`
	if text := thief.do(t, steal, "cookie", cookie, "url", s.URL()); !strings.HasPrefix(text, "Sessions") {
		t.Errorf("the control, with the cookie of another browser: %s", text)
	}
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--user", kim, "--cause", "laptop stolen"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for name, one := range map[string]tab{"SAML": p, "OpenID Connect": other, "stolen": thief} {
		eventually(t, func() error {
			if text := one.do(t, `await page.goto(url + "/console/sessions"); return await page.locator("main").innerText();`, "url", s.URL()); !strings.HasPrefix(text, "Log in") {
				return fmt.Errorf("%s: after the kill: %s", name, text)
			}
			return nil
		})
	}
	// Logging in again is another session, which Log out ends.
	if text := p.do(t, `
await page.goto(url + "/console/sessions");
await page.getByRole("link", {name: way, exact: true}).click();
await page.waitForURL(url + "/console/sessions");
await page.getByRole("button", {name: "Log out"}).click();
await page.waitForURL(url + "/console/login");
await page.goto(url + "/console/sessions");
return await page.locator("main").innerText();`, "url", s.URL(), "way", "keycloak by SAML"); !strings.HasPrefix(text, "Log in") {
		t.Errorf("after logging out: %s", text)
	}
}
