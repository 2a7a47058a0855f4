package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/record"
	"chaperone.dev/chaperone/internal/session/ssh"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
)

// A hostDiagnosis is the answer of doctor for one account of a host.
type hostDiagnosis struct {
	*ssh.Examination
	Works bool   `json:"works"`           // sessions do
	Error string `json:"error,omitempty"` // it could not be examined
}

// examineHost examines each account of a host with the gateway's own keys, which
// it does not make.
func examineHost(ctx context.Context, cfg *config.Config, res config.Resource) (found []finding, err error) {
	target, err := sshTarget(res)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(cfg.SSH.Keys); err != nil {
		return nil, fmt.Errorf("the gateway has made no keys yet, start it once: %w", err)
	}
	keys, err := authority.Open(cfg.SSH.Keys)
	if err != nil {
		return nil, err
	}
	for _, account := range res.SSH.Users {
		ctx, cancel := context.WithTimeout(ctx, examineWithin)
		x, err := ssh.Examine(ctx, keys, target, account, time.Now)
		cancel()
		d := &hostDiagnosis{Examination: x}
		if err != nil {
			d.Examination, d.Error = &ssh.Examination{Resource: res.Name, Account: account, Missing: []string{}, Risks: []string{}, Lines: []string{}}, err.Error()
		} else {
			d.Works = len(x.Missing) == 0
		}
		found = append(found, d)
	}
	return found, nil
}

func (d *hostDiagnosis) kind() access.Kind { return access.SSH }

func (d *hostDiagnosis) sound() bool { return d.Works }

func (d *hostDiagnosis) withoutGrants() { d.Lines = []string{} }

// write prints lines that sshd takes for comments, but for what puts it right.
func (d *hostDiagnosis) write(w io.Writer, withGrants bool) {
	fmt.Fprintf(w, "# resource %s, account %s\n", record.Visible(d.Resource), record.Visible(d.Account))
	if d.Error != "" {
		fmt.Fprintf(w, "#   NOT EXAMINED: %s\n", record.Visible(d.Error))
		return
	}
	for _, l := range d.Missing {
		fmt.Fprintf(w, "#   MISSING: %s\n", record.Visible(l))
	}
	for _, l := range d.Risks {
		fmt.Fprintf(w, "#   risk: %s\n", record.Visible(l))
	}
	if d.Works {
		fmt.Fprintln(w, "#   sessions work")
	}
	if withGrants {
		for _, l := range d.Lines {
			fmt.Fprintln(w, block(l))
		}
	}
}
