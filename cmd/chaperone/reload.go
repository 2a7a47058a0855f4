package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	"chaperone.dev/chaperone/internal/config"
)

// lookEvery is how often the files are looked at. Looking, rather than being
// told, also sees a ConfigMap's symbolic links swapped.
const lookEvery = 250 * time.Millisecond

// A reloader puts a new revision in place of the serving one when the files
// change, or on SIGHUP: whole, or not at all.
type reloader struct {
	server *server
	start  *config.Config // what cannot change without a restart is compared with it

	mu     sync.Mutex
	reason string // why the newest files were refused; "" when they serve
}

func newReloader(s *server, start *config.Config) *reloader {
	return &reloader{server: s, start: start}
}

// failed says why the newest files do not serve; "" when they do.
func (r *reloader) failed() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reason
}

func (r *reloader) run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	last := r.stamp()
	for {
		forced := false
		select {
		case <-ctx.Done():
			return nil
		case <-r.server.hangup:
			forced = true
		case <-tick.C:
		}
		// The stamp is taken before the files are read: a change during the
		// reading is seen at the next look.
		if now := r.stamp(); now != last || forced {
			last = now
			r.reload()
		}
	}
}

// reload tries the files as they are now.
func (r *reloader) reload() {
	err := r.apply()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reason = ""
	if err != nil {
		r.reason = err.Error()
		r.server.log.Error("revision refused; the last good one keeps serving", "faults", strings.Split(err.Error(), "\n"))
	}
}

func (r *reloader) apply() error {
	s := r.server
	next, err := r.build()
	if err != nil {
		return err
	}
	if err := r.restartNeeded(next.config); err != nil {
		return err
	}
	old := s.current.revision.Load()
	verifier := s.current.verifier.Load()
	if !reflect.DeepEqual(next.config.Identity, old.config.Identity) {
		if verifier, err = s.newVerifier(next.config, nil); err != nil {
			return err
		}
	}
	if err := s.xds.Set(next.envoy); err != nil {
		return err
	}
	s.current.revision.Store(next)
	s.engine.Swap(next.policies)
	s.current.replaceVerifier(verifier)
	s.log.Info("revision serves", "revision", next.policies.Revision(), "config", next.config.Digest[:12])
	return nil
}

// maxBuilds bounds how often files that change while they are read are read
// again.
const maxBuilds = 5

// build makes a revision of files that did not change meanwhile: half of one
// version and half of another, as when a ConfigMap is swapped in between, is
// never one. What keeps changing is seen again at the next look.
func (r *reloader) build() (next *revision, err error) {
	for range maxBuilds {
		before := r.stamp()
		next, err = r.server.builder.build()
		if r.stamp() == before {
			return next, err
		}
	}
	return nil, errors.New("the files kept changing while they were read")
}

// restartNeeded names what changed that a running server cannot take.
func (r *reloader) restartNeeded(next *config.Config) error {
	var errs []error
	for name, pair := range map[string][2]any{
		"store": {r.start.Store, next.Store}, "recording": {r.start.Recording, next.Recording},
		"telemetry": {r.start.Telemetry, next.Telemetry}, "sockets": {r.start.Sockets, next.Sockets},
		"approvals": {r.start.Approvals, next.Approvals}, "parsers": {r.start.Parsers, next.Parsers},
		"tokens": {r.start.Tokens, next.Tokens}, "identity.token_life": {r.start.Identity.Life, next.Identity.Life}, "ssh.keys": {r.start.SSH.Keys, next.SSH.Keys},
		"whether listen.ssh is set": {r.start.Listen.SSH != "", next.Listen.SSH != ""},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			errs = append(errs, fmt.Errorf("%s: a change of %s takes effect only with a restart", r.server.builder.file, name))
		}
	}
	return errors.Join(errs...)
}

// stamp is different whenever a file that makes a revision may be.
func (r *reloader) stamp() string {
	var b strings.Builder
	cfg := r.server.current.revision.Load().config
	note := func(path string) {
		info, err := os.Stat(path)
		if err != nil {
			fmt.Fprintf(&b, "%s %v\n", path, err)
			return
		}
		inode := uint64(0)
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			inode = st.Ino
		}
		fmt.Fprintf(&b, "%s %d %d %d\n", path, info.Size(), info.ModTime().UnixNano(), inode)
	}
	note(r.server.builder.file)
	for _, path := range cfg.Files() {
		note(path)
	}
	policies, err := filepath.EvalSymlinks(cfg.Policies) // the folder may be a link itself
	if err != nil {
		policies = cfg.Policies
	}
	note(cfg.Policies)
	err = filepath.WalkDir(policies, func(path string, _ fs.DirEntry, err error) error {
		note(path)
		return err
	})
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	return b.String()
}
