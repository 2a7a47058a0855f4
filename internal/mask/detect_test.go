package mask_test

import (
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/mask"
)

func TestDetect(t *testing.T) {
	t.Parallel()
	key := "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/=\nalice@example.com\n-----END RSA PRIVATE KEY-----"
	token := "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"
	for name, c := range map[string]struct{ masks, in, want string }{
		"visa":                    {"CREDIT_CARD", "card 4111111111111111.", "card ***."},
		"spaces":                  {"CREDIT_CARD", "4111 1111 1111 1111", "***"},
		"dashes":                  {"CREDIT_CARD", "4111-1111-1111-1111", "***"},
		"amex":                    {"CREDIT_CARD", "3782 822463 10005", "***"},
		"nineteen":                {"CREDIT_CARD", "6304000000000000000", "***"},
		"thirteen":                {"CREDIT_CARD", "4222222222222", "***"},
		"after a number":          {"CREDIT_CARD", "12 4111 1111 1111 1111 99", "12 *** 99"},
		"after a letter":          {"CREDIT_CARD", "x4111111111111111 n", "x*** n"},
		"after %20":               {"CREDIT_CARD", "q=%204111111111111111", "q=%20***"},
		"after an escape":         {"CREDIT_CARD", `\u00204111111111111111\n`, `\u0020***\n`},
		"wrong last digit":        {"CREDIT_CARD", "4111111111111112", "4111111111111112"},
		"no such issuer":          {"CREDIT_CARD", "1111111111111117", "1111111111111117"},
		"twenty digits":           {"CREDIT_CARD", "41111111111111110000", "41111111111111110000"},
		"fraction":                {"CREDIT_CARD", "0.4111111111111111", "0.4111111111111111"},
		"in a hash":               {"CREDIT_CARD", "ab4111111111111111cd", "ab4111111111111111cd"},
		"small groups":            {"CREDIT_CARD", "41 11 11 11 11 11 11 11", "41 11 11 11 11 11 11 11"},
		"two cards":               {"CREDIT_CARD", "4111111111111111,5555555555554444", "***,***"},
		"partial card":            {"CREDIT_CARD partial", "4111-1111-1111-1111", "***1111"},
		"ssn":                     {"SSN", "123-45-6789", "***"},
		"ssn after a word":        {"SSN", "SSN-123-45-6789,", "SSN-***,"},
		"ssn area 000":            {"SSN", "000-45-6789", "000-45-6789"},
		"ssn area 666":            {"SSN", "666-45-6789", "666-45-6789"},
		"ssn area 900":            {"SSN", "900-45-6789", "900-45-6789"},
		"ssn group 00":            {"SSN", "123-00-6789", "123-00-6789"},
		"ssn serial 0000":         {"SSN", "123-45-0000", "123-45-0000"},
		"ssn in a number":         {"SSN", "9123-45-67890 123-45-67890", "9123-45-67890 123-45-67890"},
		"partial ssn":             {"SSN partial", "123-45-6789", "***6789"},
		"iban":                    {"IBAN", "to GB82WEST12345698765432.", "to ***."},
		"iban, spaces":            {"IBAN", "DE89 3704 0044 0532 0130 00 now", "*** now"},
		"iban, lower case":        {"IBAN", "de89370400440532013000", "***"},
		"iban, wrong digits":      {"IBAN", "GB83WEST12345698765432", "GB83WEST12345698765432"},
		"iban, wrong length":      {"IBAN", "GB82WEST123456987654321", "GB82WEST123456987654321"},
		"iban, no such country":   {"IBAN", "QQ82WEST12345698765432", "QQ82WEST12345698765432"},
		"address":                 {"EMAIL", "<alice.b+c@mail.example.com>", "<***>"},
		"address at the end":      {"EMAIL", "Write to alice@example.com.", "Write to ***."},
		"two addresses":           {"EMAIL", "a@b.example,c@d.example", "***,***"},
		"chained":                 {"EMAIL", "a@b.example@c.example", "***"},
		"other alphabets":         {"EMAIL", "jörg@müller.example", "***"},
		"long local part":         {"EMAIL", strings.Repeat("x", 70) + "@b.example", "xxxxxx***"},
		"no domain":               {"EMAIL", "alice@localhost @handle a@b", "alice@localhost @handle a@b"},
		"numbers for a domain":    {"EMAIL", "npm@10.2.3", "npm@10.2.3"},
		"international":           {"PHONE", "call +49 (0)30 901820 now", "call *** now"},
		"e.164":                   {"PHONE", "tel:+14155552671", "tel:***"},
		"dashes in a phone":       {"PHONE", "212-555-0123", "***"},
		"dots in a phone":         {"PHONE", "212.555.0123", "***"},
		"parentheses":             {"PHONE", "(212) 555-0123 or 1 (212) 555 0123", "*** or ***"},
		"toll free":               {"PHONE", "1-800-555-0123", "***"},
		"bare digits":             {"PHONE", "2125550123", "2125550123"},
		"too many digits":         {"PHONE", "+1234567890123456", "+1234567890123456"},
		"dates and addresses":     {"PHONE", "2024-05-17 10.0.0.1 1+12345678", "2024-05-17 10.0.0.1 1+12345678"},
		"aws":                     {"API_KEY", "AKIAIOSFODNN7EXAMPLE", "***"},
		"github":                  {"API_KEY", "https://ghp_16C7e42F292c6912E7710c838347Ae178B4a@h/x", "https://***@h/x"},
		"openai":                  {"API_KEY", "sk-proj-4f9dK2mZx81QwLpT7vRb!", "***!"},
		"stripe":                  {"API_KEY", "my_sk_live_4f9dK2mZx81QwLpT", "my_***"},
		"slack":                   {"API_KEY", "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzzqgy", "***"},
		"google":                  {"API_KEY", "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe", "***"},
		"words with a prefix":     {"API_KEY", "task-force sk-folding-cube-animation-x desk-", "task-force sk-folding-cube-animation-x desk-"},
		"too short":               {"API_KEY", "AKIA123 ghp_abc", "AKIA123 ghp_abc"},
		"assignment":              {"API_KEY", "API_KEY=q8Zt3LmP0xYv7Rk2 X=q8Zt3LmP0xYv7Rk2", "API_KEY=*** X=q8Zt3LmP0xYv7Rk2"},
		"assignment in JSON":      {"API_KEY", `{\"token\": \"q8Zt3LmP0xYv7Rk2\"}`, `{\"token\": \"***\"}`},
		"assignment in YAML":      {"API_KEY", "password: 'q8Zt3LmP0xYv7Rk2'", "password: '***'"},
		"assignment in code":      {"API_KEY", `secret := "q8Zt3LmP0xYv7Rk2"`, `secret := "***"`},
		"bearer":                  {"API_KEY", "Authorization: Bearer q8Zt3LmP0xYv7Rk2 x", "Authorization: Bearer *** x"},
		"ordinary value":          {"API_KEY", "key=some-long-configuration-name token: none", "key=some-long-configuration-name token: none"},
		"password in a URL":       {"API_KEY", "postgres://u:p@ss@db:5432/x", "postgres://u:***@db:5432/x"},
		"URL without one":         {"API_KEY", "https://h:443/a@b https://u@h/", "https://h:443/a@b https://u@h/"},
		"jwt":                     {"JWT", "bearer " + token + " x", "bearer *** x"},
		"jwt, unsigned":           {"JWT", "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.", "***"},
		"jwe":                     {"JWT", "eyJhbGciOiJkaXIifQ..aXY.Y3Q.dGFn", "***"},
		"jwt after a name":        {"JWT", "id_" + token + `\n` + token, `id_***\n***`},
		"object, no token":        {"JWT", "eyJ2IjoibWV0YS5rOHMuaW8vdjEi eyJhIjoxfQ. Next", "eyJ2IjoibWV0YS5rOHMuaW8vdjEi eyJhIjoxfQ. Next"},
		"partial jwt":             {"JWT partial", token, "***c2ln"},
		"private key":             {"PRIVATE_KEY", "a\n" + key + "\nb", "a\n***\nb"},
		"private key, partial":    {"PRIVATE_KEY partial", key, "***"},
		"private key, no end":     {"PRIVATE_KEY", "x -----BEGIN PRIVATE KEY-----\nMII", "x ***"},
		"private key, other end":  {"PRIVATE_KEY", "-----BEGIN PRIVATE KEY-----\nMII-----END CERTIFICATE-----", "***"},
		"private key, wrong case": {"PRIVATE_KEY", "-----BEGIN PRIVATE KEY-----\nMII-----end PRIVATE KEY-----", "***"},
		"pgp":                     {"PRIVATE_KEY", "-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----", "***"},
		"ssh":                     {"PRIVATE_KEY", "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nx\n---- END SSH2 ENCRYPTED PRIVATE KEY ----y", "***y"},
		"more dashes":             {"PRIVATE_KEY", "--" + key + "--", "--***--"},
		"certificate":             {"PRIVATE_KEY", "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----"},
		"overlap":                 {"SSN partial,EMAIL", "123-45-6789@example.com", "***.com"},
		"key in an address":       {"API_KEY,EMAIL", "AKIAIOSFODNN7EXAMPLE@example.com", "***"},
		"only what is asked for":  {"SSN", "alice@example.com 4111111111111111", "alice@example.com 4111111111111111"},
		"not UTF-8":               {"EMAIL partial", "\xff\xfe caf\xe9@example.com \xff", "\xff\xfe ***.com \xff"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list := []string{c.masks}
			if with, rest, ok := strings.Cut(c.masks, ","); ok && strings.Contains(with, " ") {
				list = []string{with, rest + " partial"}
			}
			m := compile(t, list...)
			text, masked := m.Text([]byte(c.in))
			if string(text) != c.want || masked != (c.in != c.want) {
				t.Errorf("Text = %q, %v\nwant %q", text, masked, c.want)
			}
			got, err := everySplit(t, func() mask.Writer { return m.NewText() }, []byte(c.in))
			if err != nil || got != c.want {
				t.Errorf("stream: got %q, %v\nwant %q", got, err, c.want)
			}
		})
	}
}

