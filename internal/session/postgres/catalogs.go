package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

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
	powers   string   // attributes that no wall withstands, comma separated
	owned    []uint32 // relations whose grants the role can change, ascending
}

// A checkedView is a view and when the target still had it.
type checkedView struct {
	view *view
	at   time.Time
}

// catalogs keeps one side connection per target, role and search_path, shared
// by the sessions that have them.
type catalogs struct {
	clock  func() time.Time
	logins logins

	mu      sync.Mutex
	entries map[catalogKey]*catalogEntry
	closed  bool
}

type catalogKey struct{ address, database, user, searchPath string }

type catalogEntry struct {
	key  catalogKey
	busy chan struct{} // holds a value while the fields below are in use

	estimates *estimator // has its own

	logins logins
	conn   *pgx.Conn
	end    func() // of the login of conn

	known atomic.Pointer[checkedView] // may be read by anybody

	refs int // guarded by catalogs.mu
	idle *time.Timer
}

func newCatalogs(clock func() time.Time, all logins) *catalogs {
	return &catalogs{clock: clock, logins: all, entries: map[catalogKey]*catalogEntry{}}
}

// A catalogUse is a session's share in a catalog.
type catalogUse struct {
	all      *catalogs
	entry    *catalogEntry
	resource Resource
}

// use opens nothing yet; release ends the share.
func (c *catalogs) use(r Resource) *catalogUse {
	key := catalogKey{r.Address, r.Database, r.User + "\x00" + r.Profile, strings.Join(r.searchPath(), "\x00")}
	c.mu.Lock()
	defer c.mu.Unlock()
	entry := c.entries[key]
	if entry == nil {
		entry = &catalogEntry{key: key, busy: make(chan struct{}, 1), logins: c.logins, estimates: newEstimator(c.logins)}
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
	if known := u.entry.known.Load(); !fresh && known != nil && u.all.isRecent(known.at) {
		return known.view, nil
	}
	ctx, cancel := context.WithTimeout(ctx, catalogWithin)
	defer cancel()
	entry := u.entry
	select {
	case entry.busy <- struct{}{}:
		defer func() { <-entry.busy }()
	case <-ctx.Done():
		return nil, fmt.Errorf("catalog of %s: %w", u.resource.Access.Name, ctx.Err())
	}
	now, known := u.all.clock(), entry.known.Load()
	if !fresh && known != nil && u.all.isRecent(known.at) {
		return known.view, nil
	}
	kept := entry.conn != nil
	loaded, err := entry.load(ctx, u.resource)
	if err != nil && kept && ctx.Err() == nil { // the connection had died meanwhile
		loaded, err = entry.load(ctx, u.resource)
	}
	if err != nil {
		return nil, fmt.Errorf("catalog of %s: %w", u.resource.Access.Name, err)
	}
	if known != nil && known.view.snapshot.Version() == loaded.snapshot.Version() && known.view.powers == loaded.powers &&
		slices.Equal(known.view.owned, loaded.owned) {
		loaded = known.view
	}
	entry.known.Store(&checkedView{loaded, now})
	return loaded, nil
}

// isRecent reports whether a catalog read at that time still serves.
func (c *catalogs) isRecent(at time.Time) bool {
	age := c.clock().Sub(at)
	return age >= 0 && age < catalogAge
}

// load reads the catalog, over a new connection when there is none. After an
// error there is none.
func (e *catalogEntry) load(ctx context.Context, r Resource) (*view, error) {
	if e.conn == nil {
		var err error
		if e.conn, e.end, err = connectBeside(ctx, e.logins, r, map[string]string{"application_name": "chaperone catalog"}); err != nil {
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
	if err := e.conn.QueryRow(ctx, ownedQuery).Scan(&loaded.owned); err != nil {
		e.disconnect()
		return nil, fmt.Errorf("what the role owns: %w", err)
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
	e.end()
}
