package e2e

import (
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// keycloak is started with the run, beside all else, and is ready when its tests
// come: it takes its time. Every Site believes it from the start.
var keycloak struct {
	*localserver.Keycloak
	ready chan error
}

// The gateway as Keycloak knows it: which one it is does not matter.
const (
	samlAudience  = "https://gateway.e2e.test"
	samlRecipient = "https://gateway.e2e.test/oauth/token"
)

// kim works on the platform and reads recordings, and is known to Keycloak alone.
const kim = "kim@example.com"

// startKeycloak starts it when one of its tests will run.
func startKeycloak(dir string) (err error) {
	if keycloak.Keycloak, err = localserver.NewKeycloak(); err != nil {
		return err
	}
	pattern, err := regexp.Compile(flag.Lookup("test.run").Value.String())
	if err != nil || !pattern.MatchString("TestKeycloak") || flag.Lookup("test.list").Value.String() != "" {
		return err
	}
	keycloak.ready = make(chan error, 1)
	go func() {
		keycloak.ready <- keycloak.Start(context.Background(), filepath.Join(dir, "keycloak"), localserver.KeycloakConfig{
			People: []localserver.Person{{Email: demo.Ada, Groups: []string{"orders-agents"}}, {Email: demo.Alan, Groups: []string{"platform"}}, {Email: demo.Tom},
				{Email: kim, Groups: []string{"security", "platform"}}},
			SAMLAudience: samlAudience, SAMLRecipient: samlRecipient, Console: "https://localhost:*"})
	}()
	return nil
}

// withKeycloak makes the demo's configuration believe it, as docs/identity says.
func withKeycloak(text string) string {
	text = strings.Replace(text, "  logins:\n", `  logins:
    - {issuer: keycloak, client: console, token: access, scope: openid email profile}
    - {issuer: keycloak-saml, label: keycloak by SAML}
`, 1)
	return strings.Replace(text, "  issuers:\n", fmt.Sprintf(`  issuers:
    - name: keycloak
      oidc: {issuer: %q, audiences: [chaperone], algorithms: [RS256]}
      claims: {user: email, subagent: azp, groups: groups}
    - name: keycloak-saml
      saml: {entity_id: %q, metadata_url: %q, audience: %q, recipient: %q, subagent: console}
      claims: {user: email, groups: groups}
`, keycloak.Issuer, keycloak.Issuer, keycloak.Metadata, samlAudience, samlRecipient), 1)
}

// TestKeycloak: OpenID Connect for a program and for a person through one, and
// SAML for people.
func TestKeycloak(t *testing.T) {
	t.Parallel()
	s := site(t)
	select {
	case err := <-keycloak.ready:
		keycloak.ready <- err
		if err != nil {
			t.Fatal(err)
		}
	case <-t.Context().Done():
		t.Fatal("keycloak is not ready")
	}
	// The gateway has asked for keys before there were any, and asks again within
	// ten seconds.
	agent, err := keycloak.AgentToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		status, _ := ask(t, certified(t, s), "GET", s.URL()+"/.well-known/chaperone", agent, "")
		metadata, _ := oauth(t, s, "/oauth/token", samlExchange(unknownAssertion()))
		if status == http.StatusServiceUnavailable || metadata == http.StatusServiceUnavailable {
			return fmt.Errorf("keycloak's keys are not there yet: %d %d", status, metadata)
		}
		return nil
	})
	t.Run("OIDC", func(t *testing.T) {
		t.Parallel()
		for who, want := range map[string]int{demo.Ada: http.StatusOK, demo.Tom: http.StatusForbidden} {
			tok, err := keycloak.Token(t.Context(), who)
			if err != nil {
				t.Fatal(err)
			}
			if res := request(t, s, "GET", "/http/billing/customers/1", tok, ""); res.StatusCode != want && (want == 200 || res.StatusCode != http.StatusNotFound) {
				t.Errorf("%s: %s", who, res.Status)
			}
			if err := open(t, s, tok); (want == http.StatusOK) != (err == nil) {
				t.Errorf("%s, psql's protocol: %v", who, err)
			}
		}
		// The program's own token names it, has no groups, and is an actor.
		if status, body := ask(t, certified(t, s), "GET", s.URL()+"/.well-known/chaperone", agent, ""); status != http.StatusOK ||
			!strings.Contains(body, `"subagent":"agent"`) || !strings.Contains(body, `"resources":[]`) {
			t.Errorf("the program itself: %d %s", status, body)
		}
		ada, err := keycloak.Token(t.Context(), demo.Ada)
		if err != nil {
			t.Fatal(err)
		}
		if err := open(t, s, exchanged(t, s, ada, agent, "audience", "orders")); err != nil {
			t.Errorf("handed on: %v", err)
		}
	})
	t.Run("SAML", func(t *testing.T) {
		t.Parallel()
		testSAML(t, s)
	})
	t.Run("Console", func(t *testing.T) {
		t.Parallel()
		testConsoleAtKeycloak(t, s)
	})
}

