package sql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// A state is everything about a server and one session that a statement could
// have changed, by name.
type state map[string]string

// differences names what differs between two states.
func (s state) differences(now state) []string {
	var list []string
	for name := range now {
		if s[name] != now[name] {
			list = append(list, fmt.Sprintf("%s: %.120s → %.120s", name, s[name], now[name]))
		}
	}
	for name := range s {
		if _, ok := now[name]; !ok {
			list = append(list, name+" is gone")
		}
	}
	slices.Sort(list)
	return list
}

// A differential is a server of one version whose every change is seen.
type differential struct {
	version string
	pg      *localserver.Postgres
	cat     *catalog.Snapshot
	user    string         // whom subject runs as
	subject *pgconn.PgConn // runs what was judged read-only
	parser  *pgconn.PgConn // reads, in a transaction that runs nothing any more
	watcher *pgx.Conn
	// bystander waits for notifications, and is there to be killed.
	bystander *pgconn.PgConn
	noticed   []string // names of what it was notified of
	data      string   // the server's folder
	digest    string   // the query of rows: it names every relation
}

func startDifferential(t *testing.T, version string) *differential {
	t.Helper()
	ctx := t.Context()
	schema, err := os.ReadFile("testdata/differential.sql")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pg")
	pg, err := localserver.StartPostgres(ctx, dir, version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pg.Close() })
	// Nobody but the subject is to write.
	for _, text := range []string{"ALTER SYSTEM SET autovacuum = off", "ALTER SYSTEM SET checkpoint_timeout = '1d'", "ALTER SYSTEM SET log_statement = none",
		"ALTER SYSTEM SET log_min_messages = panic", "ALTER SYSTEM SET log_min_error_statement = panic", "ALTER SYSTEM SET jit = off", "SELECT pg_reload_conf()",
		"CREATE DATABASE shop", "ALTER DATABASE shop SET track_functions = 'all'"} {
		if err := pg.Exec(ctx, "postgres", text); err != nil {
			t.Fatal(err)
		}
	}
	if err := pg.Exec(ctx, "shop", string(schema)); err != nil {
		t.Fatal(err)
	}
	if err := pg.Exec(ctx, "shop", "VACUUM (FREEZE, ANALYZE)"); err != nil {
		t.Fatal(err)
	}
	if err := pg.Exec(ctx, "shop", "CHECKPOINT"); err != nil {
		t.Fatal(err)
	}
	d := &differential{version: version, pg: pg, data: filepath.Join(dir, "pgdata"), user: "app"}
	if d.watcher, err = pgx.Connect(ctx, pg.DSN("postgres", pg.Password, "shop")+"&search_path=pg_catalog&stats_fetch_consistency=none"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.watcher.Close(context.WithoutCancel(ctx)) })
	if err := d.watcher.QueryRow(ctx, digestQuery).Scan(&d.digest); err != nil {
		t.Fatal(err)
	}
	d.reconnect(t)
	return d
}

// reconnect opens the subject's sessions anew: what a statement left in the old
// ones is gone.
func (d *differential) reconnect(t *testing.T) {
	t.Helper()
	open := func(old *pgconn.PgConn, user, password string) *pgconn.PgConn {
		if old != nil {
			old.Close(t.Context())
		}
		config, err := pgconn.ParseConfig(d.pg.DSN(user, password, "shop") + "&statement_timeout=20000&lock_timeout=100&search_path=public&application_name=" + user)
		if err != nil {
			t.Fatal(err)
		}
		config.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { d.noticed = append(d.noticed, n.Channel) }
		conn, err := pgconn.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return conn
	}
	password := map[string]string{"app": "app", "postgres": d.pg.Password}[d.user]
	d.subject = open(d.subject, d.user, password)
	d.bystander = open(d.bystander, "postgres", d.pg.Password)
	d.parser = open(d.parser, "postgres", d.pg.Password)
	for _, c := range []struct {
		conn *pgconn.PgConn
		text string
	}{
		// Something to be called, closed and locked.
		{d.subject, "PREPARE prepared AS INSERT INTO audit (what) VALUES ('prepared')"},
		{d.bystander, "SET lock_timeout = 0; LISTEN channel; LISTEN x; SELECT pg_advisory_lock(99)"},
		{d.parser, "BEGIN; SELECT 1 / 0"},
	} {
		if _, err := c.conn.Exec(t.Context(), c.text).ReadAll(); err != nil && c.conn != d.parser {
			t.Fatal(err)
		}
	}
	if conn, err := pgx.Connect(t.Context(), d.pg.DSN(d.user, password, "shop")+"&search_path=public"); err != nil {
		t.Fatal(err)
	} else if d.cat, err = catalog.Load(t.Context(), conn); err != nil {
		t.Fatal(err)
	} else {
		_ = conn.Close(t.Context())
	}
	d.alone(t)
}

