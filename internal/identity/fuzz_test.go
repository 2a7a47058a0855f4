package identity

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// FuzzVerify: whatever the text, there is a principal only for what the issuer
// has signed, the error is a rejection and does not quote the token, and nobody
// is asked for anything but the keys.
func FuzzVerify(f *testing.F) {
	key := newES256(f, "k1")
	p := newProvider(f, key)
	v := newVerifier(f, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	good := asJSON(p.claims(map[string]any{"act": acts(3)}))
	valid := key.sign(key.header(), good)
	mustAccept(f, v, access.NewSecret(valid))
	parts := strings.Split(valid, ".")
	for _, seed := range []string{
		valid, parts[0] + "." + parts[1] + ".", valid + "=", "..", "a.b.c.d.e", "Bearer " + valid,
		key.sign(`{"alg":"none"}`, good), key.sign(`{"alg":"ES256","jku":"`+p.URL+`/x"}`, good),
		key.sign(`{"alg":"ES256","alg":"ES256"}`, good), key.sign(key.header(), `{"iss":"`+p.URL+`"}`),
		key.sign(key.header(), strings.Repeat("[", 100)), key.sign(key.header(), `{"exp":1e999}`),
		newES256(f, "k1").sign(key.header(), good),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		token := access.NewSecret(raw)
		got, err := v.Verify(context.Background(), token)
		switch {
		case err == nil && signedPart(raw) != signedPart(valid):
			t.Fatalf("accepted what nobody signed: %+v", got)
		case err != nil && !errors.Is(err, ErrTokenRejected):
			t.Fatalf("no verdict: %v", err)
		case err != nil && got.Subject != "":
			t.Fatal("a principal comes with an error")
		}
		if strays := p.wandered(); len(strays) > 0 || p.count() > 1 {
			t.Fatalf("fetched %v, %d times", strays, p.count())
		}
	})
}

// FuzzClaims reads signed claims of any content: the readers of header and
// claims see what an honest key would vouch for.
func FuzzClaims(f *testing.F) {
	key := newES256(f, "k1")
	p := newProvider(f, key)
	v := newVerifier(f, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	is := v.issuers[p.URL]
	f.Add(asJSON(p.claims(map[string]any{"act": acts(3)})))
	f.Add(`{"sub":"a","aud":"chaperone","exp":1e10,"groups":["a","a"],"act":{"sub":"b","iss":"https://x"}}`)
	f.Add(`{"sub":"a","aud":["chaperone"],"exp":1.5,"nbf":-1,"ctx":{"instance":"\ud800"}}`)
	f.Fuzz(func(t *testing.T, raw string) {
		claims, err := decodeObject([]byte(raw))
		if err != nil {
			return
		}
		known, err := is.read(&token{signed: raw, claims: claims}, v.nameOf)
		if err != nil {
			if !errors.Is(err, ErrTokenRejected) {
				t.Fatalf("no verdict: %v", err)
			}
			return
		}
		who := known.who
		names := append([]string{who.Subject}, who.Groups...)
		for _, hop := range who.Chain {
			names = append(names, hop.Issuer, hop.Subject, hop.Actor)
		}
		for _, name := range names {
			if !saneText(name) {
				t.Fatalf("an unsound name: %q", name)
			}
		}
		if len(who.Groups) > maxGroups || len(who.Chain) > maxHops {
			t.Fatal("out of bounds")
		}
	})
}

// FuzzDetails: what is taken is well-formed, and reads the same when it comes
// back in a token.
func FuzzDetails(f *testing.F) {
	for _, seed := range []string{`[{"type":"chaperone"}]`, `[{"type":"chaperone","read_only":true,"tables":["public.t"],"rows":1,"depth":0,"expires_in":5}]`,
		`[{"type":"chaperone","rows":1,"rows":2}]`, `[{"type":"chaperone"}],"x":[]`, `[[[[[[`, `[{"type":"chaperone","methods":null}]`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		a, life, err := ParseDetails(raw)
		if err != nil {
			return
		}
		if a == nil || a.Check() != nil || life < 0 || life > MaxDetailsLife || len(a.Resources) > 0 {
			t.Fatalf("taken: %+v for %s", a, life)
		}
		b, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseAttenuation(b)
		if err != nil || again.Text() != a.Text() {
			t.Fatalf("%q comes back as %q: %v", a.Text(), again.Text(), err)
		}
	})
}
