package postgres

import (
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

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

// ownedQuery lists the relations whose owner the role is, or may become.
const ownedQuery = `
SELECT COALESCE(pg_catalog.array_agg(c.oid ORDER BY c.oid), '{}'::pg_catalog.oid[])
  FROM pg_catalog.pg_class c
 WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p,v,m,f}'::pg_catalog."char"[])
   AND pg_catalog.pg_has_role(c.relowner, 'MEMBER')
   AND c.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid`

// hasColumnMask reports whether any mask hides a column.
func hasColumnMask(masks []access.Mask) bool {
	for _, m := range masks {
		if m.Column != "" {
			return true
		}
	}
	return false
}

// wall refuses a session whose injected role can read what is masked, unless the
// resource says that it may.
func (s *session) wall(v *view, masks []access.Mask) *refusal {
	if s.resource.Unwalled {
		return nil
	}
	faults := wallFaults(v, masks)
	if len(faults) == 0 {
		return nil
	}
	r := s.unavailable("the database role behind " + s.resource.Access.Name + " may read more than its policies show")
	r.denial.Hint = "an operator can run chaperone doctor --grants and apply what it prints, or set unwalled: true on the resource"
	r.cause = strings.Join(faults, "; ")
	return r
}

// wallFaults checks the database's own wall: the injected role must not be able
// to read what is masked, so that a mistake above it is a permission error and
// not a leak. Columns that some rule masks in part are left out, for that needs
// the privilege.
func wallFaults(v *view, masks []access.Mask) (faults []string) {
	if v.powers != "" {
		faults = append(faults, "the role has "+v.powers)
	}
	owned := map[string]bool{}
	for _, m := range walled(masks) {
		readable := false
		for _, c := range columnsOf(v.snapshot, m.Column) {
			readable = readable || c.column.CanSelect
			if _, yes := slices.BinarySearch(v.owned, c.relation.OID); yes && !owned[c.relation.Qualified()] {
				owned[c.relation.Qualified()] = true
				faults = append(faults, "the role owns "+c.relation.Qualified())
			}
		}
		if readable {
			faults = append(faults, "the role may SELECT "+m.Column)
		}
	}
	return faults
}

// walled are the masks whose columns the role must not read.
func walled(masks []access.Mask) (out []access.Mask) {
	partial := map[string]bool{}
	for _, m := range masks {
		if m.With == access.Partial {
			partial[m.Column] = true
		}
	}
	for _, m := range masks {
		if m.Column != "" && !partial[m.Column] {
			out = append(out, m)
		}
	}
	return out
}

// A columnOf is a column where it is.
type columnOf struct {
	relation *catalog.Relation
	column   *catalog.Column
}

// columnsOf finds schema.table.column, and the same column of every table that
// inherits from it. The dots may be parts of names.
func columnsOf(snapshot *catalog.Snapshot, qualified string) (found []columnOf) {
	for i := range qualified {
		for j := i + 1; j < len(qualified); j++ {
			if qualified[i] != '.' || qualified[j] != '.' {
				continue
			}
			if r := snapshot.Relation(qualified[:i], qualified[i+1:j]); r != nil {
				found = append(found, columnsBelow(snapshot, r, qualified[j+1:], map[uint32]bool{})...)
			}
		}
	}
	return found
}

func columnsBelow(snapshot *catalog.Snapshot, r *catalog.Relation, column string, seen map[uint32]bool) (found []columnOf) {
	if seen[r.OID] {
		return nil
	}
	seen[r.OID] = true
	if c := r.Column(column); c != nil {
		found = append(found, columnOf{r, c})
	}
	for _, oid := range snapshot.Children(r.OID) {
		if child := snapshot.RelationByOID(oid); child != nil {
			found = append(found, columnsBelow(snapshot, child, column, seen)...)
		}
	}
	return found
}
