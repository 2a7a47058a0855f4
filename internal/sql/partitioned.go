package sql

import (
	"slices"

	"chaperone.dev/chaperone/internal/sql/catalog"
)

// A partition key says for each row in which partition it is; so where it is
// masked, the partition must not show: not by reading or changing one by its own
// name, not as tableoid, and not in a plan.

// checkPartition refuses a reference that shows the partition of rows.
func (m *masking) checkPartition(st *Statement, ref *reference) *Refusal {
	r := ref.relation
	if column := m.partitionKey(r); column != "" {
		return maskedField(st.Text, ref.location, "Name the table that is partitioned.",
			"which rows %s has would tell of %s, which is masked", r.Qualified(), column)
	}
	if !slices.Contains(ref.systems, "tableoid") && !st.body.explained {
		return nil
	}
	column := m.splits(r)
	for _, oid := range st.body.viewReads[r].reads { // a plan shows what is behind a view
		if column == "" {
			column = m.splits(m.cat.RelationByOID(oid))
		}
	}
	if column != "" {
		return maskedField(st.Text, ref.location, "Leave tableoid and EXPLAIN out here.",
			"which partition of %s a row is in would tell of %s, which is masked", r.Qualified(), column)
	}
	return nil
}

// partitionKey is a hidden column that decides which rows r, a partition, has; ""
// when there is none.
func (m *masking) partitionKey(r *catalog.Relation) string {
	if r == nil {
		return ""
	}
	for _, oid := range r.Parents {
		parent := m.cat.RelationByOID(oid)
		if parent == nil {
			continue
		}
		for _, column := range parent.PartitionedBy {
			if m.columns[oid][column] {
				return parent.Qualified() + "." + column
			}
		}
		if column := m.partitionKey(parent); column != "" {
			return column
		}
	}
	return ""
}

// splits is a hidden column that r, or a partition of it, is partitioned by; ""
// when there is none.
func (m *masking) splits(r *catalog.Relation) string {
	for _, one := range m.family(r) {
		for _, column := range one.PartitionedBy {
			if m.columns[one.OID][column] {
				return one.Qualified() + "." + column
			}
		}
	}
	return ""
}
