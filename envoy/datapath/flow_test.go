package datapath_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"chaperone.dev/chaperone/envoy/envoytest"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/xds"
)

// TestRequest follows one request to its target and back, over both versions
// of HTTP.
func TestRequest(t *testing.T) {
	t.Parallel()
	target := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "session=target")
		w.Header().Set("X-Of-Target", "1")
		io.WriteString(w, "answer")
	})
	w, proc := newWorld(), &passing{}
	g := newGateway(t, parts{auth: w.server(t, time.Minute), proc: proc}, xds.HTTPResource{Name: "t", Address: target.URL, Host: "target.internal",
		Credential: &xds.Credential{Header: "X-Api-Key", Value: access.NewSecret("s3cret-key")}})
	for version, client := range map[string]*http.Client{"HTTP/1.1": g.client, "HTTP/2": g.http2()} {
		got, err := g.do(t.Context(), client, "GET", "/http/t/customers/1?full=1", "", "Authorization", "Bearer good", "X-Api-Key", "mine", "X-Tenant", "a")
		if err != nil {
			t.Fatal(err)
		}
		if got.status != http.StatusOK || got.body != "answer" || got.header.Get("Server") != "chaperone" || got.header.Get("X-Of-Target") != "1" {
			t.Fatalf("%s: got %+v", version, got)
		}
		for name := range got.header {
			if strings.HasPrefix(name, "X-Envoy") || strings.HasPrefix(name, "X-Chaperone") || name == "Set-Cookie" {
				t.Errorf("%s: the client gets %s", version, name)
			}
		}
		seen := target.take()
		if len(seen) != 1 || seen[0].path != "/customers/1?full=1" || seen[0].host != "target.internal" ||
			strings.Join(seen[0].header["X-Api-Key"], ",") != "s3cret-key" {
			t.Fatalf("%s: the target saw %+v", version, seen)
		}
		for name := range seen[0].header {
			if strings.HasPrefix(name, "X-Envoy") {
				t.Errorf("%s: the target gets %s", version, name)
			}
		}
		events := w.take()
		call := events[0].Decided.Request.Action.HTTP
		if call.Path != "/customers/1" || call.Host != "target.internal" || call.Query["full"][0] != "1" || call.Headers["x-tenant"][0] != "a" ||
			call.Headers["x-api-key"] != nil || call.Headers["x-forwarded-for"] != nil || call.Headers["authorization"] != nil {
			t.Errorf("%s: decided on %+v", version, call)
		}
		if text := mustJSON(t, events); strings.Contains(text, "s3cret") || strings.Contains(text, "Bearer") {
			t.Errorf("%s: the recording holds a secret: %s", version, text)
		}
		// The processor learns what was decided.
		messages := proc.take()
		if len(messages) == 0 {
			t.Fatalf("%s: the response was not processed", version)
		}
		m := messages[0].GetMetadataContext().GetFilterMetadata()["envoy.filters.http.ext_authz"].AsMap()["chaperone"].(map[string]any)
		if m["request"] != events[0].Request || m["session"] != "ses_test" || m["resource"] != "t" || !strings.Contains(m["obligations"].(string), "/ssn") {
			t.Errorf("%s: metadata %v", version, m)
		}
	}
	dump, err := g.envoy.Admin.Get(t.Context(), "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(dump), "s3cret-key") || !strings.Contains(string(dump), "[redacted]") {
		t.Error("the configuration dump shows the credential")
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRefusalsAreNotProcessed: what chaperone itself answers goes out as it
// wrote it, and no processor is troubled with it.
func TestRefusalsAreNotProcessed(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	w, proc := newWorld(), &passing{}
	w.decide = func(access.Request) access.Decision { return denial() }
	g := newGateway(t, parts{auth: w.server(t, time.Minute), proc: proc}, xds.HTTPResource{Name: "t", Address: target.URL})
	denied := g.must("DELETE", "/http/t/x", "", "Authorization", "Bearer good")
	denied.refused(t, 403, access.NoRule)
	p := denied.problem(t)
	if id := w.take()[0].Request; p["request_id"] != id || p["rule"] != "default-deny" || p["resource"] != "t" {
		t.Errorf("got %v", p)
	}
	g.must("GET", "/http/t/x", "").refused(t, 401, access.Unauthenticated)
	if head := g.must("HEAD", "/http/t/x", ""); head.status != 401 || head.body != "" {
		t.Errorf("HEAD: %+v", head)
	}
	g.must("GET", "/http/nope/x", "").refused(t, 401, access.Unauthenticated)
	g.must("GET", "/http/nope/x", "", "Authorization", "Bearer good").refused(t, 404, access.UnknownResource)
	g.must("GET", "/http/", "", "Authorization", "Bearer good").refused(t, 404, access.UnknownResource)
	g.must("GET", "/nope", "").refused(t, 404, access.UnknownResource)
	g.must("GET", "/", "").refused(t, 404, access.UnknownResource)
	if n := len(proc.take()) + len(target.take()); n != 0 {
		t.Errorf("%d messages or requests went past", n)
	}
}

// TestBodies: the authorizer sees all of a body or refuses the request.
func TestBodies(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	w := newWorld()
	g := newGateway(t, parts{auth: w.server(t, time.Minute)},
		xds.HTTPResource{Name: "t", Address: target.URL, ReadBody: true}, xds.HTTPResource{Name: "t2", Address: target.URL})
	post := func(resource, body string, headers ...string) answer {
		t.Helper()
		return g.must("POST", "/http/"+resource+"/x", body, append(headers, "Authorization", "Bearer good", "Content-Type", "application/json")...)
	}
	limit := `"` + strings.Repeat("x", xds.MaxBody-2) + `"`
	for name, body := range map[string]string{"small": `{"amount":5}`, "the largest": limit} {
		if got := post("t", body); got.status != http.StatusOK {
			t.Fatalf("%s: %+v", name, got)
		}
		call := w.take()[0].Decided.Request.Action.HTTP
		sum := sha256.Sum256([]byte(body))
		if call.BodyState != access.BodyWhole || call.BodyDigest != "sha256:"+hex.EncodeToString(sum[:]) || call.BodyBytes != int64(len(body)) {
			t.Errorf("%s: %s %s %d", name, call.BodyState, call.BodyDigest, call.BodyBytes)
		}
		if seen := target.take(); string(seen[0].body) != body {
			t.Errorf("%s: the target got %d bytes", name, len(seen[0].body))
		}
	}
	post("t", limit+" ").refused(t, 413, access.LimitExceeded)
	if len(w.take())+len(target.take()) != 0 {
		t.Error("a body that is too large was judged or forwarded")
	}

	// Chunked, with no length announced.
	got := g.raw(line("POST", "/http/t/x", bearer, "Content-Type: application/json", "Transfer-Encoding: chunked") + "5\r\n{\"a\":\r\n2\r\n1}\r\n0\r\n\r\n")
	if call := w.take()[0].Decided.Request.Action.HTTP; got.status != http.StatusOK || call.BodyState != access.BodyWhole || call.BodyBytes != 7 {
		t.Errorf("chunked: %+v %+v", got, call)
	}
	target.take()

	// Where nobody reads bodies they pass, whatever their size.
	if got := post("t2", limit+limit); got.status != http.StatusOK || len(target.take()[0].body) != 2*xds.MaxBody {
		t.Errorf("streamed: %+v", got)
	}
	if call := w.take()[0].Decided.Request.Action.HTTP; call.BodyState != access.BodyUnread || call.BodyDigest != "" {
		t.Errorf("streamed: %+v", call)
	}
}

func TestHold(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	w := newWorld()
	w.decide = approveAll
	g := newGateway(t, parts{auth: w.server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL, ReadBody: true})
	post := func(ctx context.Context, client *http.Client, body string, headers ...string) <-chan answer {
		done := make(chan answer, 1)
		go func() {
			a, err := g.do(ctx, client, "POST", "/http/t/pay", body, append(headers, "Authorization", "Bearer good")...)
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			done <- a
		}()
		return done
	}

	t.Run("granted", func(t *testing.T) {
		done := post(t.Context(), g.client, "1")
		<-w.waiting
		if seen := target.take(); len(seen) != 0 {
			t.Fatalf("forwarded before the grant: %+v", seen)
		}
		w.answered <- access.Granted
		if got := <-done; got.status != http.StatusOK || len(target.take()) != 1 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("refused", func(t *testing.T) {
		done := post(t.Context(), g.client, "1")
		<-w.waiting
		w.answered <- access.Refused
		got := <-done
		got.refused(t, 403, access.ApprovalRefused)
		if len(target.take()) != 0 {
			t.Error("forwarded")
		}
	})
	for version, client := range map[string]*http.Client{"HTTP/1.1": g.client, "HTTP/2": g.http2()} {
		t.Run("the client leaves over "+version, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			done := post(ctx, client, "2")
			id := <-w.waiting
			leave()
			if got := <-w.abandoned; got != id {
				t.Errorf("abandoned %s, not %s", got, id)
			}
			<-done
			if len(target.take()) != 0 {
				t.Error("forwarded")
			}
		})
	}
	t.Run("asynchronous", func(t *testing.T) {
		ask := func(body string) answer { return <-post(t.Context(), g.client, body, "Prefer", "respond-async") }
		first := ask("3")
		var pending struct {
			RequestID string `json:"request_id"`
			Status    string `json:"status"`
		}
		if err := json.Unmarshal([]byte(first.body), &pending); err != nil {
			t.Fatal(err)
		}
		if first.status != http.StatusAccepted || pending.Status != "pending" || pending.RequestID == "" ||
			first.header.Get("Preference-Applied") != "respond-async" || first.header.Get("Retry-After") == "" {
			t.Fatalf("got %+v", first)
		}
		w.become(pending.RequestID, access.Granted)
		if other := ask("4"); other.status != http.StatusAccepted {
			t.Errorf("another body: %+v", other)
		}
		if len(target.take()) != 0 {
			t.Error("forwarded")
		}
		if again := ask("3"); again.status != http.StatusOK {
			t.Errorf("the identical request: %+v", again)
		}
		seen := target.take()
		if len(seen) != 1 || seen[0].header.Get("Prefer") != "" || string(seen[0].body) != "3" {
			t.Errorf("the target saw %+v", seen)
		}
		if once := ask("3"); once.status != http.StatusAccepted || len(target.take()) != 0 {
			t.Errorf("a grant served twice: %+v", once)
		}
	})
}

// TestAuthorizerFaults: gone, hanging, or gone in the middle, nothing reaches
// the target.
func TestAuthorizerFaults(t *testing.T) {
	t.Parallel()
	resource := func(target *recordingTarget) xds.HTTPResource {
		return xds.HTTPResource{Name: "t", Address: target.URL}
	}
	gone := func(t *testing.T, g *gateway, target *recordingTarget) {
		t.Helper()
		g.must("GET", "/http/t/x", "", "Authorization", "Bearer good").refused(t, 503, access.Unavailable)
		if len(target.take()) != 0 {
			t.Error("the target was reached")
		}
	}
	t.Run("nobody listens", func(t *testing.T) {
		t.Parallel()
		target := newTarget(t, nil)
		g := newGateway(t, parts{}, resource(target))
		gone(t, g, target)
		// It comes back without anybody's help.
		g.serveServices(parts{auth: newWorld().server(t, time.Minute)})
		eventually(t, "served again", func() bool {
			return g.must("GET", "/http/t/x", "", "Authorization", "Bearer good").status == http.StatusOK
		})
	})
	t.Run("it takes connections and hangs", func(t *testing.T) {
		t.Parallel()
		target := newTarget(t, nil)
		g := newGateway(t, parts{}, resource(target))
		l := envoytest.Listen(t, g.cfg.Sockets.Services)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
			}
		}()
		gone(t, g, target)
	})
	t.Run("it answers with an error", func(t *testing.T) {
		t.Parallel()
		target := newTarget(t, nil)
		gone(t, newGateway(t, parts{auth: failing{errors.New("broken")}}, resource(target)), target)
	})
	t.Run("killed while it holds a request", func(t *testing.T) {
		t.Parallel()
		target := newTarget(t, nil)
		w := newWorld()
		w.decide = approveAll
		g := newGateway(t, parts{auth: w.server(t, time.Minute)}, resource(target))
		done := make(chan answer, 1)
		go func() {
			a, err := g.do(t.Context(), g.client, "GET", "/http/t/x", "", "Authorization", "Bearer good")
			if err != nil {
				t.Error(err)
			}
			done <- a
		}()
		<-w.waiting
		g.services.Stop()
		got := <-done
		got.refused(t, 503, access.Unavailable)
		if len(target.take()) != 0 {
			t.Error("the target was reached")
		}
	})
}

