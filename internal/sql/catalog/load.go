package catalog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Bounds of what Load reads. A catalog beyond them is refused whole: a part of
// it would bind names wrongly.
const (
	maxRelations = 50_000
	maxColumns   = 500_000
	maxObjects   = 100_000 // of each other kind
)

// ErrTooLarge says that the catalog is beyond what Load reads.
var ErrTooLarge = errors.New("the catalog is too large")

// ErrUnknownServer says that the server is not one whose grammar and functions
// are known here.
var ErrUnknownServer = errors.New("this server is not known")

// Servers whose functions were looked at. Their grammars are read with that of
// 17: what is new in 18 is refused, and the rest means the same.
const (
	oldestServer = 16
	newestServer = 18
)

// known refuses a server by what it says of itself. Those that speak
// PostgreSQL's protocol with a grammar, catalog and functions of their own
// mostly report a PostgreSQL version too.
func known(banner string, number int) error {
	name, rest, _ := strings.Cut(banner, " ")
	for _, other := range []string{"Greenplum", "Redshift", "CockroachDB", "Yugabyte", "-YB-", "EnterpriseDB", "Materialize", "Vertica", "CrateDB", "QuestDB", "openGauss"} {
		if strings.Contains(strings.ToLower(banner), strings.ToLower(other)) {
			return fmt.Errorf("%w: it is %s, and PostgreSQL's grammar does not say what its statements do", ErrUnknownServer, other)
		}
	}
	if name != "PostgreSQL" || rest == "" || rest[0] < '0' || rest[0] > '9' {
		return fmt.Errorf("%w: it does not call itself PostgreSQL", ErrUnknownServer)
	}
	if major := number / 10_000; major < oldestServer || major > newestServer {
		return fmt.Errorf("%w: PostgreSQL %d is not between %d and %d", ErrUnknownServer, major, oldestServer, newestServer)
	}
	return nil
}

// load reads in one repeatable-read transaction with pg_catalog alone on the
// path, so that no user's function, type or temporary object takes part.
func load(ctx context.Context, conn *pgx.Conn) (_ *Snapshot, err error) {
	var c Contents
	var banner, version string
	err = conn.QueryRow(ctx, sqlSession, pgx.QueryExecModeSimpleProtocol).
		Scan(&banner, &version, &c.Database, &c.User, &c.SearchPath)
	if err == nil {
		c.ServerVersion, err = strconv.Atoi(version)
	}
	if err != nil {
		return nil, fmt.Errorf("load the catalog: session: %w", err)
	}
	if err := known(banner, c.ServerVersion); err != nil {
		return nil, err
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("load the catalog: %w", err)
	}
	defer func() { err = errors.Join(err, tx.Rollback(ctx)) }() // nothing was changed
	if _, err := tx.Exec(ctx, "SET LOCAL search_path = pg_catalog, pg_temp"); err != nil {
		return nil, fmt.Errorf("load the catalog: %w", err)
	}
	l := loader{ctx: ctx, tx: tx, contents: &c, relations: map[uint32]int{}}
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"relations", l.loadRelations}, {"columns", l.loadColumns}, {"generated columns", l.loadGenerated},
		{"inheritance", l.loadInheritance}, {"partition keys", l.loadPartitionKeys}, {"constraints", l.loadConstraints}, {"indexes", l.loadIndexes},
		{"triggers", l.loadTriggers}, {"policies", l.loadPolicies}, {"folded expressions", l.loadFolded}, {"views", l.loadViews}, {"view sources", l.loadViewSources},
		{"types", l.loadTypes}, {"routines", l.loadRoutines}, {"operators", l.loadOperators}, {"casts", l.loadCasts},
	} {
		if err := step.run(); err != nil {
			return nil, fmt.Errorf("load the catalog: %s: %w", step.name, err)
		}
	}
	return New(c)
}

type loader struct {
	ctx       context.Context
	tx        pgx.Tx
	contents  *Contents
	relations map[uint32]int // oid → index in contents.Relations
}