// TestDetectEverySecretEverywhere puts each secret between all kinds of
// neighbours, cut at every byte.
func TestDetectEverySecretEverywhere(t *testing.T) {
	t.Parallel()
	m := compile(t, strings.Join(mask.Detectors(), ","))
	for _, secret := range secrets {
		for _, around := range []string{" ", "\n", "\"", "'", "<", ">", "|", ",", ";", "\t", "*", "[", "{", "!", "“", "%0A"} {
			in := "before" + around + secret + around + "after"
			got, err := everySplit(t, func() mask.Writer { return m.NewText() }, []byte(in))
			if err != nil || strings.Contains(got, secret) || !strings.Contains(got, mask.Mark) {
				t.Errorf("%q: %q, %v", in, got, err)
			}
			if around == "%0A" || around == "“" { // swallowed by an address
				continue
			}
			if !strings.HasPrefix(got, "before"+around) || !strings.HasSuffix(got, around+"after") {
				t.Errorf("%q: %q: more was hidden than the secret", in, got)
			}
		}
	}
}

func TestTextIsNotDelayed(t *testing.T) {
	t.Parallel()
	m := compile(t, strings.Join(mask.Detectors(), ","))
	for name, c := range map[string]struct{ in, now string }{
		"a line":             {"GET /index.html 200\n", "GET /index.html 200\n"},
		"a word":             {"hello there", "hello "},
		"half a card":        {"pay 4111 1111", "pay "},
		"half an address":    {"to alice@exam", "to "},
		"half a key":         {"is AKIAIOS", "is "},
		"inside a key block": {"x\n-----BEGIN PRIVATE KEY-----\nMII", "x\n"},
	} {
		if out, err := m.NewText().Write([]byte(c.in)); err != nil || string(out) != c.now {
			t.Errorf("%s: Write(%q) = %q, %v; want %q at once", name, c.in, out, err, c.now)
		}
	}
	long := m.NewText()
	out, err := long.Write([]byte(strings.Repeat("x", 1<<20)))
	if err != nil || len(out) < 1<<20-4096-1 {
		t.Errorf("of 1 MiB %d bytes were written, %v", len(out), err)
	}
}

