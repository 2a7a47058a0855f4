package localserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// A PgBouncer is a running PgBouncer on loopback.
type PgBouncer struct {
	Port int
	proc *process
}

// StartPgBouncer starts a pooler before pg with its files in dir. Whoever
// connects, to any database, has a connection to the database of that name as
// user for as long as it stays.
func StartPgBouncer(ctx context.Context, dir string, pg *Postgres, user, password string) (*PgBouncer, error) {
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			return nil, fmt.Errorf("pgbouncer is not on PATH: run tools/install pgbouncer")
		}
	}
	attr, err := unprivileged(dir) // it refuses to be root
	if err != nil {
		return nil, fmt.Errorf("pgbouncer: %w", err)
	}
	b := &PgBouncer{}
	if b.Port, err = FreePort(); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("[databases]\n* = host=127.0.0.1 port=%d user=%s password='%s'\n"+
		"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\npool_mode = session\n",
		pg.Port, user, strings.ReplaceAll(password, "'", "''"), b.Port)
	ini := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(ini, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("pgbouncer: %w", err)
	}
	if attr != nil {
		if err := os.Chown(ini, int(attr.Credential.Uid), int(attr.Credential.Gid)); err != nil {
			return nil, fmt.Errorf("pgbouncer: %w", err)
		}
	}
	cmd := exec.Command(path, "-q", ini)
	cmd.SysProcAttr = attr
	if b.proc, err = start(cmd, filepath.Join(dir, "pgbouncer.log")); err != nil {
		return nil, err
	}
	if err := b.proc.ready(ctx, dial(loopback(b.Port))); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// PID is its process.
func (b *PgBouncer) PID() int { return b.proc.cmd.Process.Pid }

// Close stops it.
func (b *PgBouncer) Close() { b.proc.stop(syscall.SIGTERM) }
