package postgres

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// An Examination is what the injected role of a resource can do, held against
// the masks of its policies.
type Examination struct {
	Resource  string `json:"resource"`
	Connected string `json:"connected,omitempty"` // where, as whom and how
	// Masked are the columns that some rule masks, with how.
	Masked []string `json:"masked"`
	// Missing is why a session is refused: walls that are not there.
	Missing  []string `json:"missing"`
	Unwalled bool     `json:"unwalled,omitempty"` // the resource accepts that
	// Risks refuse no session: the gateway's reading of SQL alone stands there.
	Risks []string `json:"risks"`
	// Statements put the walls up when a superuser runs them in the resource's
	// database. Lines that begin with -- say what needs a decision.
	Statements []string `json:"statements"`
}

// Walled reports whether sessions are accepted.
func (e *Examination) Walled() bool { return e.Unwalled || len(e.Missing) == 0 }

// Examine connects as a session does, with the injected credential, and checks
// what opening a session checks. It changes nothing. The masks are those of
// every principal, joined.
func Examine(ctx context.Context, r Resource, masks []access.Mask) (*Examination, error) {
	x := &Examination{
		Resource: r.Access.Name, Unwalled: r.Unwalled, Missing: []string{}, Masked: []string{}, Risks: []string{}, Statements: []string{},
		Connected: fmt.Sprintf("to %s, database %s, as %s, %s", r.Address, r.Database, r.User, r.how()),
	}
	if r.Profile != "" {
		if err := examineMaker(ctx, r, x); err != nil {
			return nil, fmt.Errorf("examine %s: %w", r.Access.Name, err)
		}
		if len(x.Missing) > 0 {
			x.Unwalled = false // no session opens, walled or not
			return x, nil
		}
	}
	made := newSessionRoles("doctor", time.Now, slog.New(slog.DiscardHandler))
	defer made.close()
	entry := &catalogEntry{logins: logins{made}}
	v, err := entry.load(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("examine %s: %w", r.Access.Name, err)
	}
	defer entry.disconnect()
	x.Missing = append(x.Missing, wallFaults(v, masks)...)
	for _, m := range masks {
		if m.Column != "" {
			x.Masked = append(x.Masked, fmt.Sprintf("%s with %s", m.Column, m.With))
			if len(columnsOf(v.snapshot, m.Column)) == 0 {
				x.Risks = append(x.Risks, "there is no column "+m.Column+" that a mask could hide")
			}
		}
	}
	g := &grants{view: v, conn: entry.conn, role: catalog.QuoteIdentifier(v.snapshot.User())}
	if err := g.collect(ctx, masks, x); err != nil {
		return nil, fmt.Errorf("examine %s: %w", r.Access.Name, err)
	}
	return x, nil
}

// how says how the resource's own credential is proved.
func (r Resource) how() string {
	how := "by password (SCRAM-SHA-256 only)"
	if r.Password == nil {
		how = "by client certificate"
	}
	if r.TLS != nil {
		how += " over TLS with a verified certificate"
	} else {
		how += " in the clear"
	}
	if r.Profile != "" {
		how += "; each session has a role of its own in " + r.Profile
	}
	return how
}

// makerQuery is what making roles in a profile takes.
const makerQuery = `
SELECT m.rolsuper, m.rolcreaterole, p.oid IS NOT NULL,
       COALESCE(pg_catalog.pg_has_role(m.oid, p.oid, 'MEMBER WITH ADMIN OPTION'), false), COALESCE(pg_catalog.pg_has_role(m.oid, p.oid, 'USAGE'), false)
  FROM pg_catalog.pg_roles m LEFT JOIN pg_catalog.pg_roles p ON p.rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name
 WHERE m.rolname OPERATOR(pg_catalog.=) current_user`

