package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console"
	"chaperone.dev/chaperone/internal/record"
)

func approvalsCommand() *cobra.Command {
	g := &gateway{}
	c := &cobra.Command{
		Use:   "approvals",
		Short: "See and answer what waits for a reviewer",
		Example: `  chaperone approvals list --state pending
  chaperone approvals show req_…
  chaperone approvals approve req_… --comment "ticket 4711"`,
	}
	g.flags(c)
	var state string
	list := &cobra.Command{Use: "list", Short: "List approvals", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return listApprovals(c, g, state) }}
	list.Flags().StringVar(&state, "state", "", "only these: pending, granted, refused, expired, abandoned, consumed")
	show := &cobra.Command{Use: "show ID", Short: "Show one approval whole", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return showApproval(c, g, args[0]) }}
	c.AddCommand(list, show, answerCommand(g, "approve", "Grant a held request, once"), answerCommand(g, "refuse", "Refuse a held request"))
	return c
}

func answerCommand(g *gateway, verb, short string) *cobra.Command {
	var comment string
	c := &cobra.Command{Use: verb + " ID", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var a access.Approval
			path := "/api/v1/approvals/" + url.PathEscape(args[0]) + "/" + verb
			if err := g.call(c.Context(), http.MethodPost, path, map[string]string{"comment": comment}, &a); err != nil {
				return err
			}
			return g.print(c.OutOrStdout(), a, func(w io.Writer) { fmt.Fprintf(w, "%s is %s\n", a.ID, a.State) })
		}}
	c.Flags().StringVar(&comment, "comment", "", "kept with the answer")
	return c
}

func listApprovals(c *cobra.Command, g *gateway, state string) error {
	var list []console.ApprovalSummary
	if err := g.get(c.Context(), "/api/v1/approvals?state="+url.QueryEscape(state), &list); err != nil {
		return err
	}
	return g.print(c.OutOrStdout(), list, func(w io.Writer) {
		fmt.Fprintln(w, "ID\tSTATE\tFOR\tSUBAGENT\tWORKFLOW\tRESOURCE\tWHAT\tEXPIRES")
		for _, a := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.ID, a.State, line(a.User), line(a.Subagent), line(a.Workflow),
				a.Resource, line(a.What), age(a.Expires))
		}
	})
}

func showApproval(c *cobra.Command, g *gateway, id string) error {
	a, err := g.approval(c.Context(), id)
	if err != nil {
		return err
	}
	return g.print(c.OutOrStdout(), a, func(w io.Writer) { writeCard(w, a) })
}

func (g *gateway) approval(ctx context.Context, id string) (a access.Approval, err error) {
	return a, g.get(ctx, "/api/v1/approvals/"+url.PathEscape(id), &a)
}

// writeCard is what a reviewer reads before answering.
func writeCard(w io.Writer, a access.Approval) {
	req, p := a.Ask.Request, a.Ask.Request.Principal
	fmt.Fprintf(w, "request:\t%s\n", a.ID)
	fmt.Fprintf(w, "state:\t%s (opened %s, expires %s)\n", a.State, age(a.Opened), age(a.Expires))
	fmt.Fprintf(w, "who:\tsubagent %s, workflow %s\n", line(p.Subagent), line(p.Workflow))
	fmt.Fprintf(w, "for whom:\t%s (%s/%s)\n", line(p.User), p.Issuer, line(p.Subject))
	for _, hop := range p.Chain {
		fmt.Fprintf(w, "through:\t%s (subject %s of %s) from token %s\n", line(hop.Actor), line(hop.Subject), line(hop.Issuer), line(hop.Parent))
		if text := hop.Attenuation.Text(); text != "" {
			fmt.Fprintf(w, "  only:\t%s\n", line(text))
		}
	}
	fmt.Fprintf(w, "resource:\t%s (%s)\n", req.Resource.Name, req.Resource.Kind)
	fmt.Fprintf(w, "rule:\t%s\n", a.Ask.Decision.Rule())
	switch {
	case req.Action.SQL != nil:
		writeSQL(w, req.Action.SQL)
	case req.Action.HTTP != nil:
		writeHTTP(w, req.Action.HTTP)
	case req.Action.K8s != nil:
		writeK8s(w, req.Action.K8s)
	case req.Action.SSH != nil:
		writeSSH(w, req.Action.SSH)
	}
	if a.Ask.Preview != nil {
		writePreview(w, a.Ask.Preview)
	}
	for _, answer := range a.Answers {
		verb := "refused"
		if answer.Grant {
			verb = "granted"
		}
		fmt.Fprintf(w, "%s by:\t%s at %s %s\n", verb, line(answer.Reviewer.User), age(answer.Time), line(answer.Comment))
	}
}

