package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/policy"
)

// A testRun is the answer of policy test for all its folders.
type testRun struct {
	Passed  bool           `json:"passed"`
	Folders []testedFolder `json:"folders"`
}

type testedFolder struct {
	Folder   string  `json:"folder"`
	Passed   bool    `json:"passed"`
	Covered  float64 `json:"covered"` // percent of the rules
	TooLow   bool    `json:"too_low,omitempty"`
	Revision string  `json:"revision"`
	policy.Report
}

// caseOptions are the flags of policy test.
type caseOptions struct {
	output, junit string
	coverage      bool
	least         float64
}

func policyTestCommand() *cobra.Command {
	o := &caseOptions{}
	c := &cobra.Command{
		Use:   "test FOLDER...",
		Short: "Run the cases in tests.yaml beside the policies of each folder",
		Long: `test loads the policies of each folder as a set of its own, and runs the cases in
every tests.yaml in it. policies/... stands for every folder at or below policies
that holds policies. A rule is covered when it decides a case, alone or together
with other rules.

Exit status: 0 all cases pass (and coverage suffices), 1 not, 2 usage.`,
		Example: `  chaperone policy test policies/read-only-analyst
  chaperone policy test policies/... --coverage --min-coverage 100
  chaperone policy test policies/... --junit report.xml`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeFolders,
		RunE: func(c *cobra.Command, patterns []string) error {
			return o.run(c.OutOrStdout(), patterns)
		},
	}
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	f.StringVar(&o.junit, "junit", "", "also write the results as JUnit XML to this file")
	f.BoolVar(&o.coverage, "coverage", false, "list every rule with the number of cases that it decides")
	f.Float64Var(&o.least, "min-coverage", 0, "fail when less than this percentage of a folder's rules is covered")
	return c
}

func (o *caseOptions) run(w io.Writer, patterns []string) error {
	if o.output != "table" && o.output != "json" {
		return fmt.Errorf("%w: --output is table or json", errUsage)
	}
	if o.least < 0 || o.least > 100 {
		return fmt.Errorf("%w: --min-coverage is a percentage", errUsage)
	}
	folders, err := policy.Folders(patterns...)
	if err != nil {
		return err
	}
	all := testRun{Passed: true}
	for _, dir := range folders {
		tested, err := o.folder(dir)
		if err != nil {
			return err
		}
		all.Passed = all.Passed && tested.Passed
		all.Folders = append(all.Folders, tested)
	}
	if o.junit != "" {
		if err := writeJUnitFile(o.junit, all); err != nil {
			return err
		}
	}
	if o.output == "json" {
		_, err = fmt.Fprintln(w, indentJSON(all))
	} else {
		o.write(w, all)
	}
	if err == nil && !all.Passed {
		err = errReported
	}
	return err
}

func (o *caseOptions) folder(dir string) (testedFolder, error) {
	set, err := policy.LoadDir(dir)
	if err != nil {
		return testedFolder{}, err
	}
	report, err := policy.RunTests(set, dir)
	if err != nil {
		return testedFolder{}, err
	}
	t := testedFolder{Folder: dir, Covered: report.Covered(), Revision: set.Revision(), Report: report}
	t.TooLow = t.Covered < o.least
	t.Passed = report.Passed() && !t.TooLow
	return t, nil
}

func (o *caseOptions) write(w io.Writer, all testRun) {
	paint := painter(colours(w))
	for _, f := range all.Folders {
		wrong := 0
		for _, r := range f.Cases {
			if len(r.Wrong) > 0 {
				wrong++
				writeFailure(w, paint, r)
			}
		}
		for _, rule := range f.Coverage {
			if o.coverage {
				fmt.Fprintf(w, "%5d  %s (%s)\n", rule.Cases, rule.Rule, rule.At)
			} else if rule.Cases == 0 {
				fmt.Fprintf(w, "note: no case is decided by %s (%s)\n", rule.Rule, rule.At)
			}
		}
		summary := fmt.Sprintf("%s: %d passed, %d failed, %.0f%% of %d rules covered", f.Folder, len(f.Cases)-wrong, wrong, floor(f.Covered), len(f.Coverage))
		if f.TooLow {
			summary += fmt.Sprintf("; %g%% are asked for", o.least)
		}
		if f.Passed {
			fmt.Fprintln(w, summary)
		} else {
			fmt.Fprintln(w, paint(red, summary))
		}
	}
}

// floor shows no 100 where something is missing.
func floor(percent float64) float64 { return float64(int(percent)) }

// writeFailure shows a case with what it wants and what it gets, as a diff.
func writeFailure(w io.Writer, paint func(code, text string) string, r policy.CaseResult) {
	fmt.Fprintf(w, "%s %s: %s\n", paint(red, "FAIL"), r.At, line(r.Name))
	for _, d := range r.Wrong {
		fmt.Fprintf(w, "  %s\n  %s\n  %s\n", d.What, paint(green, "- want "+block(d.Want)), paint(red, "+ got  "+block(d.Got)))
	}
	if r.Decision.Message != "" {
		fmt.Fprintf(w, "  it says: %s\n", block(r.Decision.Message))
	}
	if r.Decision.Hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", block(r.Decision.Hint))
	}
}

// writeJUnitFile replaces path whole or not at all.
func writeJUnitFile(path string, all testRun) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".junit-*")
	if err != nil {
		return fmt.Errorf("junit: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("junit: %w", err), os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(writeJUnit(f, all), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
