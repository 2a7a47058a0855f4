package sql

import (
	"slices"

	"chaperone.dev/chaperone/internal/sql/catalog"
)

// checkCascades refuses a change that reaches further rows by a reference and so
// fires triggers: there they run with the rights of the table's owner.
func (m *masking) checkCascades(st *Statement, c *change) *Refusal {
	queue := m.family(c.ref.relation)
	direct := len(queue)
	seen := map[uint32]bool{}
	for i := 0; i < len(queue); i++ {
		for _, oid := range m.cat.Followers(queue[i].OID) {
			follower := m.cat.RelationByOID(oid)
			if seen[oid] || i < direct && !c.reaches(queue[i], follower) {
				continue
			}
			seen[oid] = true
			for _, r := range m.family(follower) {
				if len(r.Triggers) > 0 {
					return maskedField(st.Text, c.ref.location, "Ask the operator to have those rows changed first.",
						"this may change rows of %s too, whose trigger %s may show masked values", r.Qualified(), r.Triggers[0].Name)
				}
				queue = append(queue, r)
			}
		}
	}
	return nil
}

// reaches reports whether a change of r changes rows of follower, which
// references it.
func (c *change) reaches(r, follower *catalog.Relation) bool {
	return follower != nil && slices.ContainsFunc(follower.Constraints, func(k catalog.Constraint) bool {
		if !k.Cascades || k.References != r.OID {
			return false
		}
		return c.command == "DELETE" || c.command == "MERGE" ||
			slices.ContainsFunc(k.Referenced, func(column string) bool { return c.replaced[column] })
	})
}
