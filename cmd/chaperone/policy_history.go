package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console"
	"chaperone.dev/chaperone/internal/record"
	"chaperone.dev/chaperone/internal/strictyaml"
)

// A history is where recorded decisions are read from: folders of recordings,
// each verified as it is read, or a running gateway.
type history struct {
	gateway
	folders []string
}

func (h *history) flags(c *cobra.Command) {
	h.gateway.flags(c)
	c.Flags().StringArrayVar(&h.folders, "recordings", nil, "folder of a recording, read offline and verified; may be repeated (default: ask the gateway, as an auditor)")
	markFolders(c, "recordings")
}

// each calls visit with every event of the types, those of one folder or session
// after the other. From folders it is an error when a recording is not whole.
func (h *history) each(ctx context.Context, stderr io.Writer, types []string, since time.Time, visit func(access.Event) error) error {
	if len(h.folders) == 0 {
		return h.eachFromGateway(ctx, types, since, visit)
	}
	p := newProgress(stderr)
	defer p.end()
	for i, dir := range h.folders {
		v := record.Visit{Types: types, Since: since, Event: visit, Progress: func(events uint64) {
			p.show(fmt.Sprintf("%s (%d of %d): %d events read", dir, i+1, len(h.folders), events))
		}}
		if _, err := record.VerifyEach(ctx, dir, v); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return nil
}

func (h *history) eachFromGateway(ctx context.Context, types []string, since time.Time, visit func(access.Event) error) error {
	var sessions []console.SessionSummary
	if err := h.get(ctx, "/api/v1/sessions", &sessions); err != nil {
		return err
	}
	for _, s := range sessions {
		if closed, err := time.Parse(time.RFC3339, s.Closed); err == nil && closed.Add(time.Second).Before(since) {
			continue
		}
		if err := h.session(ctx, s.ID, types, since, visit); err != nil {
			return fmt.Errorf("session %s: %w", s.ID, err)
		}
	}
	return nil
}

func (h *history) session(ctx context.Context, id string, types []string, since time.Time, visit func(access.Event) error) error {
	body, err := h.do(ctx, "GET", eventsPath(id), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for ev, err := range decodeEvents(body) {
		if err != nil {
			return err
		}
		if ev.Time.Before(since) || !slices.Contains(types, ev.Type()) {
			continue
		}
		if err := visit(ev); err != nil {
			return err
		}
	}
	return nil
}

// decisions finds the last recorded decision of each request.
func (h *history) decisions(ctx context.Context, stderr io.Writer, ids []string) ([]*access.Decided, error) {
	found := make([]*access.Decided, len(ids))
	err := h.each(ctx, stderr, []string{"decided"}, time.Time{}, func(ev access.Event) error {
		if i := slices.Index(ids, ev.Decided.Request.ID); i >= 0 {
			found[i] = ev.Decided
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, d := range found {
		if d == nil {
			return nil, fmt.Errorf("no decision on request %s is recorded there", ids[i])
		}
	}
	return found, nil
}

// sinceFlag reads --since: a moment, a date, or how long ago.
func sinceFlag(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	if ago, err := strictyaml.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	return time.Time{}, fmt.Errorf("%w: --since is a time (2026-01-05T12:00:00Z), a date (2026-01-05) or how long ago (36h, 7d)", errUsage)
}

// A progress tells on stderr how far long work has got: over one line of a
// terminal, elsewhere a line now and then. Short work says nothing.
type progress struct {
	w        io.Writer
	terminal bool
	next     time.Time
	shown    bool
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w), next: time.Now().Add(2 * time.Second)}
}

func (p *progress) show(text string) {
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", line(text))
		p.next, p.shown = now.Add(200*time.Millisecond), true
		return
	}
	fmt.Fprintln(p.w, line(text))
	p.next = now.Add(10 * time.Second)
}

func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// isTerminal reports whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// markFolders makes the shell complete a flag's value with folders.
func markFolders(c *cobra.Command, flag string) {
	if err := c.MarkFlagDirname(flag); err != nil { // only a flag that is not there
		panic("chaperone: " + err.Error())
	}
}

// completeFolders completes arguments with folders.
func completeFolders(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}
