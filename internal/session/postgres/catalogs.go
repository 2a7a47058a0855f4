package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

const (
	// catalogAge is how old a snapshot may be that statements are judged with.
	catalogAge = 2 * time.Second
	// catalogIdle is how long a side connection outlives its last session.
	catalogIdle = 30 * time.Second
	// catalogWithin bounds loading one.
	catalogWithin = 10 * time.Second
)

// A view is a snapshot of the catalog with what the injected role may do beyond
// its grants. It is immutable; two views differ only when their contents do.
type view struct {
	snapshot *catalog.Snapshot
	powers   string // attributes that no wall withstands, comma separated
}

// catalogs keeps one side connection per target, role and search_path, shared
// by the sessions that have them.
type catalogs struct {
	clock func() time.Time

	mu      sync.Mutex
	entries map[catalogKey]*catalogEntry
	closed  bool
}

type catalogKey struct{ address, database, user, searchPath string }

type catalogEntry struct {
	key  catalogKey
	busy chan struct{} // holds a value while the fields below are in use

	estimates *estimator // has its own

	conn    *pgx.Conn
	view    *view
	checked time.Time

	refs int // guarded by catalogs.mu
	idle *time.Timer
}

func newCatalogs(clock func() time.Time) *catalogs {
	return &catalogs{clock: clock, entries: map[catalogKey]*catalogEntry{}}
}

// A catalogUse is a session's share in a catalog.
type catalogUse struct {
	all      *catalogs
	entry    *catalogEntry
	resource Resource
}

// use opens nothing yet; release ends the share.
func (c *catalogs) use(r Resource) *catalogUse {
	key := catalogKey{r.Address, r.Database, r.User, strings.Join(r.searchPath(), "\x00")}
	c.mu.Lock()
	defer c.mu.Unlock()
	entry := c.entries[key]
	if entry == nil {
		entry = &catalogEntry{key: key, busy: make(chan struct{}, 1), estimates: newEstimator()}
		c.entries[key] = entry
	}
	if entry.idle != nil {
		entry.idle.Stop()
		entry.idle = nil
	}
	entry.refs++
	return &catalogUse{c, entry, r}
}

func (u *catalogUse) release() {
	c, entry := u.all, u.entry
	c.mu.Lock()
	entry.refs--
	last, closed := entry.refs == 0, c.closed
	if last && !closed {
		entry.idle = time.AfterFunc(catalogIdle, func() { c.drop(entry) })
	}
	c.mu.Unlock()
	if last && closed {
		c.drop(entry)
	}
}

// drop closes an entry if nobody uses it.
func (c *catalogs) drop(entry *catalogEntry) {
	c.mu.Lock()
	unused := entry.refs == 0 && c.entries[entry.key] == entry
	if unused {
		delete(c.entries, entry.key)
	}
	c.mu.Unlock()
	if unused {
		entry.disconnect()
		entry.estimates.close()
	}
}

// close drops what no session uses; the rest goes with its last session.
func (c *catalogs) close() {
	c.mu.Lock()
	c.closed = true
	entries := slices.Collect(maps.Values(c.entries))
	c.mu.Unlock()
	for _, entry := range entries {
		c.drop(entry)
	}
}

// view returns the catalog as it was at most catalogAge ago, or, when fresh, as
// it is now.
func (u *catalogUse) view(ctx context.Context, fresh bool) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogWithin)
	defer cancel()
	entry := u.entry
	select {
	case entry.busy <- struct{}{}:
		defer func() { <-entry.busy }()
	case <-ctx.Done():
		return nil, fmt.Errorf("catalog of %s: %w", u.resource.Access.Name, ctx.Err())
	}
	now := u.all.clock()
	if age := now.Sub(entry.checked); !fresh && entry.view != nil && age >= 0 && age < catalogAge {
		return entry.view, nil
	}
	kept := entry.conn != nil
	loaded, err := entry.load(ctx, u.resource)
	if err != nil && kept && ctx.Err() == nil { // the connection had died meanwhile
		loaded, err = entry.load(ctx, u.resource)
	}
	if err != nil {
		return nil, fmt.Errorf("catalog of %s: %w", u.resource.Access.Name, err)
	}
	if old := entry.view; old == nil || old.snapshot.Version() != loaded.snapshot.Version() || old.powers != loaded.powers {
		entry.view = loaded
	}
	entry.checked = now
	return entry.view, nil
}

