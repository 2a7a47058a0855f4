// Package isolate runs a command that reaches nothing on any network but a few
// addresses. The command gets a network namespace of its own, with nothing in it
// but loopback, and finds there, under the names and ports that it knows,
// listeners whose connections the process outside carries to those addresses:
//
//	command ── 127.0.0.1:8443 in the namespace ── Run, outside ── gateway:8443
//
// The listeners are made inside and served outside, so nothing that could be
// taken over runs beside the command, and no socket is left open in it. A filter
// of system calls cuts what a network namespace does not: unix sockets of the
// host, vsock and every other family of sockets, io_uring, which goes past
// filters, look-ups that the kernel starts outside, and typing into the terminal
// of whoever started it. A user namespace keeps it from tracing what runs
// outside, and it can gain no privilege.
//
// It does not confine files: the command reads and writes what its user may.
package isolate

import (
	"context"
	"errors"
	"net"
	"os"
)

// ErrUnavailable is wrapped by errors of machines on which nothing can be
// isolated. Nothing has run then.
var ErrUnavailable = errors.New("nothing can be isolated here")

// Stage is the first argument of this program when Run starts it to prepare the
// namespace: main then calls Inside.
const Stage = "isolated-command"

// An Address is what the command may reach, as it knows it.
type Address struct {
	Host string // name or IP address
	Port int
}

// A User is whom the command runs as.
type User struct{ UID, GID int }

// Config is what Run needs besides the command.
type Config struct {
	// Reach is everything that the command reaches.
	Reach []Address
	// Dial connects to an address of Reach, from outside; required.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Folder is where Run leaves a file that the command's user must be able to
	// read; the caller removes it.
	Folder string
	// User is whom the command runs as. It is required of root, and cannot be
	// chosen by anybody else.
	User *User
}

// as is whom the command runs as.
func (c Config) as() (User, error) {
	self := User{os.Getuid(), os.Getgid()}
	switch {
	case c.User == nil && self.UID == 0:
		return User{}, errors.New("what root writes, others run: a command is not isolated as root, say as whom it runs")
	case c.User == nil:
		return self, nil
	case c.User.UID == 0 || c.User.GID == 0:
		return User{}, errors.New("a command is not isolated as root")
	case self.UID != 0 && *c.User != self:
		return User{}, errors.New("only root can choose as whom a command runs")
	}
	return *c.User, nil
}
