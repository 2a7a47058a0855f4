package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/kube"
	"chaperone.dev/chaperone/internal/shell"
	"chaperone.dev/chaperone/internal/sql"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// actionFlags say what is asked of which resource.
type actionFlags struct {
	resource, kind  string
	labels          map[string]string
	sql, catalog    string
	rows, bytes     int64 // what the database would estimate; below 0 is not known
	http, k8s, body string
	headers         map[string]string
	ssh, account    string
}

func (a *actionFlags) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&a.resource, "resource", "", "name of the resource")
	f.StringVar(&a.kind, "kind", "", "kind of the resource, when no configuration says it: postgres, http, kubernetes or ssh")
	f.StringToStringVar(&a.labels, "label", nil, "a label of the resource (env=prod), when no configuration says them; may be repeated")
	f.StringVar(&a.sql, "sql", "", "a statement")
	f.StringVar(&a.catalog, "catalog", "", "file with the names of the database as JSON, for --sql")
	f.Int64Var(&a.rows, "estimated-rows", -1, "what the database would estimate, for --sql; -1 is not known")
	f.Int64Var(&a.bytes, "estimated-bytes", -1, "what the database would estimate, for --sql; -1 is not known")
	f.StringVar(&a.http, "http", "", `a call: "METHOD /path?query"`)
	f.StringToStringVar(&a.headers, "header", nil, "a header of the call (name=value); may be repeated")
	f.StringVar(&a.body, "body", "", "file with the body of the call")
	f.StringVar(&a.k8s, "k8s", "", `a request to a Kubernetes API server: "METHOD /path?query", with --body and --header content-type=…`)
	f.StringVar(&a.ssh, "ssh", "", "a command line for a host")
	f.StringVar(&a.account, "account", "", "the account on the host, for --ssh")
	c.MarkFlagsMutuallyExclusive("sql", "http", "k8s", "ssh")
	kinds := cobra.FixedCompletions([]string{string(access.Postgres), string(access.HTTP), string(access.Kubernetes), string(access.SSH)}, cobra.ShellCompDirectiveNoFileComp)
	if err := c.RegisterFlagCompletionFunc("kind", kinds); err != nil { // only a flag that is not there
		panic("chaperone: " + err.Error())
	}
}

// given reports whether the flags make a whole action.
func (a *actionFlags) given() bool { return a.sql != "" || a.http != "" || a.k8s != "" || a.ssh != "" }

// change puts the resource and the action into req.
func (a *actionFlags) change(ctx context.Context, cfg *config.Config, req *access.Request) (notes []string, err error) {
	if err := a.locate(cfg, &req.Resource); err != nil {
		return nil, err
	}
	switch {
	case a.sql != "":
		req.Action = access.Action{}
		if req.Action.SQL, notes, err = a.statement(ctx); err == nil {
			a.estimate(req.Action.SQL)
		}
	case a.http != "":
		req.Action = access.Action{}
		req.Action.HTTP, err = a.call()
	case a.k8s != "":
		req.Action = access.Action{}
		req.Action.K8s, err = a.request()
	case a.ssh != "":
		call := shell.Judge(a.ssh, nil)
		call.User = a.account
		req.Action = access.Action{SSH: &call}
	}
	if err == nil && a.given() && req.Resource.Name == "" {
		err = fmt.Errorf("%w: --resource is needed", errUsage)
	}
	return notes, err
}

// estimate sets what is known of the statement's size.
func (a *actionFlags) estimate(s *access.SQL) {
	if a.rows >= 0 {
		s.EstimatedRows = &a.rows
	}
	if a.bytes >= 0 {
		s.EstimatedBytes = &a.bytes
	}
}

