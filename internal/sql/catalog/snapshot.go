package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A Snapshot is an immutable, indexed Contents. It is safe for concurrent use.
type Snapshot struct {
	contents  Contents
	version   string
	byName    map[name]*Relation
	byOID     map[uint32]*Relation
	children  map[uint32][]uint32
	followers map[uint32][]uint32
	types     map[name]*Type
	bases     []*Type
	routines  map[string][]*Routine
	operators map[string][]*Operator
	defers    bool
}

type name struct{ schema, name string }

// New indexes c. It fails on contents that contradict themselves: a relation or
// column twice, a parent that is not there. The Snapshot owns c afterwards.
func New(c Contents) (*Snapshot, error) {
	s := &Snapshot{
		contents: c, byName: map[name]*Relation{}, byOID: map[uint32]*Relation{}, children: map[uint32][]uint32{}, followers: map[uint32][]uint32{},
		types: map[name]*Type{}, routines: map[string][]*Routine{}, operators: map[string][]*Operator{},
	}
	for i := range s.contents.Relations {
		if err := s.addRelation(&s.contents.Relations[i]); err != nil {
			return nil, err
		}
	}
	for i := range s.contents.Types {
		t := &s.contents.Types[i]
		s.types[name{t.Schema, t.Name}] = t
		if t.Kind == "b" || t.Kind == "r" {
			s.bases = append(s.bases, t)
		}
	}
	for i := range s.contents.Routines {
		r := &s.contents.Routines[i]
		s.routines[r.Name] = append(s.routines[r.Name], r)
	}
	for i := range s.contents.Operators {
		o := &s.contents.Operators[i]
		s.operators[o.Name] = append(s.operators[o.Name], o)
	}
	b, err := json.Marshal(s.contents)
	if err != nil {
		return nil, fmt.Errorf("digest the catalog: %w", err)
	}
	sum := sha256.Sum256(b)
	s.version = "sha256:" + hex.EncodeToString(sum[:])
	return s, nil
}

func (s *Snapshot) addRelation(r *Relation) error {
	key := name{r.Schema, r.Name}
	if s.byName[key] != nil || s.byOID[r.OID] != nil {
		return fmt.Errorf("catalog lists relation %s (%d) twice", r.Qualified(), r.OID)
	}
	seen := map[string]bool{}
	for _, c := range r.Columns {
		if seen[c.Name] {
			return fmt.Errorf("catalog lists column %s.%s twice", r.Qualified(), c.Name)
		}
		seen[c.Name] = true
	}
	s.byName[key], s.byOID[r.OID] = r, r
	s.defers = s.defers || slices.ContainsFunc(r.Triggers, func(t Trigger) bool { return t.Deferrable })
	for _, parent := range r.Parents {
		s.children[parent] = append(s.children[parent], r.OID)
	}
	for _, k := range r.Constraints {
		if k.Cascades {
			s.followers[k.References] = append(s.followers[k.References], r.OID)
		}
	}
	return nil
}

// Version is a digest of the contents: two snapshots with the same version bind
// every statement alike.
func (s *Snapshot) Version() string { return s.version }

// ServerVersion is server_version_num.
func (s *Snapshot) ServerVersion() int { return s.contents.ServerVersion }

// Database is the name of the database.
func (s *Snapshot) Database() string { return s.contents.Database }

// User is the role that the snapshot was loaded as.
func (s *Snapshot) User() string { return s.contents.User }

// SearchPath is the effective path, pg_catalog included. The session must have
// the same one.
func (s *Snapshot) SearchPath() []string { return slices.Clone(s.contents.SearchPath) }

// Relation finds schema.rel, or returns nil.
func (s *Snapshot) Relation(schema, rel string) *Relation { return s.byName[name{schema, rel}] }

// RelationByOID finds a relation, or returns nil.
func (s *Snapshot) RelationByOID(oid uint32) *Relation { return s.byOID[oid] }

// Resolve finds the relation that an unqualified name means, or returns nil.
func (s *Snapshot) Resolve(rel string) *Relation {
	for _, schema := range s.contents.SearchPath {
		if r := s.byName[name{schema, rel}]; r != nil {
			return r
		}
	}
	return nil
}

// Children lists the relations that inherit directly from oid.
func (s *Snapshot) Children(oid uint32) []uint32 { return s.children[oid] }

// Followers lists the relations whose rows may change when what they reference
// in oid is changed or deleted.
func (s *Snapshot) Followers(oid uint32) []uint32 { return s.followers[oid] }

// DefersTriggers reports whether any table has a trigger that may run when the
// transaction commits.
func (s *Snapshot) DefersTriggers() bool { return s.defers }

// Type finds a type outside pg_catalog, or returns nil.
func (s *Snapshot) Type(schema, typ string) *Type { return s.types[name{schema, typ}] }

// Bases lists the base and range types outside pg_catalog: those whose values
// are read and written by functions of their own.
func (s *Snapshot) Bases() []*Type { return s.bases }

// Routines lists the routines of that name that did not come with the server,
// in any schema.
func (s *Snapshot) Routines(routine string) []*Routine { return s.routines[routine] }

// Operators lists the operators of that name that did not come with the server,
// in any schema.
func (s *Snapshot) Operators(op string) []*Operator { return s.operators[op] }

// Casts lists the casts that run a function that did not come with the server.
func (s *Snapshot) Casts() []Cast { return s.contents.Casts }

// Qualified is schema.name without quotes: the form of access.SQL and of masks.
func (r *Relation) Qualified() string { return r.Schema + "." + r.Name }

// Column finds a column, or returns nil.
func (r *Relation) Column(column string) *Column {
	for i := range r.Columns {
		if r.Columns[i].Name == column {
			return &r.Columns[i]
		}
	}
	return nil
}

// PrimaryKey is the columns of the primary key, or nil.
func (r *Relation) PrimaryKey() []string {
	for _, c := range r.Constraints {
		if c.Kind == "p" {
			return c.Columns
		}
	}
	return nil
}

// QuoteIdentifier quotes s for SQL text, always.
func QuoteIdentifier(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// Load reads the catalog as conn's role sees it, in one read-only snapshot of
// its own. conn must be a side connection outside a transaction, with the
// search_path that sessions get; it is left as it was. Load bounds what it
// reads and fails on a catalog beyond that bound.
func Load(ctx context.Context, conn *pgx.Conn) (*Snapshot, error) { return load(ctx, conn) }
