package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/policy"
)

// An explaining is the flags of policy explain: where the request comes from,
// and what of it is given by hand.
type explaining struct {
	history
	request string
	at      string
	config  string
	who     principalFlags
	what    actionFlags
}

func policyExplainCommand() *cobra.Command {
	x := &explaining{}
	c := &cobra.Command{
		Use:   "explain FOLDER",
		Short: "Show how a request is decided, and why not otherwise",
		Long: `explain evaluates one request by the policies in a folder and shows every policy,
rule and term: what applies, what matches, which rule decides, and what kept the
others from it.

The request is a recorded one (--request), or one put together from flags (who:
--user, --group, …, or --principal-token; where: --resource; what: --sql or
--http), or else JSON on standard input (the "request" member of a recorded
decision). Flags change a recorded request, too: "the same by somebody else".

A token is verified with the issuers of --config. Without it, its claims are
taken as they stand, and the answer says so. With --config, --resource takes the
kind and labels that are configured. --sql is judged as the gateway would, with
the names in --catalog; what is not in it is not known.`,
		Example: `  chaperone policy explain policies --request req_… --recordings data/recordings
  chaperone policy explain policies --config chaperone.yaml --user ada@example.com --group agents --resource billing --http "DELETE /customers/1"
  chaperone policy explain policies --group analysts --resource orders --kind postgres --label env=prod --sql "select 1"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeFolders,
		RunE:              func(c *cobra.Command, args []string) error { return x.run(c, args[0]) },
	}
	x.history.flags(c)
	f := c.Flags()
	f.StringVar(&x.request, "request", "", "id of a recorded request")
	f.StringVar(&x.at, "at", "", "time of the decision (default: as recorded, else now)")
	f.StringVar(&x.config, "config", "", "configuration with the issuers and resources")
	x.who.flags(c)
	x.what.flags(c)
	return c
}

func (x *explaining) run(c *cobra.Command, folder string) error {
	if x.output != "table" && x.output != "json" {
		return fmt.Errorf("%w: --output is table or json", errUsage)
	}
	set, err := policy.LoadDir(folder)
	if err != nil {
		return err
	}
	req, now, err := x.base(c)
	if err != nil {
		return err
	}
	notes, err := x.change(c, &req)
	if err != nil {
		return err
	}
	if x.at != "" {
		if now, err = time.Parse(time.RFC3339, x.at); err != nil {
			return fmt.Errorf("%w: --at is a time such as 2026-01-05T12:00:00Z", errUsage)
		}
		req.Time = now
	}
	explanation := set.Explain(req, now)
	if x.output == "json" {
		_, err = fmt.Fprintln(c.OutOrStdout(), indentJSON(struct {
			Notes   []string       `json:"notes,omitempty"`
			Request access.Request `json:"request"`
			policy.Explanation
		}{notes, req, explanation}))
		return err
	}
	for _, note := range notes {
		fmt.Fprintf(c.OutOrStdout(), "note: %s\n", line(note))
	}
	_, err = fmt.Fprint(c.OutOrStdout(), block(explanation.String()))
	return err
}

// base is the request that flags change.
func (x *explaining) base(c *cobra.Command) (req access.Request, now time.Time, err error) {
	switch {
	case x.request != "":
		decided, err := x.decisions(c.Context(), c.ErrOrStderr(), []string{x.request})
		if err != nil {
			return req, now, err
		}
		return decided[0].Request, policy.DecidedAt(decided[0]), nil
	case x.what.given():
		now = time.Now()
		return access.Request{Time: now}, now, nil
	}
	decoder := json.NewDecoder(io.LimitReader(os.Stdin, 4<<20))
	decoder.UseNumber()
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&req); err != nil {
		return req, now, fmt.Errorf("standard input is not a request: %w", err)
	}
	if now = req.Time; now.IsZero() {
		now = time.Now()
	}
	return req, now, nil
}

// change puts what the flags give into req. The notes are what its reader must
// know of where it comes from.
func (x *explaining) change(c *cobra.Command, req *access.Request) (notes []string, err error) {
	cfg, err := loadedConfig(x.config)
	if err != nil {
		return nil, err
	}
	if notes, err = x.who.change(c.Context(), cfg, &req.Principal); err != nil {
		return nil, err
	}
	more, err := x.what.change(c.Context(), cfg, req)
	return append(notes, more...), err
}
