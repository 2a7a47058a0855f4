package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/policy"
)

// A lintedFolder is the answer of policy lint for one folder.
type lintedFolder struct {
	Folder   string           `json:"folder"`
	Rules    int              `json:"rules"`
	Findings []policy.Finding `json:"findings"`
}

func policyLintCommand() *cobra.Command {
	var output, file string
	c := &cobra.Command{
		Use:   "lint FOLDER...",
		Short: "Find rules that cannot do what they seem to",
		Long: `lint looks for rules that can never match, rules that another rule overrides
wherever they match, masks that can never apply, and rules that let through
without saying where or whom. That a rule never matches is said only when it is
proved. With --config it also finds policies about no configured resource, and
approvals that none of the configured reviewers' groups can grant.

Exit status: 0 no finding is an error, 1 one is (or a failure), 2 usage.`,
		Example: `  chaperone policy lint policies
  chaperone policy lint policies --config chaperone.yaml -o json`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeFolders,
		RunE: func(c *cobra.Command, patterns []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("%w: --output is table or json", errUsage)
			}
			around, err := surroundings(file)
			if err != nil {
				return err
			}
			linted, err := lintFolders(patterns, around)
			if err != nil {
				return err
			}
			if output == "json" {
				_, err = fmt.Fprintln(c.OutOrStdout(), indentJSON(linted))
			} else {
				writeLint(c.OutOrStdout(), linted)
			}
			isError := func(f policy.Finding) bool { return f.Severity == policy.LintError }
			if err == nil && slices.ContainsFunc(linted, func(l lintedFolder) bool { return slices.ContainsFunc(l.Findings, isError) }) {
				err = errReported
			}
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	c.Flags().StringVar(&file, "config", "", "configuration whose resources and reviewers to compare with")
	return c
}

// surroundings are what the configuration in file says; nil without one.
func surroundings(file string) (*policy.Surroundings, error) {
	cfg, err := loadedConfig(file)
	if cfg == nil || err != nil {
		return nil, err
	}
	around := &policy.Surroundings{Resources: []access.Resource{}, Reviewers: append([]string{}, cfg.People.Reviewer...)}
	for _, r := range cfg.Resources {
		around.Resources = append(around.Resources, r.Access())
	}
	return around, nil
}

func lintFolders(patterns []string, around *policy.Surroundings) ([]lintedFolder, error) {
	folders, err := policy.Folders(patterns...)
	if err != nil {
		return nil, err
	}
	var linted []lintedFolder
	for _, dir := range folders {
		set, err := policy.LoadDir(dir)
		if err != nil {
			return nil, err
		}
		linted = append(linted, lintedFolder{dir, len(set.Rules()), append([]policy.Finding{}, set.Lint(around)...)})
	}
	return linted, nil
}

func writeLint(w io.Writer, linted []lintedFolder) {
	paint := painter(colours(w))
	for _, l := range linted {
		counts := map[policy.Severity]int{}
		for _, f := range l.Findings {
			counts[f.Severity]++
			text := block(f.String())
			if f.Severity == policy.LintError {
				text = paint(red, text)
			}
			fmt.Fprintf(w, "%s\n  %s\n", text, block(f.Advice))
		}
		fmt.Fprintf(w, "%s: %d rules, %d errors, %d warnings, %d notes\n", l.Folder, l.Rules,
			counts[policy.LintError], counts[policy.LintWarning], counts[policy.LintNote])
	}
}
