package localserver

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestPostgresStartsAndLogsStatements(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pg, err := StartPostgres(t.Context(), t.TempDir()+"/pg", version)
			if err != nil {
				t.Fatal(err)
			}
			defer pg.Close()
			if err := pg.Exec(t.Context(), "postgres", "create table marked (id int)"); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(pg.Log(), "create table marked") {
				t.Errorf("the log lacks the statement:\n%s", pg.Log())
			}
		})
	}
}

func TestRedisStartsAgainWithItsData(t *testing.T) {
	t.Parallel()
	r, err := StartRedis(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { r.Close() }()
	options, err := redis.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	if err := client.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	r.Kill()
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := client.Get(t.Context(), "k").Result(); got != "v" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
}

func TestDexIssuesTokensForPeople(t *testing.T) {
	t.Parallel()
	d, err := StartDex(t.Context(), t.TempDir(), DexConfig{People: []Person{
		{Email: "ada@example.com", Groups: []string{"orders-agents"}, Workflow: "nightly-report"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	token, err := d.Token(t.Context(), "ada@example.com")
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(d.log))
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims["azp"] != "agent" || claims["email"] != "ada@example.com" || claims["preferred_username"] != "nightly-report" ||
		!strings.Contains(string(payload), `"orders-agents"`) || !strings.Contains(string(payload), `chaperone`) {
		t.Errorf("claims: %s", payload)
	}
}
