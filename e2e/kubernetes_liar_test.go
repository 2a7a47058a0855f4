package e2e

import (
	"compress/gzip"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// A liar is an API server that answers what none should: how it lies is the
// last segment of the path.
type liar struct {
	server *httptest.Server
	left   chan struct{} // whoever read the endless answer has gone
}

// startLiar leaves its certificate in dir.
func startLiar(dir string) (*liar, error) {
	l := &liar{left: make(chan struct{}, 1)}
	l.server = httptest.NewTLSServer(l)
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.server.Certificate().Raw})
	return l, os.WriteFile(filepath.Join(dir, "liar.crt"), certificate, 0o600)
}

// stolen is the value that none of the lies may carry to a client.
const stolen = "aHVudGVyMg=="

const lyingSecret = `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"x"},"data":{"p":"` + stolen + `"},"type":"Opaque"}`

// lies are answers with that content type and that body.
var lies = map[string]struct{ media, body string }{
	"none":           {"application/json", lyingSecret},
	"html":           {"text/html", lyingSecret},
	"protobuf":       {"application/vnd.kubernetes.protobuf", "k8s\x00" + stolen},
	"cbor":           {"application/cbor", stolen},
	"utf16":          {"application/json;charset=utf-16", lyingSecret},
	"stream":         {"application/json;stream=watch", lyingSecret + "\n" + lyingSecret},
	"cut":            {"application/json", lyingSecret[:len(lyingSecret)-1]},
	"cut in a value": {"application/json", lyingSecret[:strings.Index(lyingSecret, stolen)+4]},
	"two documents":  {"application/json", lyingSecret + lyingSecret},
	"deep":           {"application/json", strings.Repeat("[", 1000) + lyingSecret + strings.Repeat("]", 1000)},
	"a long name":    {"application/json", `{"` + strings.Repeat("n", 1<<20) + `":` + lyingSecret + `}`},
	"not utf8":       {"application/json", strings.Replace(lyingSecret, `"x"`, "\"\xff\"", 1)},
	"another kind":   {"application/json", strings.Replace(lyingSecret, `"kind":"Secret"`, `"kind":"ConfigMap"`, 1)},
	"a list":         {"application/json", `{"kind":"SecretList","items":[` + lyingSecret + `]}`},
	"an event":       {"application/json", `{"type":"ADDED","object":` + lyingSecret + `}`},
	"names twice":    {"application/json", strings.Replace(lyingSecret, `"data"`, `"data":{},"data"`, 1)},
	"escaped names":  {"application/json", strings.Replace(lyingSecret, `"data"`, `"d\u0061ta"`, 1)},
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	how := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	how = strings.ReplaceAll(strings.TrimPrefix(how, "x-"), "-", " ")
	if lie, ok := lies[how]; ok {
		w.Header().Set("Content-Type", lie.media)
		_, _ = io.WriteString(w, lie.body)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if strings.Contains(r.URL.Path, "/x-expired/") { // as real ones are, too
		const gone = `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old resource version: 1 (9)","reason":"Expired","code":410}`
		if r.URL.Query().Get("watch") != "" {
			_, _ = io.WriteString(w, `{"type":"ERROR","object":`+gone+"}\n")
			return
		}
		w.WriteHeader(http.StatusGone)
		_, _ = io.WriteString(w, gone)
		return
	}
	switch r.URL.Query().Get("how") { // what benchmarks ask for
	case "events":
		events(r.Context(), w)
		return
	case "list":
		bigList(w)
		return
	}
	switch how {
	case "gzip":
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, lyingSecret)
		_ = z.Close()
	case "no type":
		w.Header()["Content-Type"] = nil
		_, _ = io.WriteString(w, lyingSecret)
	case "a part":
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, lyingSecret)
	case "too short":
		w.Header().Set("Content-Length", fmt.Sprint(len(lyingSecret)+10))
		_, _ = io.WriteString(w, lyingSecret)
	case "dies":
		panic(http.ErrAbortHandler)
	case "dies midway":
		_, _ = io.WriteString(w, lyingSecret[:len(lyingSecret)-8])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "endless":
		_, _ = io.WriteString(w, `{"kind":"SecretList","items":[`+lyingSecret)
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat(","+lyingSecret, 100)); err != nil {
				break
			}
		}
		l.left <- struct{}{}
	default:
		w.WriteHeader(http.StatusTeapot)
	}
}

// TestAttackLyingAPIServer: whatever an API server answers, no value of a Secret
// comes through. What cannot be masked is a Status that says so, or ends where it
// breaks. Control: a client of the API server itself gets the value. Twin: an
// answer like a real one passes, masked.
func TestAttackLyingAPIServer(t *testing.T) {
	t.Parallel()
	s, alan := site(t), ""
	alan = token(t, s, demo.Alan)
	const passes, withheld, cut = "passes", "withheld", "cut"
	for how, want := range map[string]string{
		"none": passes, "html": withheld, "protobuf": withheld, "cbor": withheld, "utf16": withheld, "stream": cut, "cut": cut, "cut in a value": cut,
		"two documents": cut, "deep": cut, "a long name": cut, "not utf8": cut, "another kind": passes, "a list": passes, "an event": passes,
		"names twice": passes, "escaped names": passes, "gzip": withheld, "no type": withheld, "a part": withheld, "too short": cut, "dies": withheld, "dies midway": cut,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			path := "/api/v1/namespaces/shop/secrets/x-" + strings.ReplaceAll(how, " ", "-")
			if how != "dies" {
				if text := atLiar(t, path); !strings.Contains(text, stolen[:4]) {
					t.Errorf("control: %.200q", text)
				}
			}
			res := request(t, s, "GET", "/k8s/liar"+path, alan, "")
			body, err := io.ReadAll(res.Body)
			text := string(body)
			if strings.Contains(text, stolen[:4]) {
				t.Fatalf("%s %.300s", res.Status, text)
			}
			switch {
			case want == cut && res.StatusCode == http.StatusServiceUnavailable && strings.Contains(text, `"kind":"Status"`): // before its first byte went out
			case want == passes && (res.StatusCode != http.StatusOK || err != nil || !strings.Contains(text, "Kioq")),
				want == cut && (res.StatusCode != http.StatusOK || err == nil),
				want == withheld && (res.StatusCode < 500 || err != nil || !strings.Contains(text, `"kind":"Status"`)):
				t.Errorf("%s %v %.300s", res.Status, err, text)
			}
		})
	}
	t.Run("a body that is too large", func(t *testing.T) {
		t.Parallel()
		res := request(t, s, "POST", "/k8s/liar/api/v1/namespaces/shop/configmaps", alan, `{"data":{"a":"`+strings.Repeat("a", 4<<20)+`"}}`, "Content-Type", "application/json")
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(body), `"reason":"RequestEntityTooLarge"`) || !strings.Contains(string(body), "larger than") {
			t.Errorf("%s %v %.300s", res.Status, err, body)
		}
	})
	t.Run("endless", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		client, err := s.Client()
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/k8s/liar/api/v1/namespaces/shop/secrets/x-endless", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+alan)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if n, err := io.CopyN(io.Discard, res.Body, 4<<20); err != nil {
			t.Errorf("after %d bytes: %v", n, err)
		}
		cancel()
		<-prepared.liar.left // the client's end reaches the API server
	})
}

// atLiar asks the API server itself.
func atLiar(t *testing.T, path string) string {
	t.Helper()
	res, err := prepared.liar.server.Client().Get(prepared.liar.server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body) // many lies end badly
	return string(body)
}
