package issuer

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
)

func TestExchangeCarriesTheChain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	user, planner, reporter := w.user(t, nil), w.agent(t, "planner", nil), w.agent(t, "reporter", map[string]any{"workflow": "another"})
	form := exchange(user, append(actor(planner), "audience", "orders", "resource", resourceURN+"billing")...)
	first, p := w.issue(t, form)
	id := func(token string) string { return identity.TokenID(access.NewSecret(token)) }
	hop := access.Hop{Issuer: "dex", Subject: "planner-sub", Actor: "planner", Parent: id(user), ActorToken: id(planner),
		Attenuation: &access.Attenuation{Resources: []string{"billing", "orders"}}}
	want := access.Principal{Issuer: "dex", Subject: "ada-sub", User: "ada@example.com", Subagent: "planner", Workflow: "nightly",
		Groups: []string{"orders-agents"}, Chain: []access.Hop{hop},
		Token: access.TokenRef{ID: id(first), IssuedAt: w.clock.Now(), ExpiresAt: w.clock.Now().Add(DefaultLife)}}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
	event := w.last().Admin
	if event == nil || event.Act != "token.issue" || event.On != id(first) || !reflect.DeepEqual(event.Actor, want) || !strings.Contains(string(event.Input), `"jti"`) {
		t.Errorf("recorded %+v", w.last())
	}
	details := `[{"type":"chaperone","read_only":true,"tables":["public.orders"],"rows":10,"expires_in":60}]`
	_, p = w.issue(t, exchange(first, append(actor(reporter), "audience", "orders", "authorization_details", details)...))
	if len(p.Chain) != 2 || p.Chain[1].Parent != id(first) || p.Chain[1].Actor != "reporter" || p.Subagent != "reporter" ||
		p.Workflow != "nightly" || p.Token.ExpiresAt != w.clock.Now().Add(time.Minute) ||
		!reflect.DeepEqual(p.Chain[1].Attenuation, &access.Attenuation{Resources: []string{"orders"}, ReadOnly: true, Tables: []string{"public.orders"}, Rows: 10}) {
		t.Errorf("second hop %+v", p)
	}
	if hop, why := p.OutOfBounds(access.Resource{Name: "billing"}, access.Action{}); hop != 2 || why == "" {
		t.Errorf("the second hop is for billing still: %d %s", hop, why)
	}
}

// TestExchangeBindsToTheCertificate: RFC 8705, and nobody else's certificate.
func TestExchangeBindsToTheCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Certificates = true })
	post := func(certificate string, path string, form url.Values, headers ...string) reply {
		r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i+1 < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		shown := identity.ShownChain([]*x509.Certificate{{Raw: []byte(certificate)}})
		return w.do(t, r.WithContext(identity.WithShown(r.Context(), shown)))
	}
	first := post("mine", TokenPath, exchange(w.user(t, nil), "audience", "orders"))
	token := first.text("access_token")
	if first.status != 200 {
		t.Fatalf("%d %v", first.status, first.body)
	}
	for certificate, want := range map[string]int{"mine": 200, "theirs": 400} {
		if got := post(certificate, TokenPath, exchange(token)); got.status != want {
			t.Errorf("exchanged with the certificate %q: %d %v", certificate, got.status, got.body)
		}
	}
	if got := w.post(t, TokenPath, exchange(token)); got.status != 400 {
		t.Errorf("exchanged without a certificate: %d", got.status)
	}
	// Who asks about it does not hold its certificate.
	asked := w.post(t, IntrospectPath, url.Values{"token": {token}}, "Authorization", "Bearer "+w.agent(t, "resource-server", nil))
	thumbprint := identity.ShownChain([]*x509.Certificate{{Raw: []byte("mine")}}).Thumbprint()
	if cnf, _ := asked.body["cnf"].(map[string]any); asked.body["active"] != true || cnf["x5t#S256"] != thumbprint {
		t.Errorf("introspected: %v", asked.body)
	}
	if got := w.do(t, httptest.NewRequest("GET", MetadataPath, nil)); got.body["tls_client_certificate_bound_access_tokens"] != true {
		t.Errorf("metadata: %v", got.body)
	}
	for name, form := range map[string]url.Values{
		"no certificate is an actor": exchange(w.user(t, nil), "audience", "orders", "actor_token_type", typeCertificate),
		"a token and a certificate":  exchange(w.user(t, nil), "audience", "orders", "actor_token_type", typeCertificate, "actor_token", w.agent(t, "a", nil)),
	} {
		if got := w.post(t, TokenPath, form); got.status != 400 {
			t.Errorf("%s: %d %v", name, got.status, got.body)
		}
	}
}

