package postgres

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/internal/access"
)

// A profiled database has a maker of roles and a profile of the test's own, and
// rows that belong to somebody.
type profiled struct {
	*gateway
	version, db, maker, profile string
}

const profiledSchema = `
CREATE TABLE things (id int PRIMARY KEY, tenant text NOT NULL, body text);
INSERT INTO things SELECT i, CASE WHEN i %% 2 = 0 THEN 'nightly' ELSE 'other' END, 'body ' || i FROM generate_series(1, 10) i;
ALTER TABLE things ENABLE ROW LEVEL SECURITY;
CREATE FUNCTION sly() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', 'other', false) $$;
CREATE TABLE made (id int);
GRANT SELECT, INSERT, UPDATE ON things TO %[1]s;
GRANT SELECT, INSERT ON made TO %[1]s;
GRANT EXECUTE ON FUNCTION sly() TO %[1]s;
`

// operating is the page that says how roles are set up.
func operating(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// profile starts a gateway whose sessions get roles of their own.
func profile(t *testing.T, version, name string) *profiled {
	t.Helper()
	pg, ctx := server(t, version), t.Context()
	p := &profiled{version: version, db: "profiled_" + name, maker: "maker_" + name, profile: "profile " + name}
	role := `"` + p.profile + `"`
	steps := [][2]string{{"postgres", "CREATE DATABASE " + p.db}}
	here := strings.NewReplacer("orders_reader", role, "chaperone_maker", p.maker, "…", rolePassword, "ON orders", "ON things")
	policy := ""
	for line := range strings.SplitSeq(operating(t), "\n") {
		if line = here.Replace(strings.TrimSpace(line)); strings.HasPrefix(line, "CREATE POLICY") {
			policy = line
		} else if strings.HasPrefix(line, "CREATE ROLE") || strings.HasPrefix(line, "GRANT "+role) {
			steps = append(steps, [2]string{"postgres", line})
		}
	}
	if len(steps) != 4 || policy == "" {
		t.Fatalf("docs/operating.md shows %q and %q", steps, policy)
	}
	for _, step := range append(steps, [2]string{p.db, fmt.Sprintf(profiledSchema, role) + policy}) {
		if err := pg.Exec(ctx, step[0], step[1]); err != nil {
			t.Fatal(err)
		}
	}
	analyzer := realAnalyzer(t)
	p.gateway = start(t, version, func(g *gateway, c *Config, d *Deps) {
		r := g.resources["orders"]
		r.Database, r.User, r.Profile = p.db, p.maker, p.profile
		r.Claims = map[string]string{"app.tenant": "workflow", "app.groups": "groups"}
		r.Analyzer = analyzer
		g.resources["orders"], c.Replica, d.Verifier = r, name, workflowVerifier{}
	})
	return p
}

// asked runs a statement straight at the server as its owner.
func (p *profiled) asked(t testing.TB, text string, args ...any) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.pg.DSN("postgres", p.pg.Password, p.db))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var got string
	if err := conn.QueryRow(t.Context(), text, args...).Scan(&got); err != nil {
		t.Fatal(err)
	}
	return got
}

// roles counts the roles that were made in the profile.
func (p *profiled) roles(t testing.TB) string {
	t.Helper()
	return p.asked(t, "select count(*)::text from pg_roles r where r.rolname like 'chaperone\\_%' and pg_has_role(r.oid, (select oid from pg_roles where rolname = $1), 'MEMBER')", p.profile)
}

func one(t *testing.T, conn *pgx.Conn, text string) (string, error) {
	t.Helper()
	var got string
	err := conn.QueryRow(t.Context(), text).Scan(&got)
	return got, err
}

