package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console"
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

// writeCard is what a reviewer reads before answering: every part whole.
func writeCard(w io.Writer, a access.Approval) {
	for _, e := range console.CardOf(a, age) {
		if e.Kind == console.Field {
			fmt.Fprintf(w, "%s:\t%s\n", e.Name, e.Value)
		} else {
			fmt.Fprintf(w, "%s:\n%s\n", e.Name, e.Value)
		}
	}
}