// TestExchangeNeverOutlives: not the subject token, not the actor's.
func TestExchangeNeverOutlives(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	soon := map[string]any{"exp": w.clock.Now().Add(90 * time.Second).Unix()}
	for name, form := range map[string]url.Values{
		"subject": exchange(w.user(t, soon), append(actor(w.agent(t, "a", nil)), "audience", "orders")...),
		"actor":   exchange(w.user(t, nil), append(actor(w.agent(t, "a", soon)), "audience", "orders")...),
	} {
		if _, p := w.issue(t, form); p.Token.ExpiresAt != w.clock.Now().Add(90*time.Second) {
			t.Errorf("%s: until %s", name, p.Token.ExpiresAt)
		}
	}
}

func TestExchangeRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	user, agent := w.user(t, nil), w.agent(t, "planner", nil)
	bounded, _ := w.issue(t, exchange(user, append(actor(agent), "audience", "orders", "authorization_details",
		`[{"type":"chaperone","tables":["public.orders"],"rows":10,"depth":1}]`)...))
	last, _ := w.issue(t, exchange(bounded, actor(agent)...))
	stranger := w.user(t, map[string]any{"groups": []string{"everyone"}})
	details := func(text string) []string { return []string{"audience", "orders", "authorization_details", text} }
	for name, c := range map[string]struct {
		form url.Values
		code string
	}{
		"no grant type":           {url.Values{"subject_token": {user}}, "unsupported_grant_type"},
		"a password":              {url.Values{"grant_type": {"password"}}, "unsupported_grant_type"},
		"no subject":              {exchange("", "audience", "orders"), "invalid_request"},
		"no token":                {exchange("hunter2", "audience", "orders"), "invalid_request"},
		"a forged token":          {exchange(user[:len(user)-6]+"AAAAAA", "audience", "orders"), "invalid_request"},
		"SAML":                    {url.Values{"grant_type": {grantExchange}, "subject_token": {user}, "subject_token_type": {"urn:ietf:params:oauth:token-type:saml2"}}, "invalid_request"},
		"an actor without type":   {exchange(user, "audience", "orders", "actor_token", agent), "invalid_request"},
		"a type without actor":    {exchange(user, "audience", "orders", "actor_token_type", typeJWT), "invalid_request"},
		"a bad actor":             {exchange(user, append(actor("x.y.z"), "audience", "orders")...), "invalid_request"},
		"a delegated actor":       {exchange(user, append(actor(bounded), "audience", "orders")...), "invalid_request"},
		"twice a subject":         {exchange(user, "subject_token", user, "audience", "orders"), "invalid_request"},
		"a refresh token":         {exchange(user, "audience", "orders", "requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), "invalid_request"},
		"a scope":                 {exchange(user, "audience", "orders", "scope", "read"), "invalid_scope"},
		"no resource":             {exchange(user), "invalid_target"},
		"an unknown resource":     {exchange(user, "audience", "nowhere"), "invalid_target"},
		"a forbidden resource":    {exchange(user, "audience", "vault"), "invalid_target"},
		"one of two":              {exchange(user, "audience", "orders", "audience", "vault"), "invalid_target"},
		"a stranger":              {exchange(stranger, "audience", "orders"), "invalid_target"},
		"another kind of URI":     {exchange(user, "resource", "https://elsewhere.example"), "invalid_target"},
		"a wider resource":        {exchange(bounded, "audience", "billing"), "invalid_target"},
		"a wider table":           {exchange(bounded, details(`[{"type":"chaperone","tables":["public.customers"]}]`)...), "invalid_authorization_details"},
		"more rows":               {exchange(bounded, details(`[{"type":"chaperone","rows":11}]`)...), "invalid_authorization_details"},
		"a hop too many":          {exchange(last, actor(agent)...), "invalid_grant"},
		"unknown details":         {exchange(user, details(`[{"type":"chaperone","readonly":true}]`)...), "invalid_authorization_details"},
		"details in another case": {exchange(user, details(`[{"type":"chaperone","Read_Only":true}]`)...), "invalid_authorization_details"},
		"details twice":           {exchange(user, details(`[{"type":"chaperone","rows":1,"rows":9}]`)...), "invalid_authorization_details"},
		"details of another type": {exchange(user, details(`[{"type":"payment"}]`)...), "invalid_authorization_details"},
		"two details":             {exchange(user, details(`[{"type":"chaperone"},{"type":"chaperone"}]`)...), "invalid_authorization_details"},
		"details that break out":  {exchange(user, details(`[{"type":"chaperone"}],"x":[]`)...), "invalid_authorization_details"},
		"resources in details":    {exchange(user, details(`[{"type":"chaperone","resources":["billing"]}]`)...), "invalid_authorization_details"},
		"a life below nothing":    {exchange(user, details(`[{"type":"chaperone","expires_in":-1}]`)...), "invalid_authorization_details"},
		"another's token":         {exchange(w.user(t, map[string]any{"may_act": map[string]any{"sub": "other-sub"}}), append(actor(agent), "audience", "orders")...), "invalid_grant"},
		"an actor elsewhere":      {exchange(w.user(t, map[string]any{"may_act": map[string]any{"iss": gateway, "sub": "planner-sub"}}), append(actor(agent), "audience", "orders")...), "invalid_grant"},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.post(t, TokenPath, c.form, "X-Forwarded-For", name)
			if got.status != 400 || got.text("error") != c.code || !strings.HasPrefix(got.text("request_id"), "req_") || got.body["access_token"] != nil {
				t.Errorf("%d %v, want %s", got.status, got.body, c.code)
			}
			if d := w.last().Denied; d == nil || d.Denial.RequestID != got.text("request_id") || d.Client != name {
				t.Errorf("recorded %+v", w.last())
			}
		})
	}
	named := w.user(t, map[string]any{"may_act": map[string]any{"sub": "planner-sub"}})
	w.issue(t, exchange(named, append(actor(agent), "audience", "orders")...)) // the twin
}