// each scans every row of query with scan, limit rows at most.
func (l *loader) each(query string, limit int, scan func(pgx.Rows) error) error {
	rows, err := l.tx.Query(l.ctx, query, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return err
	}
	defer rows.Close()
	for n := 0; rows.Next(); n++ {
		if n >= limit {
			return fmt.Errorf("%w: more than %d rows", ErrTooLarge, limit)
		}
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// relation finds a relation loaded before; rows about others are left out.
func (l *loader) relation(oid uint32) *Relation {
	i, ok := l.relations[oid]
	if !ok {
		return nil
	}
	return &l.contents.Relations[i]
}

func (l *loader) loadRelations() error {
	return l.each(sqlRelations, maxRelations, func(rows pgx.Rows) error {
		var r Relation
		if err := rows.Scan(&r.OID, &r.Schema, &r.Name, &r.Kind, &r.HasRules); err != nil {
			return err
		}
		l.relations[r.OID] = len(l.contents.Relations)
		l.contents.Relations = append(l.contents.Relations, r)
		return nil
	})
}

func (l *loader) loadColumns() error {
	return l.each(sqlColumns, maxColumns, func(rows pgx.Rows) error {
		var oid uint32
		var c Column
		err := rows.Scan(&oid, &c.Number, &c.Name, &c.TypeOID, &c.TypeSchema, &c.TypeName, &c.Typmod, &c.TypeKind,
			&c.OwnType, &c.Extension, &c.Collation, &c.NotNull, &c.Generated, &c.CanSelect)
		if err != nil {
			return err
		}
		if r := l.relation(oid); r != nil {
			r.Columns = append(r.Columns, c)
		}
		return nil
	})
}

func (l *loader) loadGenerated() error {
	return l.each(sqlGenerated, maxColumns, func(rows pgx.Rows) error {
		var oid uint32
		var column, from string
		if err := rows.Scan(&oid, &column, &from); err != nil {
			return err
		}
		if r := l.relation(oid); r != nil {
			if c := r.Column(column); c != nil {
				c.From = append(c.From, from)
			}
		}
		return nil
	})
}

func (l *loader) loadInheritance() error {
	return l.each(sqlInheritance, maxRelations, func(rows pgx.Rows) error {
		var child, parent uint32
		if err := rows.Scan(&child, &parent); err != nil {
			return err
		}
		if r := l.relation(child); r != nil {
			r.Parents = append(r.Parents, parent)
		}
		return nil
	})
}

func (l *loader) loadConstraints() error {
	return l.each(sqlConstraints, maxObjects, func(rows pgx.Rows) error {
		var oid uint32
		var c Constraint
		if err := rows.Scan(&oid, &c.Kind, &c.Columns, &c.References, &c.Referenced, &c.Cascades); err != nil {
			return err
		}
		if r := l.relation(oid); r != nil {
			r.Constraints = append(r.Constraints, c)
		}
		return nil
	})
}

// loadIndexes reads unique and exclusion indexes with the columns in their
// expressions and predicates, which the constraints do not list.
func (l *loader) loadIndexes() error {
	return l.each(sqlIndexes, maxObjects, func(rows pgx.Rows) error {
		var oid uint32
		c := Constraint{Kind: "u"}
		if err := rows.Scan(&oid, &c.Columns); err != nil {
			return err
		}
		if r := l.relation(oid); r != nil {
			r.Constraints = append(r.Constraints, c)
		}
		return nil
	})
}

func (l *loader) loadTriggers() error {
	return l.each(sqlTriggers, maxObjects, func(rows pgx.Rows) error {
		var oid uint32
		var t Trigger
		if err := rows.Scan(&oid, &t.Name, &t.SecurityDefiner, &t.Deferrable); err != nil {
			return err
		}
		if r := l.relation(oid); r != nil {
			r.Triggers = append(r.Triggers, t)
		}
		return nil
	})
}

func (l *loader) loadPolicies() error {
	return l.loadTexts(sqlPolicies, func(r *Relation, text string) { r.Policies = append(r.Policies, text) })
}

func (l *loader) loadFolded() error {
	return l.loadTexts(sqlFolded, func(r *Relation, text string) { r.Folded = append(r.Folded, text) })
}

func (l *loader) loadPartitionKeys() error {
	return l.loadTexts(sqlPartitionKeys, func(r *Relation, text string) { r.PartitionedBy = append(r.PartitionedBy, text) })
}

func (l *loader) loadTexts(query string, add func(*Relation, string)) error {
	return l.each(query, maxObjects, func(rows pgx.Rows) error {
		var oid uint32
		var text string
		if err := rows.Scan(&oid, &text); err != nil {
			return err
		}
		if r := l.relation(oid); r != nil {
			add(r, text)
		}
		return nil
	})
}

func (l *loader) loadViews() error {
	return l.each(sqlViews, maxObjects, func(rows pgx.Rows) error {
		var oid uint32
		var definition string
		if err := rows.Scan(&oid, &definition); err != nil {
			return err
		}
		if r := l.relation(oid); r != nil {
			r.Definition = definition
		}
		return nil
	})
}

func (l *loader) loadViewSources() error {
	return l.each(sqlViewSources, maxColumns, func(rows pgx.Rows) error {
		var view uint32
		var source Source
		if err := rows.Scan(&view, &source.Relation, &source.Column); err != nil {
			return err
		}
		if r := l.relation(view); r != nil {
			r.Sources = append(r.Sources, source)
		}
		return nil
	})
}

func (l *loader) loadTypes() error {
	return l.each(sqlTypes, maxObjects, func(rows pgx.Rows) error {
		var t Type
		if err := rows.Scan(&t.Schema, &t.Name, &t.Kind, &t.Extension); err != nil {
			return err
		}
		l.contents.Types = append(l.contents.Types, t)
		return nil
	})
}

func (l *loader) loadRoutines() error {
	return l.each(sqlRoutines, maxObjects, func(rows pgx.Rows) error {
		var r Routine
		if err := rows.Scan(&r.Schema, &r.Name, &r.Arguments, &r.Extension, &r.OwnTypes, &r.Set); err != nil {
			return err
		}
		l.contents.Routines = append(l.contents.Routines, r)
		return nil
	})
}

func (l *loader) loadOperators() error {
	return l.each(sqlOperators, maxObjects, func(rows pgx.Rows) error {
		var o Operator
		if err := rows.Scan(&o.Schema, &o.Name, &o.Extension, &o.OwnTypes); err != nil {
			return err
		}
		l.contents.Operators = append(l.contents.Operators, o)
		return nil
	})
}

func (l *loader) loadCasts() error {
	return l.each(sqlCasts, maxObjects, func(rows pgx.Rows) error {
		var c Cast
		if err := rows.Scan(&c.Source, &c.Target, &c.Implicit, &c.OwnTypes, &c.Extension); err != nil {
			return err
		}
		l.contents.Casts = append(l.contents.Casts, c)
		return nil
	})
}
