package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds on how far a deletion is followed.
const (
	maxListed  = 500 // objects of one kind
	maxAtOnce  = 8   // lists under way
	maxNames   = 5   // of one kind
	maxRemoved = 50  // kinds
)

// removal finds what a deletion would take along.
func (v *viewer) removal(ctx context.Context) error {
	k := v.Call
	if k.Subresource != "" {
		return errors.New("what this asks for is no object")
	}
	kept := v.terms()
	switch {
	case k.Verb == "deletecollection":
		roots, err := v.collection(ctx)
		if err != nil {
			return err
		}
		return v.along(ctx, roots, kept, k.Namespace)
	case k.Resource == "namespaces" && k.Group == "":
		return v.everything(ctx, k.Name, func(one kind) bool { return one.namespaced })
	}
	got, err := v.conn.do(ctx, call{method: http.MethodGet, path: k.Path})
	if err != nil {
		return err
	}
	var object struct {
		Metadata owned `json:"metadata"`
	}
	if got.status != http.StatusOK || json.Unmarshal(got.body, &object) != nil {
		return fmt.Errorf("the caller may not read what it deletes: %s", v.says(got))
	}
	root := object.Metadata
	root.what = kind{group: k.Group, resource: k.Resource}.String()
	v.finalizers([]owned{root})
	if k.Resource == "customresourcedefinitions" && k.Group == "apiextensions.k8s.io" { // its objects go with it
		return v.everything(ctx, "", func(one kind) bool { return one.String() == k.Name })
	}
	return v.along(ctx, []owned{root}, kept, k.Namespace)
}

// terms notes how the deletion is to be done, and reports whether dependents
// are kept.
func (v *viewer) terms() (kept bool) {
	options, _ := v.Call.Body.(map[string]any)
	if options == nil {
		options = map[string]any{}
		for name, values := range v.Call.Query {
			options[name] = values[0]
		}
	}
	policy, _ := options["propagationPolicy"].(string)
	switch orphan := fmt.Sprint(options["orphanDependents"]); {
	case policy != "":
	case orphan == "true":
		policy = "Orphan"
	case orphan != "false" && slices.Contains([]string{"batch/jobs", "/replicationcontrollers"}, v.Call.Group+"/"+v.Call.Resource):
		policy = "Orphan" // what the API server does with these when nothing is said
	default:
		policy = "Background"
	}
	says := map[string]string{"Orphan": "Orphan: what belongs to it is kept", "Background": "Background: what belongs to it goes after it",
		"Foreground": "Foreground: what belongs to it goes before it"}[policy]
	v.note("propagation " + cmp.Or(says, policy))
	if grace := options["gracePeriodSeconds"]; grace != nil {
		text := fmt.Sprintf("grace period %v s", grace)
		if fmt.Sprint(grace) == "0" {
			text += ": at once"
		}
		v.note(text)
	}
	return policy == "Orphan"
}

func (v *viewer) note(text string) {
	v.preview.Notes = append(v.preview.Notes, cut(v.plain(text), 2*maxValue))
}

// finalizers notes what a deletion waits for.
func (v *viewer) finalizers(roots []owned) {
	for _, r := range roots {
		if r.Deleted != "" {
			v.note(r.Name + " is being deleted already")
		}
		if len(r.Finalizers) > 0 {
			v.note(r.Name + " waits for its finalizers " + strings.Join(r.Finalizers, ", "))
		}
	}
}

// collection lists what a deletion of many would delete, and counts it.
func (v *viewer) collection(ctx context.Context) ([]owned, error) {
	k := v.Call
	query := url.Values{}
	for _, name := range []string{"labelSelector", "fieldSelector"} {
		if values := k.Query[name]; len(values) > 0 {
			query.Set(name, values[0])
		}
	}
	what := kind{group: k.Group, resource: k.Resource}.String()
	roots, more, err := v.list(ctx, what, k.Path, query)
	if err != nil {
		return nil, err
	}
	v.removes(what, roots, len(roots)+more)
	v.finalizers(roots[:min(len(roots), maxNames)])
	if more > 0 {
		v.note("what belongs to the first " + strconv.Itoa(maxListed) + " is looked for, and not to the others")
	}
	return roots, nil
}

