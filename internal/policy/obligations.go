package policy

import (
	"cmp"
	"slices"

	"chaperone.dev/chaperone/internal/access"
)

// obligations joins what all matching rules impose; approvals are those of the
// rules that ask for approval, in file order. With a single rule the slices are
// its own and shared: nobody writes them.
func obligations(approvals, allows []*rule) access.Obligations {
	var o access.Obligations
	masking := 0
	for _, rules := range [...][]*rule{approvals, allows} {
		for _, r := range rules {
			o.Limits = tighter(o.Limits, r.limits)
			if len(r.masks) > 0 {
				o.Masks = r.masks
				masking++
			}
		}
	}
	if masking > 1 {
		var all []access.Mask
		for _, rules := range [...][]*rule{approvals, allows} {
			for _, r := range rules {
				all = append(all, r.masks...)
			}
		}
		o.Masks = mergeMasks(all)
	}
	o.Approval = approvalOf(approvals)
	return o
}

// approvalOf joins the terms of several rules: the groups are those of the
// first rule in file order, and every other term is the strictest of all: the
// most reviewers, the shortest waiting and grant, and no holding inside a
// transaction unless all of them accept it.
func approvalOf(rules []*rule) *access.ApprovalTerms {
	if len(rules) == 0 {
		return nil
	}
	if len(rules) == 1 {
		return rules[0].approval
	}
	terms := *rules[0].approval
	for _, r := range rules[1:] {
		a := r.approval
		terms.Count = max(terms.Count, a.Count)
		terms.Expires = min(terms.Expires, a.Expires)
		terms.Window = min(terms.Window, a.Window) // 0 serves once: the strictest
		terms.InTransaction = terms.InTransaction && a.InTransaction
	}
	return &terms
}

// tighter takes the smaller of each pair of limits, 0 being none.
func tighter(a, b access.Limits) access.Limits {
	return access.Limits{
		RowsRead:    smaller(a.RowsRead, b.RowsRead),
		RowsChanged: smaller(a.RowsChanged, b.RowsChanged),
		Bytes:       smaller(a.Bytes, b.Bytes),
		Time:        smaller(a.Time, b.Time),
	}
}

func smaller[T ~int64](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// mergeMasks joins masks: one for each column and JSON pointer, and at most one
// for the detectors that redact and one for those that leave a part. Where the
// same thing is masked twice, redact wins. The order is fixed.
func mergeMasks(masks []access.Mask) []access.Mask {
	if len(masks) == 0 {
		return nil
	}
	columns, pointers, detected := map[string]access.MaskWith{}, map[string]access.MaskWith{}, map[string]access.MaskWith{}
	for _, m := range masks {
		switch {
		case m.Column != "":
			stricter(columns, m.Column, m.With)
		case m.JSON != "":
			stricter(pointers, m.JSON, m.With)
		}
		for _, d := range m.Detect {
			stricter(detected, d, m.With)
		}
	}
	var merged []access.Mask
	for name, with := range columns {
		merged = append(merged, access.Mask{Column: name, With: with})
	}
	for pointer, with := range pointers {
		merged = append(merged, access.Mask{JSON: pointer, With: with})
	}
	for _, with := range []access.MaskWith{access.Redact, access.Partial} {
		var names []string
		for d, w := range detected {
			if w == with {
				names = append(names, d)
			}
		}
		if slices.Sort(names); len(names) > 0 {
			merged = append(merged, access.Mask{Detect: names, With: with})
		}
	}
	slices.SortStableFunc(merged, func(a, b access.Mask) int {
		return cmp.Or(cmp.Compare(maskOrder(a), maskOrder(b)), cmp.Compare(a.Column, b.Column), cmp.Compare(a.JSON, b.JSON))
	})
	return merged
}

// maskOrder puts columns first, then JSON fields, then detectors.
func maskOrder(m access.Mask) int {
	switch {
	case m.Column != "":
		return 0
	case m.JSON != "":
		return 1
	}
	return 2
}

func stricter(of map[string]access.MaskWith, name string, with access.MaskWith) {
	if with == "" {
		with = access.Redact
	}
	if before, ok := of[name]; ok && before == access.Redact {
		return
	}
	of[name] = with
}