// alone waits until the server has done away with sessions that were closed.
func (d *differential) alone(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for sessions := 0; sessions != 4; {
		if err := d.watcher.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'").Scan(&sessions); err != nil {
			t.Fatal(err)
		}
	}
}

// digestQuery leaves out the tables that the planner runs a function for. It writes the query that digests every relation, the catalogs among
// them: how many rows, who made and who locked or ended them, and where they
// are. For sequences, their state.
const digestQuery = `
SELECT string_agg(format(CASE WHEN relkind = 'S' THEN 'SELECT %1$L, last_value::text || is_called || log_cnt FROM %1$s'
  ELSE 'SELECT %1$L, concat(count(*), '' '', sum(xmin::text::int8), '' '', sum(xmax::text::int8), '' '', sum(hashtid(ctid)::int8)) FROM ONLY %1$s' END, oid::regclass), ' UNION ALL ')
FROM pg_class WHERE relkind IN ('r', 'm', 'S') AND relpersistence = 'p' AND relname !~ '^checked' AND oid NOT IN (
  SELECT coalesce(i.indrelid, s.stxrelid) FROM pg_depend d LEFT JOIN pg_index i ON i.indexrelid = d.objid LEFT JOIN pg_statistic_ext s ON s.oid = d.objid
  WHERE d.refclassid = 'pg_proc'::regclass AND coalesce(i.indrelid, s.stxrelid) IS NOT NULL)`

// serverQuery is what is not in a relation: the next transaction, the log, what
// was ever inserted, changed and deleted, which of the users' functions ran,
// locks that outlive a transaction, and what is kept by name.
const serverQuery = `
SELECT 'next transaction', pg_snapshot_xmax(pg_current_snapshot())::text
UNION ALL SELECT 'log', pg_current_wal_insert_lsn()::text
UNION ALL SELECT 'counters', string_agg(concat(relname, n_tup_ins, ' ', n_tup_upd, ' ', n_tup_del), ',' ORDER BY relid) FROM pg_stat_all_tables WHERE n_tup_ins + n_tup_upd + n_tup_del > 0
UNION ALL SELECT 'calls of ' || schemaname || '.' || funcname, sum(calls)::text FROM pg_stat_user_functions WHERE funcid >= 16384 AND funcname <> 'vouched' GROUP BY schemaname, funcname
UNION ALL SELECT 'counters reset', string_agg(stats_reset::text, ',' ORDER BY datname) FROM pg_stat_database
UNION ALL SELECT 'shared counters reset', concat((SELECT stats_reset FROM pg_stat_bgwriter), (SELECT stats_reset FROM pg_stat_wal), (SELECT stats_reset FROM pg_stat_archiver), (SELECT max(stats_reset) FROM pg_stat_slru), (SELECT max(stats_reset) FROM pg_stat_io))
UNION ALL SELECT 'advisory locks', string_agg(concat(classid, '/', objid, '/', mode), ',' ORDER BY objid, mode) FROM pg_locks WHERE locktype = 'advisory'
UNION ALL SELECT 'sessions', string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity WHERE backend_type = 'client backend'
UNION ALL SELECT 'slots', string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots
UNION ALL SELECT 'prepared transactions', string_agg(gid, ',' ORDER BY gid) FROM pg_prepared_xacts
UNION ALL SELECT 'configuration loaded', pg_conf_load_time()::text
UNION ALL SELECT 'recovery', concat(pg_is_in_recovery(), pg_current_logfile())`

