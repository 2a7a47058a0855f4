package localserver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// A Postgres is a running PostgreSQL server on loopback that demands SCRAM from
// everyone and logs every statement.
type Postgres struct {
	Port     int
	Addr     string // 127.0.0.1:port
	Bin      string // folder of its programs, psql among them
	Password string // of the superuser postgres
	log      string
	proc     *process
}

// oldest is the oldest PostgreSQL that chaperone is tested with.
const oldest = 16

// PostgresBin finds the folder of a PostgreSQL installation: for version "" the
// first of PATH, the distribution's folders and the tools folder that is 16 or
// newer; for "16" or "18" exactly that one.
func PostgresBin(version string) (string, error) {
	var candidates []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			candidates = append(candidates, filepath.Dir(path))
		}
	}
	distribution, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.Sort(distribution)
	slices.Reverse(distribution)
	candidates = append(candidates, distribution...)
	tools, _ := filepath.Glob(filepath.Join(ToolsDir(), "postgres-*", "bin"))
	slices.Sort(tools)
	slices.Reverse(tools)
	candidates = append(candidates, tools...)
	for _, dir := range candidates {
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
			continue
		}
		major := majorVersion(dir)
		if n, err := strconv.Atoi(major); err == nil && (version == "" && n >= oldest || major == version) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("PostgreSQL %s is neither on PATH, in the distribution's folder nor in the tools folder: run tools/install postgres", version)
}

// TLSVersion is the version of a PostgreSQL that was built with TLS, which the
// pinned ones were not: that of the distribution.
func TLSVersion() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	slices.Sort(found)
	for _, program := range slices.Backward(found) {
		return majorVersion(filepath.Dir(program)), nil
	}
	return "", errors.New("there is no PostgreSQL in the distribution's folder: run tools/install postgres-tls")
}

func majorVersion(bin string) string {
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(out)) // postgres (PostgreSQL) 18.4 …
	if len(fields) < 3 {
		return ""
	}
	major, _, _ := strings.Cut(fields[2], ".")
	return major
}

// StartPostgres creates a cluster in dir, which must not hold one yet, and
// starts it; for version see PostgresBin. Run as root it becomes the user
// nobody, for the server refuses to be root.
func StartPostgres(ctx context.Context, dir, version string) (*Postgres, error) {
	bin, err := PostgresBin(version)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	pg := &Postgres{Bin: bin, Password: "owner-of-the-cluster", log: filepath.Join(dir, "postgres.log")}
	if pg.Port, err = FreePort(); err != nil {
		return nil, err
	}
	pg.Addr = loopback(pg.Port)
	attr, err := unprivileged(dir)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	if err := pg.initdb(ctx, dir, attr); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(bin, "postgres"), "-D", filepath.Join(dir, "pgdata"),
		"-p", strconv.Itoa(pg.Port), "-h", "127.0.0.1", "-k", "",
		"-c", "log_statement=all", "-c", "log_min_messages=log", "-c", "password_encryption=scram-sha-256",
		"-c", "shared_buffers=32MB", "-c", "max_connections=1200")
	cmd.SysProcAttr, cmd.Env = attr, append(os.Environ(), "LC_ALL=C")
	cmd.Dir = dir
	if pg.proc, err = start(cmd, pg.log); err != nil {
		return nil, err
	}
	err = pg.proc.ready(ctx, func(ctx context.Context) error { return pg.Exec(ctx, "postgres", "select 1") })
	if err != nil {
		pg.Close()
		return nil, err
	}
	return pg, nil
}

func (pg *Postgres) initdb(ctx context.Context, dir string, attr *syscall.SysProcAttr) error {
	pwfile := filepath.Join(dir, "owner-password")
	if err := os.WriteFile(pwfile, []byte(pg.Password), 0o644); err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(pg.Bin, "initdb"), "-D", filepath.Join(dir, "pgdata"), "-U", "postgres",
		"-A", "scram-sha-256", "--pwfile", pwfile, "-E", "UTF8", "--locale=C", "--no-sync")
	cmd.SysProcAttr, cmd.Dir = attr, dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return os.Remove(pwfile)
}

// unprivileged prepares dir for a server that will not run as root.
func unprivileged(dir string) (*syscall.SysProcAttr, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, nil
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(nobody.Gid)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return nil, err
	}
	if err := passable(dir); err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

// passable lets other users pass through the folders above dir. It opens only
// folders for temporary files; any other closed folder is an error.
func passable(dir string) error {
	for parent := filepath.Dir(dir); parent != "/"; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 != 0 {
			continue
		}
		if !strings.HasPrefix(parent, filepath.Clean(os.TempDir())+"/") {
			return fmt.Errorf("the user nobody, as whom the database runs, cannot pass through %s: choose another folder", parent)
		}
		if err := os.Chmod(parent, info.Mode().Perm()|0o011); err != nil {
			return err
		}
	}
	return nil
}

// DSN is a connection string straight to the server, past any gateway.
func (pg *Postgres) DSN(user, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: pg.Addr, Path: database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Exec runs statements as the superuser, straight at the server.
func (pg *Postgres) Exec(ctx context.Context, database, sql string) error {
	conn, err := pgx.Connect(ctx, pg.DSN("postgres", pg.Password, database))
	if err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	return nil
}

// Log returns the server's log, with every statement that reached it.
func (pg *Postgres) Log() string {
	b, err := os.ReadFile(pg.log)
	if err != nil {
		return ""
	}
	return string(b)
}

// Kill ends the server at once, as a crash would.
func (pg *Postgres) Kill() { pg.proc.stop(syscall.SIGQUIT) }

// Close stops the server.
func (pg *Postgres) Close() error {
	pg.proc.stop(syscall.SIGINT)
	return nil
}
