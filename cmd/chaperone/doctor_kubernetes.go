package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/cluster"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/record"
)

// A clusterDiagnosis is the answer of doctor for one API server.
type clusterDiagnosis struct {
	Resource string `json:"resource"`
	*cluster.Examination
	Narrow   bool   `json:"narrow"`             // the account can do what it needs, and no more
	Manifest string `json:"manifest,omitempty"` // the RBAC that suffices
	Error    string `json:"error,omitempty"`    // it could not be examined
}

func examineCluster(ctx context.Context, res config.Resource) (*clusterDiagnosis, error) {
	ctx, cancel := context.WithTimeout(ctx, examineWithin)
	defer cancel()
	target, err := streamTarget(res, nil)
	if err != nil {
		return nil, err
	}
	needs := cluster.Needs{}
	if i := res.Kubernetes.Impersonate; i != nil {
		needs = cluster.Needs{Impersonates: true, Prefix: *i.Prefix, Groups: i.Groups}
	}
	d := &clusterDiagnosis{Resource: res.Name}
	if d.Examination, err = target.Examine(ctx, needs); err != nil {
		d.Examination, d.Error = &cluster.Examination{Groups: []string{}, Missing: []string{}, Excess: []string{}, Risks: []string{}}, err.Error()
		return d, nil
	}
	d.Narrow, d.Manifest = d.Examination.Narrow(), needs.Manifest(d.Account)
	return d, nil
}

func (d *clusterDiagnosis) sound() bool { return d.Narrow }

func (d *clusterDiagnosis) kind() access.Kind { return access.Kubernetes }

func (d *clusterDiagnosis) withoutGrants() { d.Manifest = "" }

// write prints lines that YAML takes for comments, but for the manifest, so that
// the whole can be piped into kubectl.
func (d *clusterDiagnosis) write(w io.Writer, withGrants bool) {
	fmt.Fprintf(w, "# resource %s\n", record.Visible(d.Resource))
	if d.Error != "" {
		fmt.Fprintf(w, "#   NOT EXAMINED: %s\n", record.Visible(d.Error))
		return
	}
	fmt.Fprintf(w, "#   Kubernetes %s, as %s, in %s\n", record.Visible(d.Version), record.Visible(d.Account), record.Visible(strings.Join(d.Groups, ", ")))
	for _, list := range []struct {
		title string
		lines []string
	}{{"MISSING", d.Missing}, {"EXCESS", d.Excess}, {"risk", d.Risks}} {
		for _, l := range list.lines {
			fmt.Fprintf(w, "#   %s: %s\n", list.title, record.Visible(l))
		}
	}
	if d.Narrow {
		fmt.Fprintln(w, "#   narrow: it can do what it needs, and no more")
	}
	if withGrants && d.Manifest != "" {
		fmt.Fprint(w, d.Manifest)
	}
}
