package e2e

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/access"
)

// TestBadTokensOpenNothing: attack, by psql's protocol and by HTTP. The control
// is that the targets answer without the gateway's credential to nobody; the
// twin is that a good token passes.
func TestBadTokensOpenNothing(t *testing.T) {
	t.Parallel()
	s := site(t)
	good := token(t, s, demo.Ada)
	expired, err := s.Short.Token(t.Context(), demo.Ada)
	if err != nil {
		t.Fatal(err)
	}
	otherAudience, err := s.Dex.TokenForAgent(t.Context(), demo.Ada)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	bad := map[string]string{
		"no token":            "",
		"not a token":         "hunter2",
		"expired":             expired,
		"for another":         otherAudience,
		"no signature":        parts[0] + "." + parts[1] + ".",
		"algorithm none":      base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + ".",
		"another's signature": parts[0] + "." + parts[1] + "." + strings.Split(otherAudience, ".")[2],
		"two tokens":          good + "," + good,
		"very long":           good + strings.Repeat("A", 20000),
	}
	eventually(t, func() error { return notYet(t, expired) })
	for name, tok := range bad {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := pgx.Connect(t.Context(), s.DSN(tok))
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || !strings.Contains(refused.Detail, "reason unauthenticated; requestable no; request req_") {
				t.Errorf("psql's protocol: %v", err)
			}
			if len(tok) > 16000 {
				return // Envoy itself refuses headers that long
			}
			res := request(t, s, "GET", "/http/billing/customers/1", tok, "")
			var denial access.Denial
			body, _ := io.ReadAll(res.Body)
			if err := json.Unmarshal(body, &denial); err != nil || res.StatusCode != http.StatusUnauthorized ||
				denial.Reason != access.Unauthenticated || denial.RequestID == "" || res.Header.Get("Content-Type") != access.ProblemType {
				t.Errorf("HTTP: %s %s", res.Status, body)
			}
		})
	}
	t.Run("twin", func(t *testing.T) {
		t.Parallel()
		connect(t, s, good)
		if res := request(t, s, "GET", "/http/billing/customers/1", good, ""); res.StatusCode != http.StatusOK {
			t.Errorf("HTTP: %s", res.Status)
		}
	})
}

func notYet(t *testing.T, tok string) error {
	t.Helper()
	if time.Now().Before(expiry(t, tok)) {
		return errors.New("the token has not expired yet")
	}
	return nil
}

// TestNobodyInParticularSeesNothing: a valid token without any policy.
func TestNobodyInParticularSeesNothing(t *testing.T) {
	t.Parallel()
	s := site(t)
	tom := token(t, s, demo.Tom)
	_, err := pgx.Connect(t.Context(), s.DSN(tom))
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Severity != "FATAL" {
		t.Errorf("psql's protocol: %v", err)
	}
	if res := request(t, s, "GET", "/http/billing/customers/1", tom, ""); res.StatusCode != http.StatusForbidden && res.StatusCode != http.StatusNotFound {
		t.Errorf("HTTP: %s", res.Status)
	}
}