// list returns the metadata of at most maxListed objects, and how many more
// there are, at least.
func (v *viewer) list(ctx context.Context, what, path string, query url.Values) ([]owned, int, error) {
	if query == nil {
		query = url.Values{}
	}
	query.Set("limit", strconv.Itoa(maxListed))
	got, err := v.conn.do(ctx, call{method: http.MethodGet, path: path, query: query, accept: metadataOnly})
	if err != nil {
		return nil, 0, err
	}
	var list metadataList
	if got.status != http.StatusOK || json.Unmarshal(got.body, &list) != nil {
		return nil, 0, fmt.Errorf("the caller may not list %s: %s", what, v.says(got))
	}
	out := make([]owned, len(list.Items))
	for i, one := range list.Items {
		out[i] = one.Metadata
		out[i].what = what
	}
	more := list.Metadata.Remaining
	if list.Metadata.Continue != "" {
		more = max(more, 1)
	}
	return out, more, nil
}

// removes adds a line.
func (v *viewer) removes(what string, some []owned, count int) {
	if count == 0 {
		return
	}
	if len(v.preview.Removes) == maxRemoved {
		v.preview.More += count
		return
	}
	r := access.Removal{What: what, Count: count}
	for _, o := range some[:min(len(some), maxNames)] {
		name := o.Name
		if o.Namespace != "" && o.Namespace != v.Call.Namespace && o.Namespace != v.Call.Name {
			name = o.Namespace + "/" + name
		}
		r.Names = append(r.Names, v.plain(name))
	}
	v.preview.Removes = append(v.preview.Removes, r)
}

// everything counts what there is of some kinds, in a namespace or in all.
func (v *viewer) everything(ctx context.Context, namespace string, of func(kind) bool) error {
	kinds, err := v.conn.kinds(ctx)
	if err != nil {
		return err
	}
	kinds = slices.DeleteFunc(kinds, func(k kind) bool { return !of(k) })
	found := v.listAll(ctx, kinds, namespace)
	for i, k := range kinds {
		v.removes(k.String(), found[i].objects, len(found[i].objects)+found[i].more)
	}
	v.unseen(ctx, kinds, found)
	return nil
}

// along follows ownerReferences from what is deleted.
func (v *viewer) along(ctx context.Context, roots []owned, kept bool, namespace string) error {
	if kept || len(roots) == 0 {
		return nil
	}
	kinds, err := v.conn.kinds(ctx)
	if err != nil {
		return err
	}
	if namespace != "" { // what is in a namespace owns nothing outside it
		kinds = slices.DeleteFunc(kinds, func(k kind) bool { return !k.namespaced })
	}
	found := v.listAll(ctx, kinds, namespace)
	children := map[string][]owned{}
	for _, f := range found {
		for _, o := range f.objects {
			for _, owner := range o.Owners {
				children[owner.UID] = append(children[owner.UID], o)
			}
		}
	}
	gone, lines := map[string]bool{}, map[string][]owned{}
	for _, r := range roots {
		gone[r.UID] = true
	}
	for next := roots; len(next) > 0; next = next[1:] {
		for _, o := range children[next[0].UID] {
			// It stays as long as one of its owners does.
			stays := slices.ContainsFunc(o.Owners, func(one owner) bool { return !gone[one.UID] })
			if !gone[o.UID] && !stays {
				gone[o.UID] = true
				lines[o.what] = append(lines[o.what], o)
				next = append(next, o)
			}
		}
	}
	for _, k := range kinds {
		v.removes(k.String(), lines[k.String()], len(lines[k.String()]))
	}
	v.unseen(ctx, kinds, found)
	return nil
}

// A listing is what is known of one kind.
type listing struct {
	objects []owned
	more    int
	err     error
}

// listAll lists all kinds, some at once, until the time is over.
func (v *viewer) listAll(ctx context.Context, kinds []kind, namespace string) []listing {
	out := make([]listing, len(kinds))
	var wg sync.WaitGroup
	places := make(chan struct{}, maxAtOnce)
	for i, k := range kinds {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			l := &out[i]
			l.objects, l.more, l.err = v.list(ctx, k.String(), k.path(namespace), nil)
		})
	}
	wg.Wait()
	return out
}

// unseen notes what could not be looked at.
func (v *viewer) unseen(ctx context.Context, kinds []kind, found []listing) {
	var closed, long []string
	for i, f := range found {
		if f.err != nil {
			closed = append(closed, kinds[i].String())
		}
		if f.more > 0 {
			long = append(long, kinds[i].String())
		}
	}
	if ctx.Err() != nil {
		v.note("cut short after " + previewWithin.String() + ": there may be more")
	}
	if len(closed) > 0 {
		v.note("not looked at: " + strings.Join(closed, ", "))
	}
	if len(long) > 0 {
		v.note(fmt.Sprintf("only the first %d were looked at of: %s", maxListed, strings.Join(long, ", ")))
	}
}