func writeSQL(w io.Writer, s *access.SQL) {
	where := "yes"
	if !s.HasWhere {
		where = "NO: every row"
	}
	fmt.Fprintf(w, "command:\t%s\n", s.Command)
	fmt.Fprintf(w, "writes:\t%s\n", strings.Join(s.Writes, ", "))
	fmt.Fprintf(w, "reads:\t%s\n", strings.Join(s.Reads, ", "))
	fmt.Fprintf(w, "has WHERE:\t%s\n", where)
	fmt.Fprintf(w, "estimate:\t%s\n", estimateOf(s))
	for i, v := range s.Parameters {
		value := v.Value
		if v.Null {
			value = "NULL"
		}
		fmt.Fprintf(w, "$%d:\t%s\n", i+1, line(value))
	}
	fmt.Fprintf(w, "text:\n%s\n", block(s.Text))
	if s.Forward != "" && s.Forward != s.Text {
		fmt.Fprintf(w, "as forwarded:\n%s\n", block(s.Forward))
		fmt.Fprintf(w, "difference:\n%s\n", difference(s.Text, s.Forward))
	}
}

// estimateOf says how much the database expects of a statement.
func estimateOf(s *access.SQL) string {
	if s.EstimatedRows == nil || s.EstimatedBytes == nil {
		return "unknown"
	}
	return fmt.Sprintf("%d rows, %d bytes", *s.EstimatedRows, *s.EstimatedBytes)
}

func writeK8s(w io.Writer, k *access.K8s) {
	fmt.Fprintf(w, "what:\t%s\n", line(k.String()))
	fmt.Fprintf(w, "call:\t%s %s\n", k.Method, line(k.Path))
	fmt.Fprintf(w, "powers:\t%s\n", strings.Join(k.Powers, ", "))
	for i, word := range k.Command {
		fmt.Fprintf(w, "command %d:\t%s\n", i, line(word))
	}
	if k.Container != "" {
		fmt.Fprintf(w, "container:\t%s\n", line(k.Container))
	}
	if k.Terminal || k.Stdin {
		fmt.Fprintf(w, "streams:\tterminal %t, stdin %t\n", k.Terminal, k.Stdin)
	}
	if k.DryRun {
		fmt.Fprintf(w, "dry run:\tnothing is stored\n")
	}
	fmt.Fprintf(w, "body:\t%d bytes, %s %s\n", k.BodyBytes, line(k.ContentType), k.BodyDigest)
	if k.BodyState == access.BodyWhole {
		fmt.Fprintf(w, "content:\n%s\n", block(indentJSON(k.Body)))
	}
}

// writePreview shows what the target expects. Every line of a change begins
// with a mark, so that no text can pass for one.
func writePreview(w io.Writer, p *access.Preview) {
	fmt.Fprintf(w, "preview:\tan estimate of %s; what you grant is the request above\n", age(p.Taken))
	if p.None != "" {
		fmt.Fprintf(w, "  no preview:\t%s\n", record.Visible(p.None))
	}
	if p.Creates {
		fmt.Fprintf(w, "  creates:\tthe object is not there yet\n")
	}
	for _, c := range p.Changes {
		note := ""
		if c.Masked {
			note = " (masked)"
		}
		switch path, before, after := record.Visible(c.Path), record.Visible(c.Before), record.Visible(c.After); {
		case before == "":
			fmt.Fprintf(w, "+ %s: %s%s\n", path, after, note)
		case after == "":
			fmt.Fprintf(w, "- %s: %s%s\n", path, before, note)
		default:
			fmt.Fprintf(w, "~ %s: %s -> %s%s\n", path, before, after, note)
		}
	}
	for _, r := range p.Removes {
		names := strings.Join(r.Names, ", ")
		if r.Count > len(r.Names) {
			names += ", …"
		}
		fmt.Fprintf(w, "- %d %s: %s\n", r.Count, record.Visible(r.What), record.Visible(names))
	}
	if p.More > 0 {
		fmt.Fprintf(w, "  and:\t%d more\n", p.More)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "  note:\t%s\n", record.Visible(n))
	}
}

func writeSSH(w io.Writer, s *access.SSHCall) {
	fmt.Fprintf(w, "what:\t%s as %s\n", line(s.Shape()), line(s.User))
	for _, why := range s.Unknown {
		fmt.Fprintf(w, "NOT KNOWN:\t%s\n", line(why))
	}
	for _, why := range s.UnknownPaths {
		fmt.Fprintf(w, "paths not known:\t%s\n", line(why))
	}
	for _, list := range []struct {
		name  string
		paths []string
	}{{"reads", s.Reads}, {"writes", s.Writes}, {"removes", s.Removes}} {
		for _, p := range list.paths {
			fmt.Fprintf(w, "%s:\t%s\n", list.name, line(p))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Environment)) {
		fmt.Fprintf(w, "environment:\t%s\n", line(name+"="+s.Environment[name]))
	}
	if s.Terminal {
		fmt.Fprintf(w, "terminal:\tyes\n")
	}
	if s.Host != "" {
		fmt.Fprintf(w, "forward:\t%s port %d\n", line(s.Host), s.Port)
	}
	fmt.Fprintf(w, "text:\n%s\n", block(s.Command))
}

func writeHTTP(w io.Writer, h *access.HTTPCall) {
	fmt.Fprintf(w, "call:\t%s %s\n", h.Method, line(h.Path))
	fmt.Fprintf(w, "body:\t%d bytes, %s\n", h.BodyBytes, h.BodyDigest)
	if h.BodyState == access.BodyWhole {
		fmt.Fprintf(w, "content:\n%s\n", block(indentJSON(h.Body)))
	}
}
