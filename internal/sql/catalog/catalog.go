// Package catalog holds what the gateway knows of a database's names: an
// immutable Snapshot of relations, columns, types, routines, operators and
// lineage as one role sees them, loaded over a side connection. It decides
// nothing about statements and never reads table data.
package catalog

// Contents is everything in a Snapshot. It is plain data, so that a test can
// write one by hand.
type Contents struct {
	ServerVersion int        `json:"server_version"` // server_version_num, for example 180004
	Database      string     `json:"database"`
	User          string     `json:"user"`        // current_user
	SearchPath    []string   `json:"search_path"` // as current_schemas(true): pg_catalog is in it where it is searched
	Relations     []Relation `json:"relations"`
	Types         []Type     `json:"types,omitempty"`     // outside pg_catalog
	Routines      []Routine  `json:"routines,omitempty"`  // that did not come with the server
	Operators     []Operator `json:"operators,omitempty"` // likewise
	Casts         []Cast     `json:"casts,omitempty"`     // that run such a function
}

// A RelationKind is pg_class.relkind.
type RelationKind string

// The kinds of relation.
const (
	Table            RelationKind = "r"
	PartitionedTable RelationKind = "p"
	View             RelationKind = "v"
	MaterializedView RelationKind = "m"
	ForeignTable     RelationKind = "f"
	Sequence         RelationKind = "S"
	CompositeType    RelationKind = "c"
)

// A Relation is one row of pg_class.
type Relation struct {
	OID     uint32       `json:"oid"`
	Schema  string       `json:"schema"`
	Name    string       `json:"name"`
	Kind    RelationKind `json:"kind"`
	Columns []Column     `json:"columns"`           // live ones, in attribute order
	Parents []uint32     `json:"parents,omitempty"` // pg_inherits: tables whose reads include this one
	// PartitionedBy are the columns that take part in the partition key, in
	// expressions too.
	PartitionedBy []string     `json:"partitioned_by,omitempty"`
	Constraints   []Constraint `json:"constraints,omitempty"` // keys, exclusions and references
	Definition    string       `json:"definition,omitempty"`  // of a view or matview, every name qualified; "" when unknown
	Sources       []Source     `json:"sources,omitempty"`     // what a view or matview depends on (pg_depend)
	HasRules      bool         `json:"has_rules,omitempty"`   // rewrite rules besides a view's own
	Triggers      []Trigger    `json:"triggers,omitempty"`    // not internal ones
	// Policies are the conditions of row security on reading, as SQL text in
	// which every name outside pg_catalog is qualified.
	Policies []string `json:"policies,omitempty"`
	// Folded are the expressions of indexes, checks, partition keys and
	// statistics that call what is outside pg_catalog: the planner runs the parts
	// of them that are constant. Names in them are qualified like those of Policies.
	Folded []string `json:"folded,omitempty"`
}

// A Source is a relation, or a column of one, that a view depends on. Whole rows
// are not told from the relation.
type Source struct {
	Relation uint32 `json:"relation"`
	Column   string `json:"column,omitempty"` // "" for the relation alone
}

// A Column is one live row of pg_attribute with a positive number. The type of
// a domain is that of its base, as on the wire: a mask of the domain itself
// would run its checks.
type Column struct {
	Number     int16    `json:"number"`
	Name       string   `json:"name"`
	TypeOID    uint32   `json:"type_oid"`
	TypeSchema string   `json:"type_schema"`
	TypeName   string   `json:"type_name"`           // pg_type.typname, for example varchar or _int4
	Typmod     int32    `json:"typmod"`              // -1 for none
	TypeKind   string   `json:"type_kind"`           // pg_type.typtype, of the element for an array: b, c, e, p, r, m
	OwnType    string   `json:"own_type,omitempty"`  // schema.name when the type, its element or its domain is outside pg_catalog
	Extension  string   `json:"extension,omitempty"` // that OwnType belongs to
	Collation  string   `json:"collation,omitempty"` // SQL text, when it is not the type's own
	NotNull    bool     `json:"not_null,omitempty"`
	Generated  bool     `json:"generated,omitempty"`
	From       []string `json:"from,omitempty"` // columns of the same relation that a generated column is computed from
	CanSelect  bool     `json:"can_select"`     // has_column_privilege(…, 'SELECT')
}

// A Constraint is a primary key, unique, exclusion or check constraint, a unique
// index, or a reference.
type Constraint struct {
	Kind       string   `json:"kind"`                 // pg_constraint.contype: p, u, x, c, f
	Columns    []string `json:"columns"`              // every column that takes part, in expressions too
	References uint32   `json:"references,omitempty"` // the other relation, for f
	Referenced []string `json:"referenced,omitempty"` // its columns
	// Cascades: changing or deleting what is referenced changes rows here.
	Cascades bool `json:"cascades,omitempty"`
}

// A Trigger is a user's trigger.
type Trigger struct {
	Name            string `json:"name"`
	SecurityDefiner bool   `json:"security_definer,omitempty"` // its function runs as its owner
	// Deferrable: it may run when the transaction commits.
	Deferrable bool `json:"deferrable,omitempty"`
}

// A Type is a type outside pg_catalog. Row types of relations are not listed.
type Type struct {
	Schema    string `json:"schema"`
	Name      string `json:"name"`
	Kind      string `json:"kind"` // pg_type.typtype, or a for the array type that the server makes of each
	Extension string `json:"extension,omitempty"`
}

// A Routine is a function, aggregate, window function or procedure that did not
// come with the server: outside pg_catalog, or put there later.
type Routine struct {
	Schema    string `json:"schema"`
	Name      string `json:"name"`
	Arguments string `json:"arguments,omitempty"` // types as format_type spells them: integer, text
	Extension string `json:"extension,omitempty"`
	// OwnTypes: every signature has an argument of a type outside pg_catalog,
	// so that it is never chosen for built-in types alone.
	OwnTypes bool `json:"own_types,omitempty"`
	Set      bool `json:"set,omitempty"` // it returns rows
}

// An Operator did not come with the server either; the fields mean the same as a
// Routine's.
type Operator struct {
	Schema    string `json:"schema"`
	Name      string `json:"name"`
	Extension string `json:"extension,omitempty"`
	OwnTypes  bool   `json:"own_types,omitempty"`
}

// A Cast runs a function that did not come with the server.
type Cast struct {
	Source    string `json:"source"` // format_type
	Target    string `json:"target"`
	Implicit  bool   `json:"implicit,omitempty"` // castcontext is not explicit
	OwnTypes  bool   `json:"own_types,omitempty"`
	Extension string `json:"extension,omitempty"`
}
