package localserver

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/spdystream"
	"golang.org/x/sys/unix"
)

// A Node is what a kubelet is to an API server for exec, attach, port-forward and
// logs: the commands run on this machine, and the ports are its own.
type Node struct {
	Port   int         // of loopback
	Log    chan string // what containers print, as it is followed; closed: they end
	server *http.Server
}

// StartNode starts one. Close it.
func StartNode() (*Node, error) {
	cert, key, err := serverCertificate()
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	n := &Node{Log: make(chan string), Port: l.Addr().(*net.TCPAddr).Port}
	n.server = &http.Server{Handler: n, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = n.server.Serve(l) }() // until Close
	return n, nil
}

// Close ends it; streams end with the API server.
func (n *Node) Close() error { return n.server.Close() }

// ServeHTTP takes the connection that the API server makes for a client.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if what == "containerLogs" {
		n.logs(w, r)
		return
	}
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "SPDY/3.1")
	w.Header().Set("X-Stream-Protocol-Version", map[string]string{"portForward": "portforward.k8s.io"}[what])
	if what != "portForward" {
		w.Header().Set("X-Stream-Protocol-Version", "v4.channel.k8s.io")
	}
	w.WriteHeader(http.StatusSwitchingProtocols)
	raw, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	conn, err := spdystream.NewConnection(early{raw, buffered.Reader}, true)
	if err != nil {
		return
	}
	opened := make(chan *spdystream.Stream, 64)
	go conn.Serve(func(s *spdystream.Stream) {
		_ = s.SendReply(http.Header{}, false)
		opened <- s
	})
	if what == "portForward" {
		forwardPorts(conn, opened)
		return
	}
	query, streams := r.URL.Query(), map[string]*spdystream.Stream{}
	expected := 1
	for _, flag := range []string{"input", "output", "error", "tty"} {
		if query.Get(flag) == "1" {
			expected++
		}
	}
	for range expected {
		select {
		case s := <-opened:
			streams[s.Headers().Get("streamtype")] = s
		case <-conn.CloseChan():
			return
		}
	}
	words := query["command"]
	if what == "attach" {
		words = []string{"sh", "-c", "echo attached; exec cat"}
	}
	status := `{"status":"Success"}`
	if code := runCommand(words, streams, query.Get("tty") == "1", conn.CloseChan()); code != 0 {
		status = fmt.Sprintf(`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"%d"}]}}`, code)
	}
	_, _ = streams["error"].Write([]byte(status))
	for _, s := range streams {
		_ = s.Reset()
	}
	_ = conn.Close()
}

// logs shows what a container has printed, and what it goes on to print.
func (n *Node) logs(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, "began with card 4111111111111111\n")
	for r.URL.Query().Get("follow") == "true" {
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case line, more := <-n.Log:
			if !more {
				return
			}
			_, _ = io.WriteString(w, line)
		case <-r.Context().Done():
			return
		}
	}
}

type early struct {
	net.Conn
	from io.Reader
}

func (e early) Read(p []byte) (int, error) { return e.from.Read(p) }

// runCommand runs a command on the streams until it ends or the client leaves.
func runCommand(words []string, streams map[string]*spdystream.Stream, terminal bool, left <-chan bool) (code int) {
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = os.TempDir()
	done := make(chan struct{})
	defer close(done)
	if terminal {
		master, slave, err := OpenTerminal()
		if err != nil {
			return 125
		}
		defer master.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		sizes := json.NewDecoder(streams["resize"])
		resize := func() error {
			var size struct{ Width, Height uint16 }
			if err := sizes.Decode(&size); err != nil {
				return err
			}
			return unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: size.Width, Row: size.Height})
		}
		if err := resize(); err != nil {
			return 125
		}
		go func() {
			for resize() == nil { // until the terminal or the client is gone
			}
		}()
		go func() { _, _ = io.Copy(master, streams["stdin"]) }()
		shown := make(chan struct{})
		go func() { _, _ = io.Copy(streams["stdout"], master); close(shown) }()
		defer func() { slave.Close(); <-shown }()
	} else {
		if s := streams["stdin"]; s != nil {
			in, err := cmd.StdinPipe()
			if err != nil {
				return 125
			}
			go func() { _, _ = io.Copy(in, s); in.Close() }()
		}
		cmd.Stdout, cmd.Stderr = streams["stdout"], streams["stderr"]
	}
	if err := cmd.Start(); err != nil {
		return 126
	}
	go func() {
		select {
		case <-left:
			_ = cmd.Process.Kill()
		case <-done:
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// OpenTerminal opens a new terminal: the side of whoever shows it, and the
// program's.
func OpenTerminal() (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
	}
	return master, slave, err
}

// forwardPorts connects each pair of streams with a port of this machine.
func forwardPorts(conn *spdystream.Connection, opened <-chan *spdystream.Stream) {
	for {
		select {
		case s := <-opened:
			if s.Headers().Get("streamtype") != "data" {
				continue
			}
			go func() {
				defer s.Close()
				to, err := net.Dial("tcp", "127.0.0.1:"+s.Headers().Get("port"))
				if err != nil {
					return
				}
				defer to.Close()
				go func() { _, _ = io.Copy(to, s); _ = to.(*net.TCPConn).CloseWrite() }()
				_, _ = io.Copy(s, to)
			}()
		case <-conn.CloseChan():
			return
		}
	}
}