// sessionQuery is what a session keeps beyond a transaction.
const sessionQuery = `
SELECT 'setting ' || name, concat(setting, CASE WHEN source = 'session' THEN ' of the session' END) FROM pg_catalog.pg_settings WHERE name !~ '^transaction_'
UNION ALL SELECT 'custom settings', concat(current_setting('app.tenant', true), current_setting('a.b', true), current_setting('x.y', true))
UNION ALL SELECT 'prepared', string_agg(name, ',' ORDER BY name) FROM pg_catalog.pg_prepared_statements WHERE name <> ''
UNION ALL SELECT 'cursors', string_agg(name, ',' ORDER BY name) FROM pg_catalog.pg_cursors WHERE name <> ''
UNION ALL SELECT 'listening', string_agg(c, ',') FROM pg_catalog.pg_listening_channels() c
UNION ALL SELECT 'temporary schema', pg_catalog.pg_my_temp_schema()::text
UNION ALL SELECT 'locks', string_agg(concat(locktype, relation::regclass, mode), ',' ORDER BY locktype, relation, mode) FROM pg_catalog.pg_locks
  WHERE pid = pg_catalog.pg_backend_pid() AND locktype <> 'virtualxid'
  AND (relation IS NULL OR relation NOT IN (SELECT oid FROM pg_catalog.pg_class WHERE relnamespace = 'pg_catalog'::regnamespace))
UNION ALL SELECT 'user', concat(current_user, session_user, current_setting('role'))`

// observe returns the state now. The subject must be idle.
func (d *differential) observe(ctx context.Context) (state, error) {
	now := state{}
	if d.subject.IsClosed() {
		now["subject"] = "closed"
	} else {
		now["subject"] = "open"
		now["transaction status"] = string(d.subject.TxStatus())
		if d.subject.TxStatus() == 'I' {
			if _, err := d.subject.Exec(ctx, "SET statement_timeout = 20000").ReadAll(); err != nil {
				return nil, fmt.Errorf("lift the limit: %w", err)
			}
			results, err := d.subject.Exec(ctx, "SELECT pg_catalog.pg_stat_force_next_flush(); "+sessionQuery).ReadAll()
			if err != nil {
				return nil, fmt.Errorf("state of the session: %w", err)
			}
			for _, row := range results[len(results)-1].Rows {
				now["session "+string(row[0])] = string(row[1])
			}
			if _, err := d.subject.Exec(ctx, "SET statement_timeout = 200").ReadAll(); err != nil {
				return nil, fmt.Errorf("set the limit: %w", err)
			}
		}
	}
	rows, err := d.watcher.PgConn().Exec(ctx, serverQuery+";"+d.digest).ReadAll()
	if err != nil { // a relation is gone: that is a change
		now["relations"] = err.Error()
	}
	for _, r := range rows {
		for _, row := range r.Rows {
			now[string(row[0])] = string(row[1])
		}
	}
	now["bystander"] = d.hear(ctx)
	return now, d.files(now)
}

// hear drains the bystander's notifications and says how it is.
func (d *differential) hear(ctx context.Context) string {
	if _, err := d.bystander.Exec(ctx, "SELECT 1").ReadAll(); err != nil {
		return err.Error()
	}
	return fmt.Sprint(len(d.noticed), " notifications")
}

// files notes every file of the server but those that it writes at its own
// pace.
func (d *differential) files(now state) error {
	return filepath.WalkDir(d.data, func(path string, entry fs.DirEntry, err error) error {
		name, _ := filepath.Rel(d.data, path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone meanwhile
		case err != nil:
			return err
		case entry.IsDir() && (name == "pg_stat_tmp" || name == "pgsql_tmp" || name == "pg_stat" || name == "pg_wal" || name == "pg_subtrans" || name == "base/1"):
			return fs.SkipDir
		case entry.IsDir() || strings.Contains(name, "pgsql_tmp") || strings.HasPrefix(filepath.Base(name), "pg_internal.init"):
			return nil
		}
		now["file "+name] = "there"
		return nil
	})
}