// load reads the catalog, over a new connection when there is none. After an
// error there is none.
func (e *catalogEntry) load(ctx context.Context, r Resource) (*view, error) {
	if e.conn == nil {
		config, err := targetConfig(ctx, r, map[string]string{"application_name": "chaperone catalog"})
		if err != nil {
			return nil, err
		}
		config.DefaultQueryExecMode = pgx.QueryExecModeExec
		if e.conn, err = pgx.ConnectConfig(ctx, config); err != nil {
			return nil, err
		}
	}
	snapshot, err := catalog.Load(ctx, e.conn)
	if err != nil {
		e.disconnect()
		return nil, err
	}
	loaded := &view{snapshot: snapshot}
	if err := e.conn.QueryRow(ctx, powersQuery).Scan(&loaded.powers); err != nil {
		e.disconnect()
		return nil, fmt.Errorf("attributes of the role: %w", err)
	}
	return loaded, nil
}

func (e *catalogEntry) disconnect() {
	if e.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	e.conn.Close(ctx)
	e.conn = nil
}

// powersQuery lists what lets a role around privileges on columns and rows.
const powersQuery = `
SELECT pg_catalog.concat_ws(', ',
	CASE WHEN r.rolsuper THEN 'SUPERUSER' END,
	CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END,
	CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
	CASE WHEN r.rolreplication THEN 'REPLICATION' END,
	(SELECT pg_catalog.string_agg(p.rolname::pg_catalog.text, ', ' ORDER BY p.rolname)
	   FROM pg_catalog.pg_roles p
	  WHERE p.rolname OPERATOR(pg_catalog.=) ANY ('{pg_read_server_files,pg_write_server_files,pg_execute_server_program}'::pg_catalog.name[])
	    AND pg_catalog.pg_has_role(r.oid, p.oid, 'MEMBER')))
  FROM pg_catalog.pg_roles r
 WHERE r.rolname OPERATOR(pg_catalog.=) current_user`

// hasColumnMask reports whether any mask hides a column.
func hasColumnMask(masks []access.Mask) bool {
	for _, m := range masks {
		if m.Column != "" {
			return true
		}
	}
	return false
}

// wall checks the database's own wall: the injected role must not be able to
// read what is masked, so that a mistake above it is a permission error and not
// a leak. Columns that some rule masks in part are left out, for that needs the
// privilege.
func (s *session) wall(v *view, masks []access.Mask) *refusal {
	if s.resource.Unwalled {
		return nil
	}
	var faults []string
	if v.powers != "" {
		faults = append(faults, "the role has "+v.powers)
	}
	partial := map[string]bool{}
	for _, m := range masks {
		if m.With == access.Partial {
			partial[m.Column] = true
		}
	}
	for _, m := range masks {
		if m.Column != "" && !partial[m.Column] && readable(v.snapshot, m.Column) {
			faults = append(faults, "the role may SELECT "+m.Column)
		}
	}
	if len(faults) == 0 {
		return nil
	}
	r := s.unavailable("the database role behind " + s.resource.Access.Name + " may read more than its policies show")
	r.denial.Hint = "an operator can run chaperone doctor --grants and apply what it prints, or set unwalled: true on the resource"
	r.cause = strings.Join(faults, "; ")
	return r
}

// readable reports whether the role may select schema.table.column, or the same
// column of a table that inherits from it.
func readable(snapshot *catalog.Snapshot, qualified string) bool {
	for i := range qualified {
		for j := i + 1; j < len(qualified); j++ {
			if qualified[i] != '.' || qualified[j] != '.' {
				continue
			}
			r := snapshot.Relation(qualified[:i], qualified[i+1:j])
			if r != nil && readableBelow(snapshot, r, qualified[j+1:], map[uint32]bool{}) {
				return true
			}
		}
	}
	return false
}

func readableBelow(snapshot *catalog.Snapshot, r *catalog.Relation, column string, seen map[uint32]bool) bool {
	if seen[r.OID] {
		return false
	}
	seen[r.OID] = true
	if c := r.Column(column); c != nil && c.CanSelect {
		return true
	}
	for _, oid := range snapshot.Children(r.OID) {
		if child := snapshot.RelationByOID(oid); child != nil && readableBelow(snapshot, child, column, seen) {
			return true
		}
	}
	return false
}
