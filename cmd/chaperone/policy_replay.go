package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/policy"
)

func policyReplayCommand() *cobra.Command {
	h := &history{}
	var folder, since string
	c := &cobra.Command{
		Use:   "replay --policies FOLDER",
		Short: "Decide what was recorded again, by other policies, and list what flips",
		Long: `replay makes every recorded decision again by the policies in a folder, with the
input and the time that it had then, and lists those that come out otherwise,
grouped by principal and rule. A flip is another effect (allow, approve, deny),
or, where the request goes through, other masks, limits or terms of approval.
The same decision by another rule is none.

A recording is verified as it is read; one that is not whole is refused. What was
refused before policy was asked (a bad token, for example) is recorded without
an input, and is counted but not replayed. Statements are replayed as they were
judged then: they are not parsed again.

Exit status: 0 nothing flips, 1 something flips (or a failure), 2 usage.`,
		Example: `  chaperone policy replay --policies proposed --recordings data/recordings
  chaperone policy replay --policies proposed --recordings data/recordings --since 7d -o json
  chaperone policy replay --policies proposed --gateway https://chaperone.internal`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			from, err := sinceFlag(since, time.Now())
			if err != nil {
				return err
			}
			if folder == "" {
				return fmt.Errorf("%w: --policies is needed: the folder to try", errUsage)
			}
			set, err := policy.LoadDir(folder)
			if err != nil {
				return err
			}
			replay := policy.NewReplay(set)
			err = h.each(c.Context(), c.ErrOrStderr(), policy.ReplayTypes(), from, func(ev access.Event) error {
				replay.Add(ev)
				return nil
			})
			if err != nil {
				return err
			}
			report := replay.Report()
			if err := h.print(c.OutOrStdout(), report, func(w io.Writer) { writeReplay(w, report) }); err != nil {
				return err
			}
			if report.Flipped > 0 {
				return errReported
			}
			return nil
		},
	}
	h.flags(c)
	c.Flags().StringVar(&folder, "policies", "", "folder of the policies to try")
	c.Flags().StringVar(&since, "since", "", "only what was recorded since then: a time, a date, or how long ago (36h, 7d)")
	markFolders(c, "policies")
	return c
}

func writeReplay(w io.Writer, r policy.ReplayReport) {
	for _, f := range r.Flips {
		fmt.Fprintf(w, "%s on %s: %d × %s -> %s\n", line(f.Principal.String()), line(f.Resource), f.Count, line(f.From.String()), line(f.To.String()))
		for _, d := range f.Detail {
			fmt.Fprintf(w, "    %s\n", line(d))
		}
		fmt.Fprintf(w, "    for example %s at %s\n", line(f.Example), f.First.UTC().Format(time.RFC3339))
	}
	if r.Omitted > 0 {
		fmt.Fprintf(w, "and %d more of other principals and rules\n", r.Omitted)
	}
	fmt.Fprintf(w, "%d decisions replayed by %s (recorded under %s), %d flip\n", r.Decisions, r.Revision, orNone(r.Recorded), r.Flipped)
	if r.OtherRule > 0 {
		fmt.Fprintf(w, "%d come to the same by another rule or another text of it\n", r.OtherRule)
	}
	for _, n := range r.NotReplayed {
		fmt.Fprintf(w, "not replayed: %d, %s\n", n.Count, line(n.Why))
	}
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