// examineMaker says whether the resource's own role can make roles in the
// profile, and can do no more than that.
func examineMaker(ctx context.Context, r Resource, x *Examination) error {
	by, err := r.own(ctx)
	if err != nil {
		return err
	}
	config, err := targetConfig(r, by, map[string]string{"application_name": "chaperone doctor"})
	if err != nil {
		return err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var super, creates, exists, admin, inherits bool
	if err := conn.QueryRow(ctx, makerQuery, r.Profile).Scan(&super, &creates, &exists, &admin, &inherits); err != nil {
		return err
	}
	maker, profile := catalog.QuoteIdentifier(r.User), catalog.QuoteIdentifier(r.Profile)
	for _, c := range []struct {
		bad             bool
		missing, remedy string
	}{
		{super, "the role that makes roles, " + r.User + ", is a superuser", "ALTER ROLE " + maker + " NOSUPERUSER CREATEROLE;"},
		{!super && !creates, r.User + " may not make roles", "ALTER ROLE " + maker + " CREATEROLE;"},
		{!exists, "there is no role " + r.Profile + " that sessions could have", "CREATE ROLE " + profile + " NOLOGIN;"},
		{!admin, r.User + " may not give " + r.Profile + " to the roles that it makes", "GRANT " + profile + " TO " + maker + " WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;"},
	} {
		if c.bad {
			x.Missing, x.Statements = append(x.Missing, c.missing), append(x.Statements, c.remedy)
		}
	}
	if inherits && !super {
		x.Risks = append(x.Risks, r.User+" has the rights of "+r.Profile+" itself, which making roles does not need")
	}
	if len(x.Missing) > 0 {
		x.Statements = append(x.Statements, "-- what sessions may read is examined when they can have roles; run doctor again then.")
	}
	return nil
}

// grants finds what has to change.
type grants struct {
	view  *view
	conn  *pgx.Conn
	role  string // quoted
	owner string // quoted: the role that the server was made with
	lines []string
}

func (g *grants) add(format string, args ...any) {
	g.lines = append(g.lines, fmt.Sprintf(format, args...))
}

// risksQuery lists what a role may become beyond itself, what it owns and which
// roles of the server let it see more than its tables.
const risksQuery = `
SELECT pg_catalog.concat('may become ', p.rolname, pg_catalog.concat_ws(', ', CASE WHEN p.rolsuper THEN ', a superuser' END,
         CASE WHEN p.rolbypassrls THEN ', which row security does not bind' END))
  FROM pg_catalog.pg_roles p
 WHERE p.rolname OPERATOR(pg_catalog.<>) current_user AND pg_catalog.pg_has_role(p.oid, 'MEMBER')
   AND (p.rolsuper OR p.rolbypassrls OR p.rolname OPERATOR(pg_catalog.=) ANY ('{pg_read_all_data,pg_write_all_data,pg_monitor,pg_read_all_stats,pg_read_all_settings,pg_signal_backend,pg_maintain,pg_checkpoint,pg_create_subscription}'::pg_catalog.name[]))
UNION ALL
SELECT pg_catalog.concat('owns ', n.nspname, '.', c.relname, ': row security does not bind it unless forced')
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p,v,m,f}'::pg_catalog."char"[]) AND pg_catalog.pg_has_role(c.relowner, 'MEMBER')
   AND c.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
 ORDER BY 1 LIMIT 200`

// collect fills in the risks and the statements.
func (g *grants) collect(ctx context.Context, masks []access.Mask, x *Examination) error {
	powers := strings.Split(g.view.powers, ", ")
	if slices.Contains(powers, "SUPERUSER") {
		g.add("-- everything is open to a superuser; this is the first step, run doctor again after it.")
		g.add("-- the role that the server was made with cannot be changed: give chaperone one of its own instead.")
		g.add("ALTER ROLE %s NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOREPLICATION;", g.role)
		x.Statements = g.lines
		return nil
	}
	if err := g.conn.QueryRow(ctx, `SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(10::pg_catalog.oid))`).Scan(&g.owner); err != nil {
		return err
	}
	risks, err := texts(ctx, g.conn, risksQuery)
	if err != nil {
		return err
	}
	x.Risks = append(x.Risks, risks...)
	for _, p := range powers {
		if p == strings.ToUpper(p) && p != "" {
			g.add("ALTER ROLE %s NO%s;", g.role, p)
		}
	}
	revoked := []string{"pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"}
	if len(x.Missing) > 0 {
		revoked = append(revoked, "pg_read_all_data")
	}
	memberships, err := texts(ctx, g.conn, membershipsQuery, revoked)
	if err != nil {
		return err
	}
	g.lines = append(g.lines, memberships...)
	hidden := []uint32{}
	for _, t := range g.masked(masks) {
		if len(t.hidden) > 0 {
			hidden = append(hidden, t.OID)
		}
		if err := g.table(ctx, t); err != nil {
			return err
		}
	}
	views, err := texts(ctx, g.conn, viewsQuery, hidden)
	if err != nil {
		return err
	}
	x.Risks = append(x.Risks, views...)
	x.Statements = append(x.Statements, g.lines...)
	return nil
}

// viewsQuery lists the views that the role may read, with their owners' rights,
// over tables with masked columns, directly or through other views.
const viewsQuery = `
WITH RECURSIVE reads AS (
  SELECT w.ev_class AS view, d.refobjid AS source FROM pg_catalog.pg_rewrite w
    JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid OPERATOR(pg_catalog.=) w.oid
     AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid OPERATOR(pg_catalog.<>) w.ev_class),
below AS (
  SELECT view, source FROM reads UNION SELECT b.view, r.source FROM below b JOIN reads r ON r.view OPERATOR(pg_catalog.=) b.source)
SELECT DISTINCT pg_catalog.concat('may read the view ', n.nspname, '.', c.relname, ', which reads ', tn.nspname, '.', t.relname, ' with the rights of its owner: only the gateway masks what it shows')
  FROM below b JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) b.view JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
  JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) b.source JOIN pg_catalog.pg_namespace tn ON tn.oid OPERATOR(pg_catalog.=) t.relnamespace
 WHERE b.source OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.oid[]) AND c.relkind OPERATOR(pg_catalog.=) ANY ('{v,m}'::pg_catalog."char"[])
   AND pg_catalog.has_any_column_privilege(c.oid, 'SELECT')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_options_to_table(c.reloptions) o
                    WHERE o.option_name OPERATOR(pg_catalog.=) 'security_invoker' AND o.option_value::pg_catalog.bool)
 ORDER BY 1 LIMIT 200`

// membershipsQuery takes roles away from every member through whom the role has
// them.
const membershipsQuery = `
SELECT pg_catalog.concat('REVOKE ', pg_catalog.quote_ident(g.rolname), ' FROM ', pg_catalog.quote_ident(m.rolname),
         ' GRANTED BY ', pg_catalog.quote_ident(b.rolname), ' CASCADE;')
  FROM pg_catalog.pg_auth_members a
  JOIN pg_catalog.pg_roles g ON g.oid OPERATOR(pg_catalog.=) a.roleid
  JOIN pg_catalog.pg_roles m ON m.oid OPERATOR(pg_catalog.=) a.member
  JOIN pg_catalog.pg_roles b ON b.oid OPERATOR(pg_catalog.=) a.grantor
 WHERE g.rolname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[]::pg_catalog.name[]) AND pg_catalog.pg_has_role(m.oid, 'MEMBER')
 ORDER BY 1`

func texts(ctx context.Context, conn *pgx.Conn, query string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// A maskedTable is a relation with masked columns.
type maskedTable struct {
	*catalog.Relation
	hidden  map[string]bool // must not be readable
	partial map[string]bool // must be, for their masks
}

// masked lists the relations that masks are about, in the order of their names.
func (g *grants) masked(masks []access.Mask) []*maskedTable {
	tables := map[uint32]*maskedTable{}
	add := func(m access.Mask, hide bool) {
		for _, c := range columnsOf(g.view.snapshot, m.Column) {
			t := tables[c.relation.OID]
			if t == nil {
				t = &maskedTable{c.relation, map[string]bool{}, map[string]bool{}}
				tables[c.relation.OID] = t
			}
			if hide {
				t.hidden[c.column.Name] = true
			} else if m.With == access.Partial {
				t.partial[c.column.Name] = true
			}
		}
	}
	for _, m := range walled(masks) {
		add(m, true)
	}
	for _, m := range masks {
		if m.Column != "" {
			add(m, false)
		}
	}
	list := make([]*maskedTable, 0, len(tables))
	for _, t := range tables {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b *maskedTable) int { return cmp.Compare(a.Qualified(), b.Qualified()) })
	return list
}

// A selectGrant gives SELECT on a table, or on one column of it, to the role
// itself, to one that it is a member of, or to everybody.
type selectGrant struct{ Grantee, Grantor, Column string }

const selectGrantsQuery = `
SELECT CASE WHEN a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END AS grantee,
       CASE WHEN a.grantor OPERATOR(pg_catalog.=) c.relowner THEN '' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantor)) END AS grantor, a.column
  FROM pg_catalog.pg_class c,
LATERAL (SELECT x.grantee, x.grantor, x.privilege_type, ''::pg_catalog.text AS column FROM pg_catalog.aclexplode(c.relacl) x
         UNION ALL
         SELECT x.grantee, x.grantor, x.privilege_type, t.attname::pg_catalog.text FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) x
          WHERE t.attrelid OPERATOR(pg_catalog.=) c.oid AND t.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2) a
 WHERE c.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid AND a.privilege_type OPERATOR(pg_catalog.=) 'SELECT'
   AND a.grantee OPERATOR(pg_catalog.<>) c.relowner
   AND (a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid OR pg_catalog.pg_has_role(a.grantee, 'USAGE'))
 ORDER BY 3, 1, 2`

// table writes the statements for one table: what shows a masked column is
// taken back, and what of the rest was readable is given again.
func (g *grants) table(ctx context.Context, t *maskedTable) error {
	name := catalog.QuoteIdentifier(t.Schema) + "." + catalog.QuoteIdentifier(t.Name)
	rows, err := g.conn.Query(ctx, selectGrantsQuery, t.OID)
	if err != nil {
		return err
	}
	given, err := pgx.CollectRows(rows, pgx.RowToStructByPos[selectGrant])
	if err != nil {
		return err
	}
	if _, owned := slices.BinarySearch(g.view.owned, t.OID); owned && len(t.hidden) > 0 {
		g.add("-- an owner grants itself what it lacks; the new owner may be any role that chaperone does not use.")
		g.add("ALTER TABLE %s OWNER TO %s;", name, g.owner)
	}
	columns := t.shown(func(c *catalog.Column) bool { return c.CanSelect })
	readable := slices.ContainsFunc(t.Columns, func(c catalog.Column) bool { return c.CanSelect })
	if !readable {
		columns = t.shown(func(*catalog.Column) bool { return true })
	}
	restored := false
	for _, s := range given {
		switch {
		case s.Column == "" && len(t.hidden) > 0:
			g.revoke(s, fmt.Sprintf("REVOKE SELECT ON %s FROM %s CASCADE;", name, s.Grantee))
			if columns != "" {
				g.add("GRANT SELECT (%s) ON %s TO %s;", columns, name, s.Grantee)
			}
			restored = true
		case t.hidden[s.Column]:
			g.revoke(s, fmt.Sprintf("REVOKE SELECT (%s) ON %s FROM %s CASCADE;", catalog.QuoteIdentifier(s.Column), name, s.Grantee))
		}
	}
	if lost := t.lost(readable, given); columns != "" && !restored && lost {
		g.add("GRANT SELECT (%s) ON %s TO %s;", columns, name, g.role)
	}
	return nil
}

// revoke adds a statement that only the grantor's own word undoes.
func (g *grants) revoke(s selectGrant, statement string) {
	if s.Grantor != "" {
		statement = "SET ROLE " + s.Grantor + "; " + statement + " RESET ROLE;"
	}
	g.lines = append(g.lines, statement)
}

// shown lists the columns that are not hidden and that keep is true of; those
// with a partial mask always.
func (t *maskedTable) shown(keep func(*catalog.Column) bool) string {
	var names []string
	for i := range t.Columns {
		if c := &t.Columns[i]; !t.hidden[c.Name] && (keep(c) || t.partial[c.Name]) {
			names = append(names, catalog.QuoteIdentifier(c.Name))
		}
	}
	return strings.Join(names, ", ")
}

// lost reports whether the role needs a grant of its own: it reads nothing yet,
// or through ownership or a role that is taken away, or lacks what a partial
// mask reads.
func (t *maskedTable) lost(readable bool, given []selectGrant) bool {
	if !readable || len(given) == 0 {
		return true
	}
	return slices.ContainsFunc(t.Columns, func(c catalog.Column) bool { return t.partial[c.Name] && !c.CanSelect })
}
