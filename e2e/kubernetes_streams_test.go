package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console"
	"chaperone.dev/chaperone/internal/localserver"
)

// runningPod makes a namespace with the pod web, which runs on a node of ours.
func runningPod(t *testing.T, direct kubectl, namespace string) *localserver.Node {
	t.Helper()
	n, err := localserver.StartNode()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	direct.must(t, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Node
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: %[1]s}
spec: {nodeName: %[1]s, containers: [{name: web, image: "web:1"}]}
`, namespace), "apply", "-f", "-")
	direct.must(t, "", "patch", "node", namespace, "--subresource=status", "-p", fmt.Sprintf(
		`{"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.1"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":%d}}}}`, n.Port))
	direct.must(t, "", "-n", namespace, "patch", "pod", "web", "--subresource=status", "-p", `{"status":{"phase":"Running","containerStatuses":[{"name":"web","image":"web:1","imageID":"","ready":true,"restartCount":0,"state":{"running":{}}}]}}`)
	return n
}

// bySPDY makes kubectl stream as older ones do.
func bySPDY(k kubectl) kubectl {
	k.env = append(append([]string(nil), k.env...), "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false")
	return k
}

const maskedCard = "4111111111111111"

// TestKubectlStreams runs exec, attach, cp and port-forward direct and through,
// over both protocols.
func TestKubectlStreams(t *testing.T) {
	t.Parallel()
	_, direct, through := kubernetes(t)
	runningPod(t, direct, "streams")
	over := map[string]kubectl{"WebSocket": through, "SPDY": bySPDY(through)}
	for _, c := range [][]string{
		{"in and out", "exec", "-i", "web", "--", "tr", "a-z", "A-Z"}, {"an exit status", "exec", "web", "--", "sh", "-c", "echo no >&2; exit 7"},
		{"attach", "attach", "-i", "web"},
	} {
		args := append([]string{"-n", "streams"}, c[1:]...)
		want, wantErr := direct.run(t.Context(), "hello\n", args...)
		for protocol, k := range over {
			got, err := k.run(t.Context(), "hello\n", args...)
			if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) || want == "" && wantErr == nil {
				t.Errorf("%s, %s\ndirect:  %q %v\nthrough: %q %v", protocol, c[0], want, wantErr, got, err)
			}
		}
	}
	for protocol, k := range over {
		if got := k.must(t, "", "-n", "streams", "exec", "web", "--", "echo", "card", maskedCard); got != "card ***\n" {
			t.Errorf("%s: masked output is %q", protocol, got)
		}
		forwards(t, k, "streams")
	}
	copies(t, through, "streams")
	if got := direct.must(t, "", "-n", "streams", "exec", "web", "--", "echo", "card", maskedCard); !strings.Contains(got, maskedCard) {
		t.Errorf("there is nothing to mask: %q", got)
	}
}

// copies sends a binary file to the pod and back.
func copies(t *testing.T, k kubectl, namespace string) {
	t.Helper()
	dir, content := t.TempDir(), bytes.Repeat([]byte("\x00\xffbinary"), 50_000)
	from, to, remote := filepath.Join(dir, "from"), filepath.Join(dir, "to"), filepath.Join(dir, "remote")
	if err := os.WriteFile(from, content, 0o600); err != nil {
		t.Fatal(err)
	}
	k.must(t, "", "cp", from, namespace+"/web:"+remote)
	k.must(t, "", "cp", namespace+"/web:"+remote, to)
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes of %d come back: %v", len(got), len(content), err)
	}
}

// forwards reaches a server of ours through a forwarded port.
func forwards(t *testing.T, k kubectl, namespace string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "behind the port") }))
	t.Cleanup(server.Close)
	cmd, out := k.start(t, "-n", namespace, "port-forward", "web", fmt.Sprintf(":%d", server.Listener.Addr().(*net.TCPAddr).Port))
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	at := regexp.MustCompile(`127\.0\.0\.1:[0-9]+`).FindString(line)
	if err != nil || at == "" {
		t.Fatalf("port-forward says %q: %v", line, err)
	}
	for range 2 { // two connections in it
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		res, err := client.Get("http://" + at)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if string(body) != "behind the port" || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
	}
}

