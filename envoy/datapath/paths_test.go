package datapath_test

import (
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/xds"
)

// lenient answers like the most forgiving of servers: it decodes until nothing
// changes, cuts path parameters, reads backslashes as slashes, joins slashes and
// climbs. Whoever reaches /admin by any spelling gets the secret.
func lenient(w http.ResponseWriter, r *http.Request) {
	p, _, _ := strings.Cut(r.RequestURI, "?")
	for {
		next, err := url.PathUnescape(p)
		if err != nil || next == p {
			break
		}
		p = next
	}
	p, _, _ = strings.Cut(strings.ReplaceAll(p, `\`, "/"), "\x00")
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	if strings.HasPrefix(path.Clean("/"+strings.Join(segments, "/")), "/admin") {
		w.Write([]byte("the secret"))
		return
	}
	w.Write([]byte("public"))
}

// TestPathConfusion: policy allows what lies below /pub/, and the target gives
// its secret away below /admin, however either is spelled.
func TestPathConfusion(t *testing.T) {
	t.Parallel()
	target := newTarget(t, lenient)
	w := newWorld()
	w.decide = below("/pub/")
	g := newGateway(t, parts{auth: w.server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	for _, attack := range []string{
		"/admin", "//admin", "/./admin", "/%61dmin", "/%2561dmin",
		"/pub/../admin", "/pub/%2e%2e/admin", "/pub/.%2E/admin", "/pub/%2e./admin", "/pub/x/../../admin",
		"/pub/..%2fadmin", "/pub%2f..%2fadmin", "/pub%2F..%2Fadmin",
		"/pub/%252e%252e/admin", "/pub/..%252fadmin", "/pub/%25252e%25252e/admin",
		"/pub/..;/admin", "/pub/..;x=1/admin", "/pub/%2e%2e;/admin", "/pub/..%3b/admin", "/pub/..%3bx/admin", "/admin;x=1", "/pub/;/../../admin",
		`/pub\..\admin`, `/pub/..\admin`, "/pub/..%5cadmin", "/pub%5c..%5cadmin",
		"/admin%00/pub/", "/admin%00", "/admin/%2e",
		"/pub/../admin?x=/pub/", "/admin?/pub/", "/pub/%2e%2e/%61dmin",
	} {
		t.Run(attack, func(t *testing.T) {
			conn, err := net.Dial("tcp", target.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if control := exchange(t, conn, line("GET", attack)); control.body != "the secret" {
				t.Fatalf("the attack does not work straight at the target: %q", control.body)
			}
			target.take()
			got := g.raw(line("GET", "/http/t"+attack, bearer))
			if got.status < 400 || strings.Contains(got.body, "secret") {
				t.Errorf("got %d %q", got.status, got.body)
			}
			if seen := target.take(); len(seen) != 0 {
				t.Errorf("the target was reached with %s", seen[0].path)
			}
		})
	}
	for _, twin := range []struct{ asked, reached string }{
		{"/pub/page", "/pub/page"},
		{"/pub/", "/pub/"},
		{"/pub/a..b/...", "/pub/a..b/..."},
		{"/pub/a%20b?x=%2e%2e%2Fadmin", "/pub/a%20b?x=%2e%2e%2Fadmin"},
		{"/pub/caf%C3%A9", "/pub/caf%C3%A9"},
		{"/pub/(1),'2'!@:$&+=*~", "/pub/(1),'2'!@:$&+=*~"},
		{"/other/../pub/page", "/pub/page"}, // what is judged is what is reached
		{"//pub//page", "/pub/page"},
		{"/pub//../admin", "/pub/admin"},
	} {
		got := g.raw(line("GET", "/http/t"+twin.asked, bearer))
		seen := target.take()
		if got.status != http.StatusOK || got.body != "public" || len(seen) != 1 || seen[0].path != twin.reached {
			t.Errorf("%s: got %d %q, target %+v", twin.asked, got.status, got.body, seen)
		}
	}
}

// TestPathsCannotLeaveTheirResource: another resource, or the API, is not
// reached under the name of the first.
func TestPathsCannotLeaveTheirResource(t *testing.T) {
	t.Parallel()
	one, two := newTarget(t, nil), newTarget(t, nil)
	w := newWorld()
	w.decide = func(r access.Request) access.Decision {
		if r.Resource.Name != "t" {
			return denial()
		}
		return allowAll(r)
	}
	g := newGateway(t, parts{auth: w.server(t, time.Minute)},
		xds.HTTPResource{Name: "t", Address: one.URL}, xds.HTTPResource{Name: "t2", Address: two.URL})
	for _, p := range []string{"/http/t/../t2/x", "/http/t/%2e%2e/t2/x", "/http/t/..%2ft2/x", "/http/t2/x", "/http//t2/x", "/http/%742/x", "/http/t/%2e%2e%2ft2/x"} {
		if got := g.raw(line("GET", p, bearer)); got.status < 400 {
			t.Errorf("%s: %d", p, got.status)
		}
	}
	if seen := two.take(); len(seen) != 0 {
		t.Errorf("the other target was reached: %+v", seen)
	}
	if got := g.raw(line("GET", "/http/t2/../t/x", bearer)); got.status != http.StatusOK || one.take()[0].path != "/x" {
		t.Errorf("the twin: %d", got.status)
	}
}
