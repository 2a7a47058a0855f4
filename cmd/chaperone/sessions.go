package main

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console"
	"chaperone.dev/chaperone/internal/record"
)

func sessionsCommand() *cobra.Command {
	g := &gateway{}
	c := &cobra.Command{
		Use:   "sessions",
		Short: "List, read, replay, export and end sessions",
		Example: `  chaperone sessions list
  chaperone sessions replay ses_… --speed 2
  chaperone sessions export ses_… --format asciicast-v2
  chaperone sessions kill --user ada@example.com --cause "token stolen"`,
	}
	g.flags(c)
	c.AddCommand(sessionsList(g), sessionsShow(g), sessionsReplay(g), sessionsExport(g), sessionsKill(g))
	return c
}

func sessionsList(g *gateway) *cobra.Command {
	var live bool
	c := &cobra.Command{Use: "list", Short: "List sessions, oldest first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var list []console.SessionSummary
			path := "/api/v1/sessions"
			if live {
				path += "?live=true"
			}
			if err := g.get(c.Context(), path, &list); err != nil {
				return err
			}
			return g.print(c.OutOrStdout(), list, func(w io.Writer) { writeSessions(w, list) })
		}}
	c.Flags().BoolVar(&live, "live", false, "only live sessions")
	return c
}

func writeSessions(w io.Writer, list []console.SessionSummary) {
	fmt.Fprintln(w, "ID\tOPENED\tFOR\tSUBAGENT\tWORKFLOW\tRESOURCE\tREQUESTS\tDENIED\tAPPROVED\tEND")
	for _, s := range list {
		end := s.Cause
		if s.Live {
			end = "live"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", s.ID, age(s.Opened), line(s.Principal.User),
			line(s.Principal.Subagent), line(s.Principal.Workflow), s.Resource.Name, s.Requests, s.Denied, s.Approved, line(end))
	}
}

func sessionsShow(g *gateway) *cobra.Command {
	return &cobra.Command{Use: "show ID", Short: "Show a session's events at once", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if g.output == "json" {
				body, err := g.do(c.Context(), http.MethodGet, eventsPath(args[0]), nil)
				if err != nil {
					return err
				}
				defer body.Close()
				_, err = io.Copy(c.OutOrStdout(), body)
				return err
			}
			return replay(c, g, args[0], record.RenderOptions{})
		}}
}

func sessionsReplay(g *gateway) *cobra.Command {
	var options record.RenderOptions
	c := &cobra.Command{Use: "replay ID", Short: "Replay a session as its client saw it", Args: cobra.ExactArgs(1),
		Long: `replay shows a session with the pauses that there were. On a terminal it plays what the session
showed on its own, without what would do more than draw; elsewhere it prints that as lines of text.`,
		RunE: func(c *cobra.Command, args []string) error {
			if options.Speed < 0 || options.IdleLimit <= 0 {
				return fmt.Errorf("%w: --speed must not be negative, and --idle-limit must be above 0", errUsage)
			}
			options.Screens = isTerminal(c.OutOrStdout())
			return replay(c, g, args[0], options)
		}}
	c.Flags().Float64Var(&options.Speed, "speed", 1, "times real time; 0 does not wait")
	c.Flags().DurationVar(&options.IdleLimit, "idle-limit", 3*time.Second, "the longest pause")
	return c
}

func sessionsExport(g *gateway) *cobra.Command {
	var format string
	var cast record.Asciicast
	c := &cobra.Command{Use: "export ID", Short: "Write what a session showed on a terminal as an asciicast",
		Long: `export writes the recording of a terminal to standard output, for asciinema and other players.
It holds what was shown, as it was recorded, and not what was typed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			versions := map[string]int{"asciicast-v2": 2, "asciicast-v3": 3}
			if cast.Version = versions[format]; cast.Version == 0 {
				return fmt.Errorf("%w: --format is asciicast-v3 or asciicast-v2", errUsage)
			}
			body, err := g.do(c.Context(), http.MethodGet, eventsPath(args[0]), nil)
			if err != nil {
				return err
			}
			defer body.Close()
			return cast.Write(c.OutOrStdout(), decodeEvents(body))
		}}
	c.Flags().StringVar(&format, "format", "asciicast-v3", "asciicast-v3 or asciicast-v2")
	c.Flags().StringVar(&cast.Request, "request", "", "the act whose terminal it is (req_…); the first that has one when left out")
	return c
}

func eventsPath(id string) string { return "/api/v1/sessions/" + url.PathEscape(id) + "/events" }

func replay(c *cobra.Command, g *gateway, id string, options record.RenderOptions) error {
	body, err := g.do(c.Context(), http.MethodGet, eventsPath(id), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	options.Colour = colours(c.OutOrStdout())
	return record.RenderEvents(c.Context(), c.OutOrStdout(), decodeEvents(body), options)
}

// decodeEvents reads NDJSON; it yields an error when the stream breaks off.
func decodeEvents(r io.Reader) iter.Seq2[access.Event, error] {
	return func(yield func(access.Event, error) bool) {
		decoder := json.NewDecoder(r)
		for {
			var ev access.Event
			err := decoder.Decode(&ev)
			if err == io.EOF {
				return
			}
			if !yield(ev, err) || err != nil {
				return
			}
		}
	}
}

func sessionsKill(g *gateway) *cobra.Command {
	var which console.Selector
	var cause string
	c := &cobra.Command{Use: "kill [ID]", Short: "End sessions, and what they run at the target",
		Long: `kill ends sessions at every replica, and cancels what they run at the target.

When it names who (--token, --principal, --user, --subagent, --workflow, --chain) and neither a
session nor a resource, it also revokes the tokens that they had: what was issued until then, and
all that was exchanged from it, is refused at the targets, at /api/v1 and at the token service.`,
		Example: `  chaperone sessions kill ses_…
  chaperone sessions kill --token tok_… --cause "token stolen"
  chaperone sessions kill --chain planner`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				which.Session = args[0]
			}
			if which == (console.Selector{}) {
				return fmt.Errorf("%w: name a session, or select with flags", errUsage)
			}
			in := struct {
				console.Selector
				Cause string `json:"cause"`
			}{which, cause}
			var out struct {
				Ended int `json:"ended"`
			}
			if err := g.call(c.Context(), http.MethodPost, "/api/v1/kill", in, &out); err != nil {
				return err
			}
			return g.print(c.OutOrStdout(), out, func(w io.Writer) { fmt.Fprintf(w, "sessions ended: %d\n", out.Ended) })
		}}
	f := c.Flags()
	f.StringVar(&which.Token, "token", "", "sessions of this token id (tok_…)")
	f.StringVar(&which.Principal, "principal", "", "sessions of this principal: its subject or its key")
	f.StringVar(&which.Chain, "chain", "", "sessions that were delegated through this token id, subject or actor")
	f.StringVar(&which.User, "user", "", "sessions for this user")
	f.StringVar(&which.Subagent, "subagent", "", "sessions of this subagent")
	f.StringVar(&which.Workflow, "workflow", "", "sessions of this workflow")
	f.StringVar(&which.Resource, "resource", "", "sessions on this resource")
	f.BoolVar(&which.All, "all", false, "every session")
	f.StringVar(&cause, "cause", "", "recorded, and shown to the client")
	return c
}