// TestSessionRole: each session has a role of its own that is the profile, is
// good for one login, and goes with the session; nothing of it is in a log.
func TestSessionRole(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := profile(t, version, "role"+version)
			conn := g.connect(t, pgx.QueryExecModeSimpleProtocol)
			who, err := one(t, conn, "select session_user || ' as ' || current_user || ', superuser ' || current_setting('is_superuser')")
			name, rest, _ := strings.Cut(who, " as ")
			if err != nil || !strings.HasPrefix(name, "chaperone_") || rest != g.profile+", superuser off" {
				t.Fatalf("%q %v", who, err)
			}
			other := g.connect(t, pgx.QueryExecModeSimpleProtocol)
			if second, err := one(t, other, "select session_user"); err != nil || second == name || !strings.HasPrefix(second, "chaperone_") {
				t.Errorf("the second session is %q %v", second, err)
			}
			facts := g.asked(t, `select concat_ws(' ', rolcanlogin, rolinherit, rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls, rolconnlimit, rolvaliduntil < now() + '61 s', array_to_string(rolconfig, ' ')) from pg_roles where rolname = $1`, name)
			if facts != `t f f 1 t role=`+g.profile+` client_connection_check_interval=5s` {
				t.Errorf("the role: %s", facts)
			}
			// What is made belongs to the profile, and what the session does ends with it.
			if _, err := conn.Exec(t.Context(), "insert into made values (1)"); err != nil {
				t.Error(err)
			}
			for _, attack := range []string{"reset role", "set role none", "set session authorization default; select 1", "reset all"} {
				conn.Exec(t.Context(), attack)
				if got, err := one(t, conn, "select current_user"); err != nil || got != g.profile {
					t.Errorf("after %s: %q %v", attack, got, err)
				}
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Error(err)
			}
			eventually(t, "the role is gone", func() bool { return g.asked(t, "select count(*)::text from pg_roles where rolname = $1", name) == "0" })
			if _, err := one(t, other, "select 1::text"); err != nil {
				t.Errorf("the other session: %v", err)
			}
			g.stop()
			eventually(t, "all roles are gone", func() bool { return g.roles(t) == "0" })
			// A server that logs every statement has seen no password.
			made := 0
			for line := range strings.SplitSeq(g.pg.Log(), "\n") {
				if strings.Contains(line, "CREATE ROLE ") && strings.Contains(line, name) {
					made++
					if !strings.Contains(line, "PASSWORD 'SCRAM-SHA-256$4096:") {
						t.Errorf("the server's log has %s", line)
					}
				}
			}
			if made == 0 {
				t.Error("the server's log does not show how the role was made")
			}
		})
	}
}

// TestSessionRoleLeftBehind: what a crash leaves cannot log in and is removed;
// what somebody is logged in with, or does not belong to us, stays.
func TestSessionRoleLeftBehind(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := profile(t, version, "left"+version)
			maker, err := pgx.Connect(t.Context(), g.pg.DSN(g.maker, rolePassword, g.db))
			if err != nil {
				t.Fatal(err)
			}
			defer maker.Close(context.Background())
			digest := map[string]string{"16": "1616", "18": "1818"}[version]
			role := func(last, until string) string {
				name := "chaperone_0000" + digest + "_aaaaaaaaaaaaaaaaaaa" + last
				text := fmt.Sprintf(`create role %s login password '%s' valid until '%s' in role "%s"`, name, rolePassword, until, g.profile)
				if _, err := maker.Exec(t.Context(), text); err != nil {
					t.Fatal(err)
				}
				return name
			}
			old, used, young := role("a", "2020-01-01"), role("b", "infinity"), role("c", "infinity")
			alive, err := pgx.Connect(t.Context(), g.pg.DSN(used, rolePassword, g.db))
			if err != nil {
				t.Fatal(err)
			}
			defer alive.Close(context.Background())
			if _, err := maker.Exec(t.Context(), "alter role "+used+" valid until '2020-01-01'"); err != nil {
				t.Fatal(err)
			}
			if err := g.pg.Exec(t.Context(), "postgres", "create role chaperone_0000"+digest+"_aaaaaaaaaaaaaaaaaaad login valid until '2020-01-01'"); err != nil {
				t.Fatal(err)
			}
			if _, err := pgx.Connect(t.Context(), g.pg.DSN(old, rolePassword, g.db)); err == nil {
				t.Error("a role that was left behind logs in")
			}
			g.connect(t, pgx.QueryExecModeSimpleProtocol)
			got := g.asked(t, "select coalesce(string_agg(right(rolname, 1), '' order by rolname), '') from pg_roles where rolname like $1", "chaperone\\_0000"+digest+"\\_%")
			if got != "bcd" {
				t.Errorf("of a (left), b (in use), c (still good), d (not ours) there are %q; %s %s", got, young, g.log.String())
			}
		})
	}
}

