package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// What Examine prints is run as it stands, in a database of its own; then
// nothing is missing, what is unmasked is readable, and what is masked is not.
func TestExamine(t *testing.T) {
	t.Parallel()
	const tables = `CREATE TABLE people (id int PRIMARY KEY, name text, "S s n" text); CREATE TABLE people_2 () INHERITS (people);
INSERT INTO people VALUES (1, 'Ada', '123');`
	for _, version := range []string{"16", "18"} {
		for _, c := range []struct{ name, set, missing string }{
			{"nothing granted", ``, ""},
			{"the whole table", `GRANT SELECT ON people, people_2 TO %[1]s`, "the role may SELECT public.people.S s n"},
			{"everybody", `GRANT SELECT ON people TO PUBLIC`, "the role may SELECT public.people.S s n"},
			{"only the column", `GRANT SELECT (id, name, "S s n") ON people TO %[1]s`, "the role may SELECT public.people.S s n"},
			{"a table that inherits", `GRANT SELECT ON people_2 TO %[1]s`, "the role may SELECT public.people.S s n"},
			{"by another role", `GRANT SELECT ON people TO %[1]s_group; GRANT %[1]s_group TO %[1]s`, "the role may SELECT public.people.S s n"},
			{"by a grantor of its own", `GRANT SELECT ON people TO %[1]s_group WITH GRANT OPTION; SET ROLE %[1]s_group; GRANT SELECT ON people TO %[1]s; RESET ROLE`, "the role may SELECT public.people.S s n"},
			{"all data", `GRANT pg_read_all_data TO %[1]s`, "the role may SELECT public.people.S s n"},
			{"owner", `ALTER TABLE people OWNER TO %[1]s`, "the role owns public.people"},
			{"owner that took it from itself", `ALTER TABLE people OWNER TO %[1]s; REVOKE SELECT ON people FROM %[1]s`, "the role owns public.people"},
			{"attributes", `ALTER ROLE %[1]s BYPASSRLS CREATEROLE REPLICATION`, "the role has BYPASSRLS, CREATEROLE, REPLICATION"},
			{"server files", `GRANT pg_read_server_files TO %[1]s_group; GRANT %[1]s_group TO %[1]s`, "the role has pg_read_server_files"},
		} {
			t.Run(version+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				pg, ctx := server(t, version), t.Context()
				db := "examine_" + strings.ReplaceAll(c.name, " ", "_")
				exec := func(database, statements string) {
					t.Helper()
					if err := pg.Exec(ctx, database, statements); err != nil {
						t.Fatalf("%s: %v", statements, err)
					}
				}
				exec("postgres", fmt.Sprintf("CREATE ROLE %[1]s LOGIN PASSWORD '%[2]s'; CREATE ROLE %[1]s_group", db, rolePassword))
				exec("postgres", "CREATE DATABASE "+db)
				exec(db, tables+"GRANT SELECT (id) ON people TO "+db+";REVOKE SELECT (id) ON people FROM "+db+";")
				if c.set != "" {
					exec(db, strings.ReplaceAll(c.set, "%[1]s", db))
				}
				r := Resource{Access: access.Resource{Name: "orders"}, Address: pg.Addr, Database: db, User: db,
					Password: func(context.Context) (access.Secret, error) { return access.NewSecret(rolePassword), nil }}
				masks := []access.Mask{{Column: "public.people.S s n", With: access.Redact}}
				x, err := Examine(ctx, r, masks)
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(x.Missing, "; "); !strings.Contains(got, c.missing) || (c.missing == "") != (got == "") || x.Walled() != (got == "") {
					t.Errorf("missing %q, want %q", got, c.missing)
				}
				if !strings.Contains(x.Connected, "as "+db+", by password") {
					t.Errorf("connected %s", x.Connected)
				}
				exec(db, strings.Join(x.Statements, "\n"))
				after, err := Examine(ctx, r, masks)
				if err != nil {
					t.Fatal(err)
				}
				if len(after.Missing) > 0 || slices.ContainsFunc(after.Statements, func(s string) bool { return strings.HasPrefix(s, "REVOKE") }) {
					t.Errorf("after\n%s\nmissing %q, statements %q", strings.Join(x.Statements, "\n"), after.Missing, after.Statements)
				}
				exec(db, "SET ROLE "+db+"; DO $$ BEGIN PERFORM id, name FROM "+readableTable(c.name)+
					`; BEGIN PERFORM "S s n" FROM people; RAISE 'readable'; EXCEPTION WHEN insufficient_privilege THEN NULL; END; END $$`)
			})
		}
	}
}

