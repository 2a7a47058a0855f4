package sql

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// gramLength is how much of a secret has to be seen.
const gramLength = 8

// marks are the parts of secrets that no answer may hold in any form.
type marks struct{ grams map[string]bool }

func newMarks(secrets []string) *marks {
	m := &marks{grams: map[string]bool{}}
	for _, s := range secrets {
		weak := md5.Sum([]byte(s))
		strong := sha256.Sum256([]byte(s))
		for _, form := range []string{s, hex.EncodeToString(weak[:]), hex.EncodeToString(strong[:])} {
			form = strings.ToLower(form)
			for i := 0; i+gramLength <= len(form); i++ {
				m.grams[form[i:i+gramLength]] = true
			}
		}
	}
	return m
}

var (
	hexRun    = regexp.MustCompile(`[0-9a-fA-F]{16,}`)
	base64Run = regexp.MustCompile(`[A-Za-z0-9+/]{11,}`)
	separated = regexp.MustCompile(`[\s|,{}\\"'-]+`)
)

// in returns a part of a secret that text holds: as it stands, with whatever
// separates its characters taken out, backwards, in hex or in base64.
func (m *marks) in(text string) string {
	for _, form := range []string{text, separated.ReplaceAllString(text, "")} {
		if gram := m.plain(form); gram != "" {
			return gram
		}
		for _, run := range hexRun.FindAllString(form, -1) {
			for shift := range 2 {
				even := run[shift : shift+(len(run)-shift)/2*2]
				if b, err := hex.DecodeString(even); err == nil {
					if gram := m.plain(string(b)); gram != "" {
						return gram + " in hex"
					}
				}
			}
		}
		for _, run := range base64Run.FindAllString(form, -1) {
			for shift := range 4 {
				if shift >= len(run) {
					break
				}
				whole := run[shift : shift+(len(run)-shift)/4*4]
				if b, err := base64.StdEncoding.DecodeString(whole); err == nil {
					if gram := m.plain(string(b)); gram != "" {
						return gram + " in base64"
					}
				}
			}
		}
	}
	return ""
}

func (m *marks) plain(text string) string {
	text = strings.ToLower(text)
	backwards := []byte(text)
	slices.Reverse(backwards)
	for _, form := range []string{text, string(backwards)} {
		for i := 0; i+gramLength <= len(form); i++ {
			if m.grams[form[i:i+gramLength]] {
				return form[i : i+gramLength]
			}
		}
	}
	return ""
}

func TestMarks(t *testing.T) {
	t.Parallel()
	m := newMarks([]string{"KMNPQRSTUVWX", "5123-11-23"})
	for _, text := range []string{
		"x KMNPQRSTUVWX y", "kmnpqrst", "VUTSRQPNM", "4b4d4e505152535455565758", "\\x4B4D4E5051525354", "S01OUFFSU1RVVldY", "eEtNTlBRUlNUVVZXWA==",
		"{K,M,N,P,Q,R,S,T}", "K\nM\nN\nP\nQ\nR\nS\nT", "5123-11-23 00:00:00", "on 5123-11-2",
	} {
		if m.in(text) == "" {
			t.Errorf("%q holds a secret", text)
		}
	}
	for _, text := range []string{"", "***", "KMNPQRS", "2001-01-01", "plain1|plain2"} {
		if gram := m.in(text); gram != "" {
			t.Errorf("%q is said to hold %s", text, gram)
		}
	}
}
