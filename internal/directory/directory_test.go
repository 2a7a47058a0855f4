package directory

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

var errRejected = errors.New("rejected: internal detail")

func ask(t *testing.T, method string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	h := Handler(Config{
		Verify: func(_ context.Context, token access.Secret) (access.Principal, error) {
			switch token.Reveal() {
			case "good":
				return access.Principal{User: "ada", Subagent: "agent", Token: access.TokenRef{ID: "tok_1"},
					Chain: []access.Hop{{Actor: "planner", Attenuation: &access.Attenuation{ReadOnly: true}}}}, nil
			case "later":
				return access.Principal{}, errors.New("no keys")
			}
			return access.Principal{}, errRejected
		},
		MayConnect: func(_ context.Context, p access.Principal, r access.Resource) bool {
			return p.User == "ada" && r.Name != "vault"
		},
		Resources: func() []access.Resource {
			return []access.Resource{{Name: "orders", Kind: access.Postgres}, {Name: "vault", Kind: access.Postgres}, {Name: "billing", Kind: access.HTTP},
				{Name: "cluster", Kind: access.Kubernetes}, {Name: "web", Kind: access.SSH}, {Name: "closed", Kind: access.SSH}}
		},
		SSHPort: func() int { return 2222 }, Accounts: func(resource string) []string { return map[string][]string{"web": {"deploy", "log"}}[resource] },
		PublicURL:    func() *url.URL { return &url.URL{Scheme: "https", Host: "gw.test:8443"} },
		PostgresPort: func() int { return 5432 }, TokenEndpoint: "https://gw.test/oauth/token",
		Rejected: func(err error) bool { return errors.Is(err, errRejected) }, Log: slog.New(slog.DiscardHandler),
	})
	r := httptest.NewRequest(method, Path, nil)
	r.Host = "evil.test" // the caller's own word
	if headers != nil {
		r.Header["Authorization"] = headers
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestDocumentShowsWhatTheTokenReaches(t *testing.T) {
	t.Parallel()
	w := ask(t, "GET", "Bearer good")
	var d Document
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Resources) != 4 || d.Resources[0].Host != "gw.test" || d.Resources[0].Port != 5432 || d.Resources[0].Database != "orders" ||
		d.Resources[1].URL != "https://gw.test:8443/http/billing/" || d.Through[0] != (Hop{"planner", "read only"}) || d.TokenID != "tok_1" {
		t.Errorf("%+v", d)
	}
	if c, h := d.Resources[2], d.Resources[3]; c.URL != "https://gw.test:8443/k8s/cluster" || !strings.Contains(c.How, "chaperone env cluster") ||
		h.Host != "gw.test" || h.Port != 2222 || h.User != "deploy" || len(h.Users) != 2 || !strings.Contains(h.How, "deploy@web@gw.test") || len(d.More) < 4 {
		t.Errorf("%+v\n%+v %v", c, h, d.More)
	}
	if strings.Contains(w.Body.String(), "vault") || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%s %v", w.Body, w.Header())
	}
}

func TestNobodyLearnsAnything(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method  string
		headers []string
		status  int
	}{
		"no token":    {"GET", nil, 401},
		"a bad token": {"GET", []string{"Bearer bad"}, 401},
		"two headers": {"GET", []string{"Bearer good", "Bearer good"}, 401},
		"Basic":       {"GET", []string{"Basic good"}, 401},
		"no verdict":  {"GET", []string{"Bearer later"}, 503},
		"a POST":      {"POST", []string{"Bearer good"}, 403},
	} {
		w := ask(t, c.method, c.headers...)
		if body := w.Body.String(); w.Code != c.status || strings.Contains(body, "orders") || strings.Contains(body, "detail\":\"rejected") || !strings.Contains(body, "req_") {
			t.Errorf("%s: %d %s", name, w.Code, body)
		}
	}
}
