package access

// An Action is what is asked of a resource, in the target's own terms. Exactly
// one of the members is set.
type Action struct {
	SQL  *SQL      `json:"sql,omitempty"`
	HTTP *HTTPCall `json:"http,omitempty"`
	SSH  *SSHCall  `json:"ssh,omitempty"`
	K8s  *K8s      `json:"k8s,omitempty"`
}

// SQL is one statement as the judge understood it. What could not be
// established is listed in Unknown, and then ReadOnly is false: unknown is not
// read-only.
type SQL struct {
	Text       string   `json:"text"`              // as the client sent it
	Forward    string   `json:"forward,omitempty"` // as the target gets it, when it differs
	Command    string   `json:"command"`           // SELECT, UPDATE, DROP TABLE, …; "" when unknown
	ReadOnly   bool     `json:"read_only"`         // everything in it is known to change nothing
	Tables     []string `json:"tables,omitempty"`  // schema.table, read or written, sorted, unique
	Reads      []string `json:"reads,omitempty"`   // schema.table
	Writes     []string `json:"writes,omitempty"`  // schema.table
	Columns    []string `json:"columns,omitempty"` // schema.table.column, read or written
	Functions  []string `json:"functions,omitempty"`
	Channels   []string `json:"channels,omitempty"` // of LISTEN and NOTIFY
	HasWhere   bool     `json:"has_where"`
	Statements int      `json:"statements"` // in the message this one came in
	Locks      bool     `json:"locks,omitempty"`
	DDL        bool     `json:"ddl,omitempty"`
	Privilege  bool     `json:"privilege,omitempty"` // changes who may do what: GRANT, roles, owners, row security
	Session    bool     `json:"session,omitempty"`   // changes the session: SET, BEGIN, …
	Unknown    []string `json:"unknown,omitempty"`   // why something is not known

	InTransaction bool             `json:"in_transaction,omitempty"`
	SearchPath    []string         `json:"search_path,omitempty"`
	Parameters    []BoundParameter `json:"parameters,omitempty"` // at Execute

	// EstimatedRows and EstimatedBytes are what the target's planner expects the
	// statement to return or to change, whichever is more; nil is not known. They
	// move with the target's statistics, so no grant depends on them.
	EstimatedRows  *int64 `json:"estimated_rows,omitempty"`
	EstimatedBytes *int64 `json:"estimated_bytes,omitempty"`
	// Plan is a digest of the plan's shape (its nodes, tables and indexes, no
	// numbers), where there is an estimate: two statements with the same one are
	// run the same way.
	Plan string `json:"plan,omitempty"`
}

// A BoundParameter is one value of a Bind message. Value is the text form, or
// base64 of the binary form when Binary is set; of a long value it is the
// beginning, and Size and SHA256 are of all of it.
type BoundParameter struct {
	Type   uint32 `json:"type"` // OID, 0 when the client left it to the server
	Value  string `json:"value,omitempty"`
	Null   bool   `json:"null,omitempty"`
	Binary bool   `json:"binary,omitempty"`
	Size   int64  `json:"size,omitempty"` // bytes; 0 when Value is all of it
	SHA256 string `json:"sha256,omitempty"`

	HoldsMask bool `json:"-"` // what of a long value is not in Value may hold a mask that came back
}

// A BodyState says how much of a request body is known.
type BodyState string

// The states of a request body. Only BodyWhole lets a condition read it; in
// the others what depends on the body is unknown.
const (
	BodyNone        BodyState = ""            // there is none
	BodyUnread      BodyState = "unread"      // no rule of the resource reads it
	BodyWhole       BodyState = "whole"       // decoded in Body
	BodyUndecodable BodyState = "undecodable" // not JSON, or too deep
)

// HTTPCall is one HTTP request. Path is the one that the target receives, with
// its percent-encoding undone.
// Header names are lower case; credentials are never among them.
type HTTPCall struct {
	Method     string              `json:"method"`
	Host       string              `json:"host"`
	Path       string              `json:"path"`
	Query      map[string][]string `json:"query,omitempty"`
	Headers    map[string][]string `json:"headers,omitempty"`
	BodyState  BodyState           `json:"body_state,omitempty"`
	Body       any                 `json:"body,omitempty"` // decoded JSON; numbers are json.Number
	BodyDigest string              `json:"body_digest,omitempty"`
	BodyBytes  int64               `json:"body_bytes,omitempty"`
}
