package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/policy"
	"chaperone.dev/chaperone/internal/record"
	"chaperone.dev/chaperone/internal/session/postgres"
)

// examineWithin bounds the examination of one database.
const examineWithin = 30 * time.Second

// A finding is the answer of doctor for one resource.
type finding interface {
	kind() access.Kind
	sound() bool
	withoutGrants()
	write(w io.Writer, withGrants bool)
}

// A diagnosis is the answer of doctor for one database.
type diagnosis struct {
	*postgres.Examination
	Walled bool   `json:"walled"`          // sessions are accepted
	Error  string `json:"error,omitempty"` // it could not be examined
}

func doctorCommand() *cobra.Command {
	var file, output string
	var withGrants bool
	c := &cobra.Command{
		Use:   "doctor [RESOURCE]",
		Short: "Say what the gateway's own accounts can do beyond what they need",
		Long: `doctor connects to each PostgreSQL resource of the configuration, or to the one
named, with the credential that sessions get, and says what stands between a
mistake in the gateway and the data: attributes of the role, tables that it owns,
masked columns that it may read. A session checks the same when it opens. With
--grants it also prints the statements that put it right, for somebody to read
and to run in that database as a superuser.

At each Kubernetes API server it says who the gateway's account is, what it may
do beyond acting as the configured callers, what it lacks for that, and whether
anybody gets in without a credential. With --grants it prints the RBAC that
suffices.

At each account of each SSH host it logs in as a session would, and says what
keeps sessions from working and what opens the account past the gateway. It runs
echo "$SHELL" and looks for authorized_keys there, and makes a few logins that
must fail. With --grants it prints lines for sshd_config.

It changes nothing itself.

Exit status: 0 every database is walled or says unwalled: true and every account
at an API server can do what it needs and no more, and sessions at every host
work, 1 one is not so or cannot be
reached, 2 usage.`,
		Example: `  chaperone doctor --config chaperone.yaml
  chaperone doctor --grants --config chaperone.yaml orders
  chaperone doctor --grants --config chaperone.yaml cluster
  chaperone doctor --grants --config chaperone.yaml web
  chaperone doctor --grants --config chaperone.yaml -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("%w: --output is table or json", errUsage)
			}
			found, err := diagnose(c.Context(), file, args)
			if err != nil {
				return err
			}
			if withGrants && output == "table" && slices.ContainsFunc(found, func(d finding) bool { return d.kind() != found[0].kind() }) {
				return fmt.Errorf("%w: --grants prints SQL, RBAC and lines for sshd_config: name a resource, or use -o json", errUsage)
			}
			if !withGrants {
				for _, d := range found {
					d.withoutGrants()
				}
			}
			if output == "json" {
				fmt.Fprintln(c.OutOrStdout(), indentJSON(found))
			} else {
				for _, d := range found {
					d.write(c.OutOrStdout(), withGrants)
				}
			}
			if slices.ContainsFunc(found, func(d finding) bool { return !d.sound() }) {
				return errReported
			}
			return nil
		},
	}
	configFlag(c, &file)
	c.Flags().BoolVar(&withGrants, "grants", false, "print the statements that put it right")
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

func (d *diagnosis) kind() access.Kind { return access.Postgres }

func (d *diagnosis) sound() bool { return d.Walled }

func (d *diagnosis) withoutGrants() { d.Statements = []string{} }

// diagnose examines the named resource, or every database, API server and host.
func diagnose(ctx context.Context, file string, names []string) ([]finding, error) {
	cfg, err := config.Load(file)
	if err != nil {
		return nil, err
	}
	set, err := policy.LoadDir(cfg.Policies)
	if err != nil {
		return nil, err
	}
	engine := policy.NewEngine(set)
	found := []finding{}
	for _, res := range cfg.Resources {
		if len(names) > 0 && !slices.Contains(names, res.Name) {
			continue
		}
		if res.Kind == access.Kubernetes {
			d, err := examineCluster(ctx, res)
			if err != nil {
				return nil, fmt.Errorf("resource %s: %w", res.Name, err)
			}
			found = append(found, d)
		}
		if res.Kind == access.SSH {
			of, err := examineHost(ctx, cfg, res)
			if err != nil {
				return nil, fmt.Errorf("resource %s: %w", res.Name, err)
			}
			found = append(found, of...)
		}
		if res.Kind != access.Postgres {
			continue
		}
		target, err := postgresTarget(res)
		if err != nil {
			return nil, fmt.Errorf("resource %s: %w", res.Name, err)
		}
		found = append(found, examine(ctx, target, engine.MasksOf(res.Access())))
	}
	if len(names) > 0 && len(found) == 0 {
		return nil, fmt.Errorf("%w: %s has no PostgreSQL, Kubernetes or SSH resource %q", errUsage, file, names[0])
	}
	return found, nil
}

func examine(ctx context.Context, target postgres.Resource, masks []access.Mask) *diagnosis {
	ctx, cancel := context.WithTimeout(ctx, examineWithin)
	defer cancel()
	x, err := postgres.Examine(ctx, target, masks)
	if err != nil {
		x = &postgres.Examination{Resource: target.Access.Name, Masked: []string{}, Missing: []string{}, Risks: []string{}, Statements: []string{}}
		return &diagnosis{Examination: x, Error: err.Error()}
	}
	return &diagnosis{Examination: x, Walled: x.Walled()}
}

// write prints lines that psql takes for comments, but for the statements, so
// that the whole can be piped into it.
func (d *diagnosis) write(w io.Writer, withGrants bool) {
	fmt.Fprintf(w, "-- resource %s\n", record.Visible(d.Resource))
	if d.Error != "" {
		fmt.Fprintf(w, "--   NOT EXAMINED: %s\n", record.Visible(d.Error))
		return
	}
	fmt.Fprintf(w, "--   connected %s\n", record.Visible(d.Connected))
	list := func(title string, lines []string) {
		for _, l := range lines {
			fmt.Fprintf(w, "--   %s: %s\n", title, record.Visible(l))
		}
	}
	list("masked", d.Masked)
	missing := "MISSING"
	if d.Unwalled {
		missing = "missing, accepted by unwalled: true"
	}
	list(missing, d.Missing)
	list("risk", d.Risks)
	if len(d.Missing) == 0 {
		fmt.Fprintln(w, "--   walled: sessions are accepted")
	}
	if !withGrants {
		return
	}
	for _, s := range d.Statements {
		fmt.Fprintln(w, record.Visible(s))
	}
	if len(d.Statements) == 0 {
		fmt.Fprintln(w, "--   nothing to grant or revoke")
	}
}