func TestDepth(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Depth = 2 })
	one, _ := w.issue(t, exchange(w.user(t, nil), "audience", "orders"))
	two, p := w.issue(t, exchange(one))
	if len(p.Chain) != 2 || p.Chain[1].ActorToken != "" {
		t.Errorf("chain %+v", p.Chain)
	}
	if got := w.post(t, TokenPath, exchange(two)); got.text("error") != "invalid_grant" {
		t.Errorf("%v", got.body)
	}
}

// TestFormIsStrict: what two programs could read differently is refused.
func TestFormIsStrict(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	good := exchange(w.user(t, nil), "audience", "orders").Encode()
	for name, c := range map[string]struct {
		path, media, body string
		header            []string
		status            int
	}{
		"JSON":                {TokenPath, "application/json", `{}`, nil, 400},
		"in the URL":          {TokenPath + "?audience=billing", "application/x-www-form-urlencoded", good, nil, 400},
		"semicolons":          {TokenPath, "application/x-www-form-urlencoded", good + ";x=1", nil, 400},
		"too large":           {TokenPath, "application/x-www-form-urlencoded", good + "&x=" + strings.Repeat("a", maxForm), nil, 413},
		"Basic":               {TokenPath, "application/x-www-form-urlencoded", good, []string{"Basic eDp5"}, 401},
		"a bearer token":      {TokenPath, "application/x-www-form-urlencoded", good, []string{"Bearer x"}, 401},
		"two headers":         {TokenPath, "application/x-www-form-urlencoded", good, []string{"Bearer x", "Bearer x"}, 400},
		"an unknown endpoint": {"/oauth/authorize", "application/x-www-form-urlencoded", good, nil, 404},
		"the twin":            {TokenPath, "application/x-www-form-urlencoded; charset=utf-8", good, nil, 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest("POST", c.path, strings.NewReader(c.body))
			r.Header.Set("Content-Type", c.media)
			r.Header["Authorization"] = c.header
			if got := w.do(t, r); got.status != c.status || got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%d %v %v", got.status, got.body, got.header)
			}
		})
	}
}