// TestMakerIsNoSuperuser: a role that could do anything makes none.
func TestMakerIsNoSuperuser(t *testing.T) {
	t.Parallel()
	g := profile(t, "18", "super")
	if err := g.pg.Exec(t.Context(), "postgres", "alter role "+g.maker+" superuser"); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.Connect(t.Context(), g.dsn(goodToken)); err == nil || !strings.Contains(g.log.String(), "superuser") {
		t.Errorf("a session opens: %v", err)
	}
	if err := g.pg.Exec(t.Context(), "postgres", "alter role "+g.maker+" nosuperuser"); err != nil {
		t.Fatal(err)
	}
	g.connect(t, pgx.QueryExecModeSimpleProtocol)
}

// TestWallOfProfile: what the profile may read counts, not what the maker may.
func TestWallOfProfile(t *testing.T) {
	t.Parallel()
	g := profile(t, "18", "wall")
	g.policy.setMasks(access.Mask{Column: "public.things.body", With: access.Redact})
	if _, err := pgx.Connect(t.Context(), g.dsn(goodToken)); err == nil || !strings.Contains(err.Error(), "may read more") {
		t.Errorf("a session opens: %v", err)
	}
	if err := g.pg.Exec(t.Context(), g.db, `revoke select on things from "`+g.profile+`"; grant select (id, tenant) on things to "`+g.profile+`"`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a session opens", func() bool { // the catalog may be two seconds old
		conn, err := pgx.Connect(t.Context(), g.dsn(goodToken))
		if err == nil {
			conn.Close(t.Context())
		}
		return err == nil
	})
}

// TestClaims: row security by what the token says, and no way to say otherwise.
// The control is the same statement straight at the database.
func TestClaims(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := profile(t, version, "claims"+version)
			seen := func(conn *pgx.Conn) string {
				got, err := one(t, conn, "select count(*) || ' ' || min(tenant) || ' ' || current_setting('app.groups') from things")
				if err != nil {
					return err.Error()
				}
				return got
			}
			const mine = `5 nightly ["orders-agents"]`
			conn := g.connect(t, pgx.QueryExecModeSimpleProtocol)
			if got := seen(conn); got != mine {
				t.Fatalf("the session sees %s", got)
			}
			for _, attack := range []string{
				"set app.tenant = 'other'", "set local app.tenant = 'other'", "set session app.tenant to other", `set "app"."tenant" = 'other'`,
				"select set_config('app.tenant', 'other', false)", "select pg_catalog.set_config('app.tenant', 'other', true) from things",
				"select sly()", "select 1 where sly() <> ''", "do $$ begin perform set_config('app.tenant', 'other', false); end $$",
				"begin; set local app.tenant = 'other'", "update pg_settings set setting = 'other' where name = 'app.tenant'",
				"insert into things values (99, 'other', set_config('app.tenant', 'other', false))", "prepare p as select sly()",
				"declare c cursor for select sly()", "copy (select sly()) to stdout", "explain analyze select sly()",
				"alter role current_user set app.tenant = 'other'",
			} {
				_, err := conn.Exec(t.Context(), attack)
				if err == nil {
					t.Errorf("%s is let through", attack)
				}
				conn.Exec(t.Context(), "rollback")
				if got := seen(conn); got != mine {
					t.Errorf("after %s the session sees %s", attack, got)
				}
			}
			for _, twin := range []string{"reset app.tenant", "reset all", "discard all", "begin", "commit", "set application_name = 'x'", "select upper(body) from things",
				"update things set body = 'x' where id = 2", "insert into things values (" + fmt.Sprint(1000) + ", 'nightly', 'mine')"} {
				_, err := conn.Exec(t.Context(), twin)
				if err != nil && !strings.HasPrefix(twin, "reset app") {
					t.Errorf("%s: %v", twin, err)
				}
			}
			if got := seen(conn); got != `6 nightly ["orders-agents"]` {
				t.Errorf("afterwards the session sees %s", got)
			}
			if _, err := conn.Exec(t.Context(), "insert into things values (1001, 'other', 'theirs')"); err == nil {
				t.Error("a row of somebody else's is made")
			}
			for _, options := range []string{"-c app.tenant=other", "--app.tenant=other"} {
				if _, err := pgx.Connect(t.Context(), g.dsn(goodToken)+" options='"+options+"'"); err == nil {
					t.Errorf("%s opens a session", options)
				}
			}
			control := g.asked(t, "select sly() || count(*) from things")
			if !strings.HasPrefix(control, "other") {
				t.Errorf("the control: %s", control)
			}
		})
	}
}

