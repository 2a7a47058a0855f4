package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// The elements of a JUnit report that its readers agree on.
type (
	junitReport struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		Failure *junitFailure `xml:"failure,omitempty"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// writeJUnit writes the run as JUnit XML: a suite for each folder, and a case
// more where its coverage is asked for and does not suffice.
func writeJUnit(w io.Writer, all testRun) error {
	var report junitReport
	for _, f := range all.Folders {
		suite := junitSuite{Name: f.Folder}
		add := func(name string, failure *junitFailure) {
			suite.Cases = append(suite.Cases, junitCase{Class: f.Folder, Name: name, Failure: failure})
			suite.Tests++
			if failure != nil {
				suite.Failures++
			}
		}
		for _, r := range f.Cases {
			add(r.Name, failureOf(r.At, r.Wrong, r.Decision.Message))
		}
		if f.TooLow {
			var missing []string
			for _, rule := range f.Untested {
				missing = append(missing, "no case is decided by "+rule.String())
			}
			add("rule coverage", &junitFailure{fmt.Sprintf("%.1f%% of the rules are covered", f.Covered), strings.Join(missing, "\n")})
		}
		report.Suites = append(report.Suites, suite)
		report.Tests, report.Failures = report.Tests+suite.Tests, report.Failures+suite.Failures
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	encoder := xml.NewEncoder(w)
	encoder.Indent("", "  ")
	if err := encoder.Encode(report); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func failureOf[D fmt.Stringer](at string, wrong []D, says string) *junitFailure {
	if len(wrong) == 0 {
		return nil
	}
	lines := []string{at}
	for _, d := range wrong {
		lines = append(lines, d.String())
	}
	if says != "" {
		lines = append(lines, "it says: "+says)
	}
	return &junitFailure{Message: wrong[0].String(), Text: strings.Join(lines, "\n")}
}