func TestTextRefusesOtherEncodings(t *testing.T) {
	t.Parallel()
	w := compile(t, "SSN").NewText()
	if out, err := w.Write([]byte("1\x002\x003\x00-\x00")); err == nil {
		t.Errorf("UTF-16 accepted: %q", out)
	}
	if out, err := w.Close(); err == nil {
		t.Errorf("Close after an error = %q", out)
	}
}

// TestDetectBoundsMemory sends open-ended secrets of 8 MiB and looks at what
// comes out meanwhile and how much is kept.
func TestDetectBoundsMemory(t *testing.T) {
	t.Parallel()
	m := compile(t, strings.Join(mask.Detectors(), ","))
	for name, c := range map[string]struct{ begin, repeat, end, want string }{
		"private key":    {"-----BEGIN PRIVATE KEY-----\n", "MIIEvQIBADANBgkqhkiG9w0BAQEF\n", "-----END PRIVATE KEY-----.", "***."},
		"token":          {"eyJhbGciOiJIUzI1NiJ9.", "c2lnbmF0dXJl", " end", "*** end"},
		"endless header": {"eyJ", "hbGciOiJIUzI1NiJ9eyJ", " end", "*** end"},
		"api key":        {"ghp_", "16C7e42F292c6912E7710c838347Ae178B4a", " end", "*** end"},
		"value":          {"secret=", "q8Zt3LmP0xYv7Rk2", " end", "secret=*** end"},
		"addresses":      {"a", "@b.example", " end", "*** end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := m.NewText()
			got := ""
			put := func(s string) {
				out, err := w.Write([]byte(s))
				if err != nil {
					t.Fatal(err)
				}
				got += string(out)
			}
			put(c.begin)
			part := strings.Repeat(c.repeat, 32<<10/len(c.repeat))
			for range 64 {
				put(part)
			}
			put(c.end)
			out, _ := w.Close()
			if got += string(out); got != c.want || w.Masked() != 1 {
				t.Errorf("got %.200q, %d masked; want %q", got, w.Masked(), c.want)
			}
			if held := w.Held(); held > 128<<10 {
				t.Errorf("%d bytes held", held)
			}
		})
	}
}