// knownWriters are statements that change something, each with what must be
// seen of it: without them the differential test would prove nothing.
var knownWriters = []struct{ text, sees string }{
	{"insert into audit (what) values ('x')", "public.audit"},
	{"insert into audit (what) values ('x')", "next transaction"},
	{"insert into audit (what) values ('x')", "counters"},
	{"update orders set total = 1 where id = 1", "orders"},
	{"delete from audit where id = 1", "audit"},
	{"select id from orders where id = 1 for update", "orders"},
	{"select nextval('seq')", "seq"},
	{"select setval('seq', 77)", "seq"},
	{"select mystery(1)", "calls of public.mystery"},
	{"select 'x'::tag", "calls of public.spy"},
	{"select * from calls limit 1", "calls of public.mystery"},
	{"select lo_export(4242, '%s/exported')", "file exported"},
	{"select lo_create(4243)", "pg_largeobject_metadata"},
	{"select lo_unlink(4242)", "pg_largeobject_metadata"},
	{"select pg_advisory_lock(7)", "advisory locks"},
	{"select pg_notify('channel', 'x')", "bystander"},
	{"notify x", "bystander"},
	{"listen other", "session listening"},
	{"select set_config('application_name', 'x', false)", "session setting application_name"},
	{"select set_config('app.tenant', 'x', false)", "session custom settings"},
	{"set role postgres", "session user"},
	{"prepare p as select 1", "session prepared"},
	{"deallocate prepared", "session prepared"},
	{"declare held cursor with hold for select 1", "session cursors"},
	{"create temp table t (a int)", "session temporary schema"},
	{"create table made (a int)", "pg_class"},
	{"drop view over", "pg_rewrite"},
	{"create role made", "pg_authid"},
	{"comment on table orders is 'x'", "pg_description"},
	{"analyze orders", "pg_statistic"},
	{"select pg_current_xact_id()", "next transaction"},
	{"select pg_logical_emit_message(false, 'x', 'x')", "log"},
	{"select pg_stat_reset()", "counters reset"},
	{"select pg_stat_reset_shared('bgwriter')", "shared counters reset"},
	{"select pg_reload_conf()", "configuration loaded"},
	{"select pg_create_physical_replication_slot('made')", "slots"},
	{"select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and application_name = 'postgres' and wait_event = 'ClientRead'", "sessions"},
	{"copy (select 1) to '%s/written'", "file written"},
	{"do $$ begin perform spy('do'); end $$", "calls of public.spy"},
	{"begin", "transaction status"},
}

// testDetector is the positive control: every known writer is seen.
func (d *differential) testDetector(t *testing.T) {
	d.user = "postgres" // nothing is forbidden
	d.reconnect(t)
	for _, w := range knownWriters {
		text := strings.ReplaceAll(w.text, "%s", d.data)
		before, err := d.observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.subject.Exec(t.Context(), text).ReadAll(); err != nil && !d.subject.IsClosed() {
			t.Fatalf("%s: %v", text, err)
		}
		if strings.Contains(text, "reload") { // the server does it in its own time
			d.await(t, "configuration loaded", before)
		}
		now, err := d.observe(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		found := before.differences(now)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, w.sees) }) {
			t.Errorf("%s is not seen in %q but only in %q", text, w.sees, found)
		}
		if !d.bystander.IsClosed() && !d.subject.IsClosed() && d.subject.TxStatus() == 'I' && now["bystander"] == "0 notifications" {
			continue
		}
		d.noticed = nil
		d.reconnect(t)
	}
	quiet, err := d.observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := d.observe(t.Context())
	if err != nil || len(quiet.differences(again)) > 0 {
		t.Errorf("observing changes %v: %v", quiet.differences(again), err)
	}
}

// await observes until what name says has changed.
func (d *differential) await(t *testing.T, name string, before state) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		now, err := d.observe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if now[name] != before[name] {
			return
		}
	}
}

// names lists the differences by name alone, for messages.
func changedNames(differences []string) []string {
	set := map[string]bool{}
	for _, d := range differences {
		name, _, _ := strings.Cut(d, ":")
		set[name] = true
	}
	return slices.Sorted(maps.Keys(set))
}