// start starts kubectl; what it prints on stdout can be read.
func (k kubectl) start(t *testing.T, args ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	path, err := localserver.Tool(cmp.Or(k.tool, "kubectl"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), path, append([]string{"--kubeconfig", k.config, "--cache-dir", k.home}, args...)...)
	cmd.Env = append(append(os.Environ(), k.env...), "HOME="+k.home)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// onTerminal asks for the terminal's new size and shows a number, which is not in
// the command as it is.
const onTerminal = `stty size; while [ "$(stty size)" != "40 120" ]; do sleep 0.05; done; stty size; echo number 4111$((1))11111111111; exec cat`

// TestKubectlTerminal runs exec -it in a terminal of its own, through the
// gateway, changes its size, and goes on until an operator ends the session.
// What it showed is masked, played back and exported.
func TestKubectlTerminal(t *testing.T) {
	t.Parallel()
	s, direct, through := kubernetes(t)
	runningPod(t, direct, "terminal")
	master, slave, err := localserver.OpenTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	resize := func(columns, rows uint16) {
		t.Helper()
		if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
			t.Fatal(err)
		}
	}
	resize(97, 31)
	path, err := localserver.Tool("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--kubeconfig", through.config, "--cache-dir", through.home, "-n", "terminal", "exec", "-it", "web", "--", "sh", "-c", onTerminal, "card")
	cmd.Env = append(append(os.Environ(), through.env...), "HOME="+through.home)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	shown := bufio.NewReader(master)
	expect := func(want string) {
		t.Helper()
		if line, err := shown.ReadString('\n'); err != nil || strings.TrimSpace(line) != want {
			t.Fatalf("the terminal shows %q, not %q: %v", line, want, err)
		}
	}
	expect("31 97")
	resize(120, 40)
	expect("40 120")
	expect("number ***")
	if _, err := master.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	expect("typed")
	tok := strings.TrimPrefix(through.env[0], "CHAPERONE_TOKEN=")
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--token", tokenID(tok), "--cause", "enough"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	rest, _ := io.ReadAll(shown) // a terminal whose program has gone is an error
	if err := cmd.Wait(); err == nil || !strings.Contains(string(rest), "enough") {
		t.Errorf("the killed session ends with %v: %q", err, rest)
	}
	playedBack(t, s, tok)
}

// playedBack replays and exports the terminal of the token's session.
func playedBack(t *testing.T, s *demo.Site, tok string) {
	t.Helper()
	sofia, session := person(t, s, demo.Sofia), ""
	eventually(t, func() error {
		out, err := cli(t, s, sofia, "sessions", "list", "-o", "json")
		var list []console.SessionSummary
		if err := errors.Join(err, json.Unmarshal([]byte(out), &list)); err != nil {
			return err
		}
		for _, one := range list {
			// kubectl's own token was exchanged for it.
			if slices.ContainsFunc(one.Principal.Chain, func(h access.Hop) bool { return h.Parent == tokenID(tok) }) {
				session = one.ID
				return nil
			}
		}
		return fmt.Errorf("it is not among %s", out)
	})
	replayed, err := cli(t, s, sofia, "sessions", "replay", session, "--speed", "0")
	for _, want := range []string{"31 97", "40 120", "number ***", "typed", "pods/exec terminal/web", "enough"} {
		if err != nil || !strings.Contains(replayed, want) {
			t.Errorf("replayed without %q (%v):\n%s", want, err, replayed)
		}
	}
	cast, err := cli(t, s, sofia, "sessions", "export", session)
	for _, want := range []string{`{"version":3,"term":{"cols":97,"rows":31`, `"command":"sh -c `, `"r","120x40"`, `number ***`, `typed`} {
		if err != nil || !strings.Contains(cast, want) {
			t.Errorf("exported without %q (%v):\n%s", want, err, cast)
		}
	}
	if strings.Contains(replayed+cast, maskedCard) {
		t.Errorf("the number is recorded:\n%s\n%s", replayed, cast)
	}
}