// TestUnrecordedIsNotIssued: no evidence, no token.
func TestUnrecordedIsNotIssued(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.broken = errors.New("disk full")
	got := w.post(t, TokenPath, exchange(w.user(t, nil), "audience", "orders"))
	b, _ := json.Marshal(got.body)
	if got.status != 503 || got.text("error") != "temporarily_unavailable" || strings.Contains(string(b), "eyJ") || strings.Contains(string(b), "disk") {
		t.Errorf("%d %s", got.status, b)
	}
}

func TestRateIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	refused := 0
	for range burst + 5 {
		if got := w.post(t, TokenPath, url.Values{}, "X-Forwarded-For", "1.2.3.4, 10.0.0.1"); got.status == 429 {
			refused++
		}
	}
	if refused != 5 || len(w.events) != burst {
		t.Errorf("%d refused, %d recorded", refused, len(w.events))
	}
	if got := w.post(t, TokenPath, url.Values{}, "X-Forwarded-For", "1.2.3.4, 10.0.0.2"); got.status == 429 {
		t.Error("another source is refused too")
	}
	w.clock.Advance(time.Second)
	if got := w.post(t, TokenPath, url.Values{}, "X-Forwarded-For", "10.0.0.1"); got.status == 429 {
		t.Error("the source stays refused")
	}
	for i := range maxSources + 10 {
		w.gate.limiter(string(rune(i)))
	}
	if len(w.gate.index) != maxSources || w.gate.recent.Len() != maxSources {
		t.Errorf("%d sources are remembered", len(w.gate.index))
	}
}

func TestOwnTokensArePinned(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	now := w.clock.Now()
	claims := map[string]any{"iss": gateway, "aud": gateway, "sub": "ada-sub", "origin": w.provider, "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
		"act": map[string]any{"sub": "x", "parent": "tok_1", "attenuation": map[string]any{"read_only": true}}}
	for name, c := range map[string]struct {
		keys    *Keys
		typ     string
		changes map[string]any
		want    string // "" is accepted
	}{
		"the twin":               {w.Keys, "at+jwt", nil, ""},
		"an id token":            {w.Keys, "JWT", nil, "typ"},
		"the provider's key":     {w.foreign, "at+jwt", nil, "key"},
		"another audience":       {w.Keys, "at+jwt", map[string]any{"aud": "chaperone"}, "audience"},
		"no chain":               {w.Keys, "at+jwt", map[string]any{"act": nil}, "act"},
		"no origin":              {w.Keys, "at+jwt", map[string]any{"origin": nil}, "origin"},
		"an unknown origin":      {w.Keys, "at+jwt", map[string]any{"origin": "https://gone.example"}, "not configured"},
		"a long life":            {w.Keys, "at+jwt", map[string]any{"exp": now.Add(2 * time.Hour).Unix()}, "longer"},
		"an unknown attenuation": {w.Keys, "at+jwt", map[string]any{"act": map[string]any{"sub": "x", "attenuation": map[string]any{"new": 1}}}, "attenuation"},
		"a miscased attenuation": {w.Keys, "at+jwt", map[string]any{"act": map[string]any{"sub": "x", "attenuation": map[string]any{"READ_ONLY": false}}}, "attenuation"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.verifier.Verify(t.Context(), access.NewSecret(signed(t, c.keys, c.typ, claims, c.changes)))
			if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, identity.ErrTokenRejected) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