// TestEmptyAnswerIsAnAllow is why Check must never return one: Envoy reads
// status 0 in it.
func TestEmptyAnswerIsAnAllow(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	g := newGateway(t, parts{auth: failing{}}, xds.HTTPResource{Name: "t", Address: target.URL})
	if got := g.must("GET", "/http/t/x", ""); got.status != http.StatusOK {
		t.Errorf("Envoy has become stricter, which is welcome: %+v", got)
	}
}

// failing is an authorizer that decides nothing.
type failing struct{ err error }

func (f failing) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return nil, f.err
}

// TestProcessorFaults: a response that is not processed does not get out.
func TestProcessorFaults(t *testing.T) {
	t.Parallel()
	const secret = "the target's data"
	for name, proc := range map[string]extprocv3.ExternalProcessorServer{
		"not there":            extprocv3.UnimplementedExternalProcessorServer{},
		"error at the head":    &breaking{after: 0},
		"error at the body":    &breaking{after: 1},
		"nonsense at the head": &confused{},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := newTarget(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, secret) })
			g := newGateway(t, parts{auth: newWorld().server(t, time.Minute), proc: proc}, xds.HTTPResource{Name: "t", Address: target.URL})
			got, err := g.do(t.Context(), g.client, "GET", "/http/t/x", "", "Authorization", "Bearer good")
			if strings.Contains(got.body, "data") {
				t.Fatalf("got %+v, %v", got, err)
			}
			if name != "error at the body" {
				if err != nil {
					t.Fatal(err)
				}
				got.refused(t, 503, access.Unavailable)
			} else if err == nil && got.status == http.StatusOK {
				t.Errorf("half an answer looks whole: %+v", got)
			}
		})
	}
}