// leave asks for a connection that leaves HTTP, through Envoy, and returns the
// status of the answer and what it says.
func leave(t *testing.T, s *demo.Site, method, path, tok string, headers ...string) (int, string) {
	t.Helper()
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(s.Dir, "ca.crt"))
	if err != nil || !roots.AppendCertsFromPEM(ca) {
		t.Fatal("no CA", err)
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.URL(), "https://"), &tls.Config{RootCAs: roots, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	headers = append([]string{"Host: gateway", "Connection: Upgrade", "Content-Length: 0", "Authorization: Bearer " + tok}, headers...)
	if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\n%s\r\n\r\n", method, path, strings.Join(headers, "\r\n")); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return res.StatusCode, res.Header.Get("X-Stream-Protocol-Version") + res.Header.Get("Sec-Websocket-Protocol")
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// TestKubernetesStreamAttacks: a command that policy denies reaches the pod by
// no method, protocol or header. The control is that the cluster runs it; the
// twin is the near command, which policy allows.
func TestKubernetesStreamAttacks(t *testing.T) {
	t.Parallel()
	s, direct, through := kubernetes(t)
	runningPod(t, direct, "attacks")
	if got := direct.must(t, "", "-n", "attacks", "exec", "web", "--", "true", "reboot"); got != "" {
		t.Errorf("the control says %q", got)
	}
	tok := strings.TrimPrefix(through.env[0], "CHAPERONE_TOKEN=")
	spdy := []string{"Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"}
	webSocket := []string{"Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	v5 := "Sec-WebSocket-Protocol: v5.channel.k8s.io"
	path := "/k8s/cluster/api/v1/namespaces/attacks/pods/web/exec?stdout=true&command=true"
	with := func(list []string, more ...string) []string { return append(append([]string(nil), list...), more...) }
	forged := "X-Chaperone-Ticket: AAAAAAAAAAAAAAAAAAAAAAAAAA"
	for name, c := range map[string]struct {
		method, path, token string
		headers             []string
		status              int
		says                string
	}{
		"twin by SPDY":          {"POST", path, tok, spdy, 101, "v4.channel.k8s.io"},
		"twin by WebSocket":     {"GET", path, tok, with(webSocket, v5), 101, "v5.channel.k8s.io"},
		"twin, forged ticket":   {"GET", path, tok, with(webSocket, v5, forged), 101, "v5.channel.k8s.io"},
		"denied by WebSocket":   {"GET", path + "&command=reboot", tok, with(webSocket, v5), 403, "no-reboot"},
		"denied by SPDY, POST":  {"POST", path + "&command=reboot", tok, spdy, 403, "no-reboot"},
		"denied by SPDY, GET":   {"GET", path + "&command=reboot", tok, spdy, 403, "no-reboot"},
		"denied, forged ticket": {"POST", path + "&command=reboot", tok, with(spdy, forged), 403, "no-reboot"},
		"denied, encoded":       {"POST", strings.Replace(path, "/exec", "/%65xec", 1) + "&command=reboot", tok, spdy, 403, ""},
		"no token":              {"POST", path, "", with(spdy, forged), 401, ""},
		"a token in a protocol": {"GET", path, tok, with(webSocket, v5+", base64url.bearer.authorization.k8s.io.YWJj"), 403, "subprotocol"},
		"impersonation":         {"POST", path, tok, with(spdy, "Impersonate-User: system:admin"), 403, "impersonation"},
		"no upgrade":            {"POST", path, tok, []string{"X: y"}, 403, "Upgrade"},
		"an old protocol":       {"POST", path, tok, []string{"Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v1.channel.k8s.io"}, 403, "protocols"},
		"a watch by WebSocket":  {"GET", "/k8s/cluster/api/v1/namespaces/attacks/pods?watch=true", tok, with(webSocket, forged), 403, "leave HTTP"},
		"a proxy by WebSocket":  {"GET", "/k8s/cluster/api/v1/namespaces/attacks/pods/web/proxy/", tok, with(webSocket, forged), 403, "not served"},
	} {
		if status, says := leave(t, s, c.method, c.path, c.token, c.headers...); status != c.status || !strings.Contains(says, c.says) {
			t.Errorf("%s: %d %s", name, status, says)
		}
	}
}

// TestKubectlExecHeld: a held command runs once it is granted, and the reviewer
// sees it.
func TestKubectlExecHeld(t *testing.T) {
	t.Parallel()
	s, direct, through := kubernetes(t)
	runningPod(t, direct, "held")
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := through.run(t.Context(), "", "-n", "held", "exec", "web", "--", "echo", "restore", "the backup")
		done <- result{out, err}
	}()
	grace, id := person(t, s, demo.Grace), ""
	eventually(t, func() error {
		select {
		case got := <-done:
			t.Fatalf("it was not held: %q %v", got.out, got.err)
		default:
		}
		out, err := cli(t, s, grace, "approvals", "list", "-o", "json")
		if m := regexp.MustCompile(`"id":\s*"(req_[a-z0-9]+)"[^}]*pods/exec held/web`).FindStringSubmatch(out); m != nil {
			id = m[1]
			return nil
		}
		return fmt.Errorf("%w: %s", err, out)
	})
	if card, err := cli(t, s, grace, "approvals", "show", id); err != nil || !strings.Contains(card, "the backup") {
		t.Errorf("the reviewer sees %v %s", err, card)
	}
	if out, err := cli(t, s, grace, "approvals", "approve", id); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if got := <-done; got.err != nil || got.out != "restore the backup\n" {
		t.Errorf("granted: %q %v", got.out, got.err)
	}
}