// unknownAssertion has the form of one of Keycloak's, and a signature of nobody's.
var unknownAssertion = sync.OnceValue(func() string {
	const algorithm = `Algorithm="http://www.w3.org/2001/`
	return base64.StdEncoding.EncodeToString([]byte(`<Assertion xmlns="urn:oasis:names:tc:SAML:2.0:assertion" ID="a" Version="2.0"><Issuer>` + keycloak.Issuer +
		`</Issuer><Signature xmlns="http://www.w3.org/2000/09/xmldsig#"><SignedInfo><CanonicalizationMethod ` + algorithm + `10/xml-exc-c14n#"/><SignatureMethod ` +
		algorithm + `04/xmldsig-more#rsa-sha256"/><Reference URI="#a"><Transforms><Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"/><Transform ` +
		algorithm + `10/xml-exc-c14n#"/></Transforms><DigestMethod ` + algorithm + `04/xmlenc#sha256"/><DigestValue>AA==</DigestValue></Reference></SignedInfo>` +
		`<SignatureValue>AA==</SignatureValue></Signature></Assertion>`))
})

func samlExchange(response string, pairs ...string) url.Values {
	form := exchangeForm(response, "", pairs...)
	form.Set("subject_token_type", "urn:ietf:params:oauth:token-type:saml2")
	return form
}

func testSAML(t *testing.T, s *demo.Site) {
	response := func(who string) string {
		r, err := keycloak.SAMLResponse(t.Context(), who)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	take := func(form url.Values) string {
		status, out := oauth(t, s, "/oauth/token", form)
		token, ok := out["access_token"].(string)
		if status != http.StatusOK || !ok {
			t.Fatalf("exchange: %d %v\n%s", status, out, tail(s.Gateway.Log(), 5))
		}
		return token
	}
	ada := response(demo.Ada)
	// Attacks first: none of them uses the assertion up.
	raw, err := base64.StdEncoding.DecodeString(ada)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	assertion := text[strings.Index(text, "<saml:Assertion"):]
	assertion = assertion[:strings.Index(assertion, "</saml:Assertion>")+len("</saml:Assertion>")]
	signature := regexp.MustCompile(`(?s)<dsig:Signature.*?</dsig:Signature>`).FindString(assertion)
	if signature == "" {
		t.Fatalf("the assertion is not signed: %s", text)
	}
	bare := strings.Replace(assertion, signature, "", 1)
	evil := strings.ReplaceAll(strings.Replace(bare, ` ID="`, ` ID="evil`, 1), demo.Ada, demo.Alan)
	for name, forged := range map[string]string{
		"unsigned":        strings.Replace(text, signature, "", 1),
		"changed":         strings.ReplaceAll(text, demo.Ada, demo.Alan),
		"wrapped, before": strings.Replace(text, assertion, evil+assertion, 1),
		"wrapped, around": strings.Replace(text, assertion, strings.Replace(evil, "<saml:Subject>", signature+"<saml:Advice>"+assertion+"</saml:Advice><saml:Subject>", 1), 1),
		"a comment":       strings.ReplaceAll(text, demo.Ada, "ada@example.com<!---->.evil.test"),
	} {
		if forged == text {
			t.Errorf("%s: nothing was forged", name)
		}
		if status, out := oauth(t, s, "/oauth/token", samlExchange(base64.StdEncoding.EncodeToString([]byte(forged)))); status != http.StatusBadRequest {
			t.Errorf("%s: %d %v", name, status, out)
		}
	}
	if err := open(t, s, take(samlExchange(ada, "audience", "orders"))); err != nil {
		t.Errorf("Ada's: %v", err)
	}
	if status, out := oauth(t, s, "/oauth/token", samlExchange(ada, "audience", "orders")); status != http.StatusBadRequest {
		t.Errorf("replayed: %d %v", status, out)
	}
	// Alan logs in, and is the operator that he is.
	alan := take(samlExchange(response(demo.Alan)))
	if out, err := cli(t, s, alan, "check", "--live"); err != nil {
		t.Errorf("the operator: %v %s", err, out)
	}
	if res := request(t, s, "GET", "/http/billing/customers/1", alan, ""); res.StatusCode == http.StatusOK {
		t.Error("the operator reaches billing")
	}
}

// closeKeycloak stops it, ready or not.
func closeKeycloak() {
	if keycloak.ready != nil {
		if err := <-keycloak.ready; err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		_ = keycloak.Close() // it only waits
	}
}