func (a *actionFlags) locate(cfg *config.Config, r *access.Resource) error {
	if a.resource != "" {
		*r = access.Resource{Name: a.resource}
		if cfg != nil {
			i := slices.IndexFunc(cfg.Resources, func(c config.Resource) bool { return c.Name == a.resource })
			if i < 0 {
				return fmt.Errorf("there is no resource %q in the configuration", a.resource)
			}
			*r = cfg.Resources[i].Access()
		}
	}
	switch kind := access.Kind(a.kind); {
	case kind == access.Postgres, kind == access.HTTP, kind == access.Kubernetes, kind == access.SSH:
		r.Kind = kind
	case a.kind != "":
		return fmt.Errorf("%w: --kind is postgres, http, kubernetes or ssh", errUsage)
	case r.Kind == "" && a.sql != "":
		r.Kind = access.Postgres
	case r.Kind == "" && a.http != "":
		r.Kind = access.HTTP
	case r.Kind == "" && a.k8s != "":
		r.Kind = access.Kubernetes
	case r.Kind == "" && a.ssh != "":
		r.Kind = access.SSH
	}
	if a.labels != nil {
		r.Labels = a.labels
	}
	return nil
}

// statement has the gateway's own judge read the text.
func (a *actionFlags) statement(ctx context.Context) (*access.SQL, []string, error) {
	contents := catalog.Contents{SearchPath: []string{"pg_catalog", "public"}}
	notes := []string{"the statement was judged without a catalog: tables and columns are not known"}
	if a.catalog != "" {
		b, err := os.ReadFile(a.catalog)
		if err != nil {
			return nil, nil, fmt.Errorf("catalog: %w", err)
		}
		decoder := json.NewDecoder(bytes.NewReader(b))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&contents); err != nil {
			return nil, nil, fmt.Errorf("catalog: %s: %w", a.catalog, err)
		}
		notes = nil
	}
	names, err := catalog.New(contents)
	if err != nil {
		return nil, nil, fmt.Errorf("catalog: %s: %w", a.catalog, err)
	}
	pool, err := newParser("", 1, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, nil, err
	}
	defer pool.Close()
	if err := pool.Ready(ctx); err != nil {
		return nil, nil, err
	}
	analyzer, err := sql.New(sql.Config{Parser: pool})
	if err != nil {
		return nil, nil, err
	}
	judged, err := analyzer.Analyze(ctx, a.sql, names)
	if err != nil {
		return nil, nil, err
	}
	if judged.Refusal != nil {
		notes = append(notes, "whatever policy says, the gateway refuses it: "+judged.Refusal.Message)
	}
	action := judged.Action
	action.Text = a.sql
	return &action, notes, nil
}

// requestLine reads "METHOD /path?query".
func requestLine(flag, text string) (method string, u *url.URL, err error) {
	method, target, ok := strings.Cut(strings.TrimSpace(text), " ")
	u, err = url.Parse(strings.TrimSpace(target))
	if !ok || err != nil || !strings.HasPrefix(u.Path, "/") {
		return "", nil, fmt.Errorf(`%w: --%s is "METHOD /path?query"`, errUsage, flag)
	}
	return strings.ToUpper(method), u, nil
}

// request has the gateway's own judge read it.
func (a *actionFlags) request() (*access.K8s, error) {
	method, u, err := requestLine("k8s", a.k8s)
	if err != nil {
		return nil, err
	}
	r := kube.Request{Method: method, Path: u.Path, Query: u.Query(), Body: kube.Body{Whole: true}}
	for name, value := range a.headers {
		if strings.EqualFold(name, "content-type") {
			r.Body.ContentType = []string{value}
		}
	}
	if a.body != "" {
		if r.Body.Bytes, err = os.ReadFile(a.body); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
	}
	k, err := kube.Read(r)
	if err != nil {
		return nil, fmt.Errorf("whatever policy says, the gateway refuses it: %w", err)
	}
	return k, nil
}

func (a *actionFlags) call() (*access.HTTPCall, error) {
	method, u, err := requestLine("http", a.http)
	if err != nil {
		return nil, err
	}
	call := &access.HTTPCall{Method: method, Host: u.Host, Path: u.Path, Headers: map[string][]string{}}
	if len(u.RawQuery) > 0 {
		call.Query = u.Query()
	}
	for name, value := range a.headers {
		call.Headers[strings.ToLower(name)] = []string{value}
	}
	if a.body == "" {
		return call, nil
	}
	b, err := os.ReadFile(a.body)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.UseNumber()
	call.BodyState = access.BodyWhole
	if decoder.Decode(&call.Body) != nil || decoder.More() {
		call.BodyState, call.Body = access.BodyUndecodable, nil
	}
	return call, nil
}