// readableTable is a table that the role reads afterwards.
func readableTable(name string) string {
	if name == "a table that inherits" {
		return "people_2"
	}
	return "people"
}

// A superuser's way out has one step before the others.
func TestExamineSuperuser(t *testing.T) {
	t.Parallel()
	pg := server(t, "18")
	if err := pg.Exec(t.Context(), "postgres", "CREATE ROLE almighty SUPERUSER LOGIN PASSWORD '"+rolePassword+"'"); err != nil {
		t.Fatal(err)
	}
	r := Resource{Access: access.Resource{Name: "orders"}, Address: pg.Addr, Database: "orders", User: "almighty",
		Password: func(context.Context) (access.Secret, error) { return access.NewSecret(rolePassword), nil }}
	x, err := Examine(t.Context(), r, nil)
	if err != nil || len(x.Missing) != 1 || !strings.Contains(x.Missing[0], "SUPERUSER") {
		t.Fatalf("%+v %v", x, err)
	}
	if err := pg.Exec(t.Context(), "orders", strings.Join(x.Statements, "\n")); err != nil {
		t.Fatal(err)
	}
	if x, err = Examine(t.Context(), r, nil); err != nil || !x.Walled() {
		t.Errorf("%+v %v", x, err)
	}
}

// Views show what their owners may read: no privilege on the table stands
// between.
func TestExamineViews(t *testing.T) {
	t.Parallel()
	pg, ctx := server(t, "18"), t.Context()
	for _, text := range []string{"CREATE ROLE viewer LOGIN PASSWORD '" + rolePassword + "'", "CREATE DATABASE viewed"} {
		if err := pg.Exec(ctx, "postgres", text); err != nil {
			t.Fatal(err)
		}
	}
	if err := pg.Exec(ctx, "viewed", `CREATE TABLE people (id int PRIMARY KEY, ssn text); CREATE TABLE places (id int); GRANT SELECT (id) ON people TO viewer;
		CREATE VIEW shows AS SELECT p.* FROM people p; CREATE MATERIALIZED VIEW over AS SELECT * FROM shows; GRANT SELECT ON over TO viewer; CREATE VIEW part AS SELECT * FROM people;
		GRANT SELECT (id) ON part TO viewer; CREATE VIEW invoked WITH (security_invoker) AS SELECT * FROM people; GRANT SELECT ON invoked TO viewer;
		CREATE VIEW elsewhere AS SELECT * FROM places; GRANT SELECT ON elsewhere TO viewer`); err != nil {
		t.Fatal(err)
	}
	x, err := Examine(ctx, Resource{Access: access.Resource{Name: "orders"}, Address: pg.Addr, Database: "viewed", User: "viewer",
		Password: func(context.Context) (access.Secret, error) { return access.NewSecret(rolePassword), nil }}, []access.Mask{{Column: "public.people.ssn", With: access.Redact}})
	if err != nil {
		t.Fatal(err)
	}
	const reads = ", which reads public.people with the rights of its owner: only the gateway masks what it shows"
	if want := []string{"may read the view public.over" + reads, "may read the view public.part" + reads}; !slices.Equal(x.Risks, want) || len(x.Missing) > 0 {
		t.Errorf("risks %q, missing %q", x.Risks, x.Missing)
	}
}
