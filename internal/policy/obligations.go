package policy

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// obligations joins what all matching rules impose; approvals are those of the
// rules that ask for approval. All are in file order.
func (sc *scope) obligations(approvals, allows []*rule) access.Obligations {
	const unset = -1
	longest := time.Duration(unset)
	var o access.Obligations
	for _, rules := range [...][]*rule{approvals, allows} {
		for _, r := range rules {
			o.Limits = tighter(o.Limits, r.limits)
			if longest == unset || r.session < longest {
				longest = r.session
			}
		}
	}
	o.SessionMax = max(longest, 0)
	o.Masks = sc.joined.of(approvals, allows)
	o.WriteMasked = writeMasked(approvals, allows)
	o.Approval = approvalOf(approvals)
	return o
}

// writeMasked are the columns that any of the rules lets be written, in order.
func writeMasked(approvals, allows []*rule) (columns []string) {
	for _, rules := range [...][]*rule{approvals, allows} {
		for _, r := range rules {
			columns = append(columns, r.writeMasked...)
		}
	}
	return sorted(columns)
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}

// maxJoined bounds how many combinations of rules a scope remembers.
const maxJoined = 16

// joinedMasks remembers the masks of the combinations of rules that matched, so
// that the same statements again do not join them again. It is safe for
// concurrent use.
type joinedMasks struct {
	known atomic.Pointer[[]joinedRules]
}

type joinedRules struct {
	rules []*rule
	masks []access.Mask
}

// of returns the masks of all the rules. With a single rule that masks they are
// its own; they are shared in any case, and nobody writes them.
func (j *joinedMasks) of(approvals, allows []*rule) []access.Mask {
	var single []access.Mask
	masking := 0
	for _, rules := range [...][]*rule{approvals, allows} {
		for _, r := range rules {
			if len(r.masks) > 0 {
				single = r.masks
				masking++
			}
		}
	}
	if masking <= 1 {
		return single
	}
	known := j.known.Load()
	if known != nil {
		for _, k := range *known {
			if n := len(approvals); len(k.rules) == n+len(allows) && slices.Equal(k.rules[:n], approvals) && slices.Equal(k.rules[n:], allows) {
				return k.masks
			}
		}
	}
	return j.join(known, slices.Concat(approvals, allows))
}

func (j *joinedMasks) join(known *[]joinedRules, rules []*rule) []access.Mask {
	var all []access.Mask
	for _, r := range rules {
		all = append(all, r.masks...)
	}
	masks := mergeMasks(all)
	var more []joinedRules
	if known != nil {
		more = slices.Clone(*known)
	}
	if len(more) < maxJoined {
		more = append(more, joinedRules{rules, masks})
		j.known.CompareAndSwap(known, &more) // another one's addition may win; this one is joined again
	}
	return masks
}

// approvalOf joins the terms of several rules: the groups are those of the
// first rule in file order, and every other term is the strictest of all: the
// most reviewers, the shortest waiting and grant, and no holding inside a
// transaction unless all of them accept it.
func approvalOf(rules []*rule) *access.ApprovalTerms {
	if len(rules) == 0 {
		return nil
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
		Session:     tighterQuota(a.Session, b.Session),
		Hour:        tighterQuota(a.Hour, b.Hour),
	}
}

func tighterQuota(a, b access.Quota) access.Quota {
	return access.Quota{
		Statements:  smaller(a.Statements, b.Statements),
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
// same thing is masked twice, redact wins; of Secrets are excepted those that all
// who except any do. The order is fixed.
func mergeMasks(masks []access.Mask) []access.Mask {
	if len(masks) == 0 {
		return nil
	}
	columns, pointers, detected := map[string]access.MaskWith{}, map[string]access.MaskWith{}, map[string]access.MaskWith{}
	var excepted []string
	said := false
	for _, m := range masks {
		switch {
		case len(m.SecretsExcept) > 0 && said:
			excepted = slices.DeleteFunc(excepted, func(t string) bool { return !slices.Contains(m.SecretsExcept, t) })
		case len(m.SecretsExcept) > 0:
			excepted, said = sorted(m.SecretsExcept), true
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
	if len(excepted) > 0 {
		merged = append(merged, access.Mask{SecretsExcept: excepted})
	}
	slices.SortStableFunc(merged, func(a, b access.Mask) int {
		return cmp.Or(cmp.Compare(maskOrder(a), maskOrder(b)), cmp.Compare(a.Column, b.Column), cmp.Compare(a.JSON, b.JSON))
	})
	return slices.Clip(merged) // an append by whoever gets it copies
}

// maskOrder puts columns first, then JSON fields, then detectors, then what is
// excepted.
func maskOrder(m access.Mask) int {
	switch {
	case m.Column != "":
		return 0
	case m.JSON != "":
		return 1
	case len(m.Detect) > 0:
		return 2
	}
	return 3
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