// breaking ends the stream with an error after so many messages.
type breaking struct {
	extprocv3.UnimplementedExternalProcessorServer
	after int
}

func (b *breaking) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	for range b.after {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		err := stream.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}})
		if err != nil {
			return err
		}
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	return errors.New("broken")
}

// confused answers a question that was not asked.
type confused struct {
	extprocv3.UnimplementedExternalProcessorServer
}

func (c *confused) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	err := stream.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// TestAPI: the API gets its token, and is troubled by neither decision nor
// processing.
func TestAPI(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	w, proc := newWorld(), &passing{}
	w.decide = func(access.Request) access.Decision { return denial() }
	g := newGateway(t, parts{auth: w.server(t, time.Minute), proc: proc}, xds.HTTPResource{Name: "t", Address: target.URL})
	api := &recordingTarget{answer: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "api") }}
	server := &http.Server{Handler: api}
	l := envoytest.Listen(t, g.cfg.Sockets.API)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	got := g.must("GET", "/api/v1/sessions?x=1", "", "Authorization", "Bearer anything", "X-Chaperone-User", "root", "X-Forwarded-For", "10.9.9.9")
	seen := api.take()
	if got.body != "api" || len(seen) != 1 || seen[0].path != "/api/v1/sessions?x=1" || seen[0].header.Get("Authorization") != "Bearer anything" ||
		seen[0].header.Get("X-Chaperone-User") != "" || strings.Contains(seen[0].header.Get("X-Forwarded-For"), "10.9.9.9") {
		t.Errorf("got %+v, the API saw %+v", got, seen)
	}
	if len(w.take())+len(proc.take()) != 0 {
		t.Error("the API's request was decided or processed")
	}
	for _, p := range []string{"/oauth/token", "/oauth", "/.well-known/chaperone", "/.well-known/oauth-authorization-server"} {
		if got := g.must("GET", p, ""); got.body != "api" || len(api.take()) != 1 {
			t.Errorf("%s: got %+v", p, got)
		}
	}
	for _, p := range []string{"/api/v1x", "/api/v2/x", "/api", "/oauthx", "/.well-known/", "/.well-known/chaperone/x"} {
		g.must("GET", p, "").refused(t, 404, access.UnknownResource)
	}
	// Its guards are off for it alone: a path that ends elsewhere has them.
	g.raw(line("GET", "/api/v1/../../http/t/x", bearer)).refused(t, 403, access.NoRule)
	g.raw(line("GET", "/api/v1/%2e%2e/%2e%2e/http/t/x")).refused(t, 401, access.Unauthenticated)
	for _, p := range []string{"/api/v1/a%2Fb", "/api/v1/%2e%2e%2fadmin", "/api/v1/a%5cb"} {
		g.raw(line("GET", p)).refused(t, 400, access.Unreadable)
	}
	if len(api.take())+len(target.take()) != 0 {
		t.Error("something went past")
	}
}

// TestPostgres: every connection reaches the session service behind a PROXY
// protocol v2 header with the client's address.
func TestPostgres(t *testing.T) {
	t.Parallel()
	dir := envoytest.SocketDir(t)
	address := envoytest.ReserveAddress(t)
	l := envoytest.Listen(t, filepath.Join(dir, "postgres.sock"))
	g := newGateway(t, parts{edit: func(c *xds.Config) {
		c.Listen.Postgres, c.Sockets.Postgres = address, filepath.Join(dir, "postgres.sock")
	}})
	_ = g
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	served.SetDeadline(time.Now().Add(10 * time.Second))
	from := proxied(t, served)
	if from != conn.LocalAddr().String() {
		t.Errorf("the client is %s, not %s", from, conn.LocalAddr())
	}
	rest := make([]byte, 5)
	if _, err := io.ReadFull(served, rest); err != nil || string(rest) != "hello" {
		t.Errorf("then %q, %v", rest, err)
	}
	// The end of either side is the end of the other.
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := served.Read(rest); n != 0 || err == nil {
		t.Errorf("after the client left: %d %v", n, err)
	}
}