// TestClaimIsMissing: who has no tenant gets no session.
func TestClaimIsMissing(t *testing.T) {
	t.Parallel()
	g := profile(t, "18", "missing")
	g.setResource("orders", func(r *Resource) { r.Claims = map[string]string{"app.job": "job"} })
	if _, err := pgx.Connect(t.Context(), g.dsn(goodToken)); err == nil || !strings.Contains(err.Error(), "your token has no job") {
		t.Errorf("%v", err)
	}
	g.setResource("orders", func(r *Resource) { r.Claims = map[string]string{"app.user": "user"} })
	g.connect(t, pgx.QueryExecModeSimpleProtocol)
}

// TestFreshTokenOfOtherGroups ends a session whose settings it would make wrong.
func TestFreshTokenOfOtherGroups(t *testing.T) {
	t.Parallel()
	g := profile(t, "18", "regrouped")
	g.setResource("orders", func(r *Resource) { r.Claims = map[string]string{"app.groups": "groups"} })
	conn := g.connect(t, pgx.QueryExecModeSimpleProtocol)
	g.newToken("sha256:same", time.Now().Add(time.Hour), "orders-agents")
	if _, err := conn.Exec(t.Context(), "select 1"); err != nil {
		t.Errorf("the same groups: %v", err)
	}
	g.newToken("sha256:other", time.Now().Add(time.Hour), "others")
	if _, err := conn.Exec(t.Context(), "select 1"); err == nil || !strings.Contains(err.Error(), "another groups") {
		t.Errorf("other groups: %v", err)
	}
}

// TestScramVerifier: the server takes the password for it, and no other.
func TestScramVerifier(t *testing.T) {
	t.Parallel()
	pg := server(t, "16")
	verifier, err := scramVerifier("a password")
	if err != nil {
		t.Fatal(err)
	}
	if err := pg.Exec(t.Context(), "postgres", "create role scrammed login password '"+verifier+"'"); err != nil {
		t.Fatal(err)
	}
	for password, good := range map[string]bool{"a password": true, "another": false} {
		conn, err := pgx.Connect(t.Context(), pg.DSN("scrammed", password, "postgres"))
		if (err == nil) != good {
			t.Errorf("%s: %v", password, err)
		}
		if err == nil {
			conn.Close(t.Context())
		}
	}
}

// TestExamineMaker: doctor says what making roles lacks, and what it prints
// puts it right.
func TestExamineMaker(t *testing.T) {
	t.Parallel()
	pg, ctx := server(t, "18"), t.Context()
	exec := func(database, text string) {
		t.Helper()
		if err := pg.Exec(ctx, database, text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	exec("postgres", "create database examined_maker; ")
	exec("postgres", "create role examined_maker login superuser password '"+rolePassword+"'")
	exec("examined_maker", "create table people (id int, ssn text)")
	r := Resource{Access: access.Resource{Name: "orders"}, Address: pg.Addr, Database: "examined_maker", User: "examined_maker", Profile: "examined_profile",
		Password: func(context.Context) (access.Secret, error) { return access.NewSecret(rolePassword), nil }}
	masks := []access.Mask{{Column: "public.people.ssn", With: access.Redact}}
	var missing []string
	for range 3 {
		x, err := Examine(ctx, r, masks)
		if err != nil {
			t.Fatal(err)
		}
		missing = append(missing, strings.Join(x.Missing, "; "))
		for _, s := range x.Statements {
			exec("examined_maker", s)
		}
		if len(missing) == 2 {
			exec("examined_maker", "grant select on people to examined_profile")
			if !strings.Contains(x.Connected, "each session has a role of its own in examined_profile") {
				t.Errorf("connected %s", x.Connected)
			}
		}
	}
	want := []string{
		"the role that makes roles, examined_maker, is a superuser; there is no role examined_profile that sessions could have; examined_maker may not give examined_profile to the roles that it makes",
		"", "the role may SELECT public.people.ssn",
	}
	for i := range want {
		if i < len(missing) && missing[i] != want[i] {
			t.Errorf("%d: missing %q, want %q", i, missing[i], want[i])
		}
	}
}

// workflowVerifier is verifier with a workflow in the token.
type workflowVerifier struct{ verifier }

func (v workflowVerifier) Verify(ctx context.Context, token access.Secret) (access.Principal, error) {
	p, err := v.verifier.Verify(ctx, token)
	p.Workflow = "nightly"
	return p, err
}
