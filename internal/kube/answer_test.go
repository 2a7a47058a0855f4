package kube

import (
	"bytes"
	"runtime"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
)

const (
	secretValue = "aHVudGVyMg==" // hunter2
	applied     = `"annotations":{"a":"b","kubectl.kubernetes.io/last-applied-configuration":"{\"kind\":\"Secret\",\"data\":{\"p\":\"aHVudGVyMg==\"},\"stringData\":{\"q\":\"hunter2\"}}\n"}`
	oneSecret   = `{"kind":"Secret","metadata":{"name":"db",` + applied + `},"data":{"p":"aHVudGVyMg=="},"type":"Opaque"}`
)

// masked writes text in pieces of n bytes.
func masked(t *testing.T, w mask.Writer, text string, n int) string {
	t.Helper()
	var b strings.Builder
	for len(text) > 0 {
		piece := text[:min(n, len(text))]
		text = text[len(piece):]
		out, err := w.Write([]byte(piece))
		if err != nil {
			t.Fatal(err)
		}
		b.Write(out)
	}
	out, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b.Write(out)
	return b.String()
}

// TestSecretsAreMasked: in every form of an answer, wherever it is split.
func TestSecretsAreMasked(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"one":              oneSecret,
		"a list":           `{"kind":"SecretList","items":[` + oneSecret + `,` + oneSecret + `]}`,
		"a table":          `{"kind":"Table","rows":[{"cells":["db","Opaque",1],"object":{"kind":"PartialObjectMetadata","metadata":{` + applied + `}}}]}`,
		"a table, whole":   `{"kind":"Table","rows":[{"cells":["db"],"object":` + oneSecret + `}]}`,
		"an event":         `{"type":"ADDED","object":` + oneSecret + "}\n" + `{"type":"BOOKMARK","object":{"kind":"Secret","metadata":{}}}` + "\n",
		"a table's events": `{"type":"ADDED","object":{"kind":"Table","rows":[{"cells":["db"],"object":` + oneSecret + `}]}}` + "\n",
	} {
		m, err := Answer{Objects: true, Secrets: true, Lines: true}.Masker(nil, 200)
		if err != nil {
			t.Fatal(err)
		}
		for n := 1; n < len(text); n++ {
			got := masked(t, m.NewJSONLines(), text, n)
			if strings.Contains(got, secretValue) || strings.Contains(got, "hunter2") || !strings.Contains(got, `***`) {
				t.Fatalf("%s in pieces of %d: %s", name, n, got)
			}
			if !strings.Contains(name, "table") && !strings.Contains(got, `"Kioq"`) || !strings.Contains(got, `"a":"b"`) {
				t.Fatalf("%s: %s", name, got)
			}
		}
	}
}

// TestSecretsExcept: in every form of an answer the Secrets of the types that
// policy excepts show, and no other, wherever the answer is split.
func TestSecretsExcept(t *testing.T) {
	t.Parallel()
	release := func(more string) string {
		return `{"kind":"Secret","metadata":{"name":"r",` + applied + `},"data":{"release":"SDRzSUFB"},"type":"helm.sh/release.v1"` + more + `}`
	}
	one, several := Answer{Objects: true, Secrets: true, One: true}, Answer{Objects: true, Secrets: true}
	watch := Answer{Objects: true, Secrets: true, Lines: true}
	for name, c := range map[string]struct {
		answer        Answer
		text          string
		shown, masked int // values
	}{
		"one":                       {one, release(""), 1, 0},
		"one of another type":       {one, oneSecret, 0, 1},
		"one in a table":            {one, `{"kind":"Table","rows":[{"cells":["r"],"object":` + release("") + `}]}`, 1, 0},
		"two types":                 {one, release(`,"type":"Opaque"`), 0, 1},
		"a list":                    {several, `{"kind":"SecretList","items":[` + release("") + `,` + oneSecret + `,` + release("") + `]}`, 2, 1},
		"a list that is of a type":  {several, `{"kind":"SecretList","type":"helm.sh/release.v1","items":[` + oneSecret + `]}`, 0, 1},
		"one where several are due": {several, release(""), 0, 1},
		"a table":                   {several, `{"kind":"Table","rows":[{"cells":["db"],"object":` + oneSecret + `},{"cells":["r"],"object":` + release("") + `}]}`, 1, 1},
		"events":                    {watch, `{"type":"ADDED","object":` + oneSecret + "}\n" + `{"type":"MODIFIED","object":` + release("") + "}\n", 1, 1},
		"an event of that type":     {watch, `{"type":"helm.sh/release.v1","object":` + oneSecret + "}\n", 0, 1},
		"a table's events":          {watch, `{"type":"ADDED","object":{"kind":"Table","rows":[{"cells":["r"],"object":` + release("") + `},{"object":` + oneSecret + "}]}}\n", 1, 1},
		"in another's data":         {one, `{"kind":"Secret","data":{"p":"aHVudGVyMg==","type":"helm.sh/release.v1"},"type":"Opaque"}`, 0, 2},
	} {
		m, err := c.answer.Masker([]access.Mask{{SecretsExcept: []string{"helm.sh/release.v1"}}}, 200)
		if err != nil {
			t.Fatal(err)
		}
		for n := 1; n < len(c.text); n++ {
			w := mask.Writer(m.NewJSON())
			if c.answer.Lines {
				w = m.NewJSONLines()
			}
			got := masked(t, w, c.text, n)
			if strings.Contains(got, secretValue) || strings.Contains(got, "hunter2") || strings.Count(got, "SDRzSUFB") != c.shown || strings.Count(got, `:"Kioq"`) != c.masked {
				t.Fatalf("%s in pieces of %d: %s", name, n, got)
			}
		}
	}
	m, err := one.Masker([]access.Mask{{SecretsExcept: []string{"helm.sh/release.v1"}}, {JSON: "/data/release"}}, 200)
	if err != nil {
		t.Fatal(err)
	}
	if got := masked(t, m.NewJSON(), release(""), 7); strings.Contains(got, "SDRzSUFB") || !strings.Contains(got, `"release":"Kioq"`) {
		t.Errorf("what a rule masks shows: %s", got)
	}
}

// TestListOfAnySize: a list of 10,000 Secrets, 50 MB, leaves piece by piece, and
// what is held of it does not grow. It looks at the memory of the process, so it
// runs alone.
func TestListOfAnySize(t *testing.T) {
	const count = 10_000
	item := []byte(`,{"metadata":{"name":"s"},"data":{"p":"` + strings.Repeat("aHVudGVyMg", 500) + `"},"type":"Opaque"}`)
	for name, masks := range map[string][]access.Mask{"all": nil, "but of a type": {{SecretsExcept: []string{"helm.sh/release.v1"}}}} {
		m, err := Answer{Objects: true, Secrets: true}.Masker(masks, 200)
		if err != nil {
			t.Fatal(err)
		}
		w := m.NewJSON()
		write := func(text []byte) {
			if out, err := w.Write(text); err != nil || len(out) > 200 || bytes.Contains(out, item[60:80]) {
				t.Fatalf("%s: %v %.200s", name, err, out)
			}
		}
		write([]byte(`{"kind":"SecretList","items":[`))
		write(item[1:])
		before := held()
		for range count {
			write(item)
		}
		if grown := held() - before; grown > 1<<20 {
			t.Errorf("%s: after %d Secrets %d bytes more are held", name, count, grown)
		}
		write([]byte("]}"))
		if _, err := w.Close(); err != nil || w.Masked() != count+1 {
			t.Errorf("%s: %d values are masked: %v", name, w.Masked(), err)
		}
	}
}

// held is how much memory is in use.
func held() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestOthersAreLeftAlone: what is no Secret comes out byte for byte.
func TestOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	m, err := AnswerTo(&access.K8s{Verb: "list", Resource: "configmaps", Version: "v1"}).Masker(nil, 200)
	if err != nil || !m.Empty() {
		t.Errorf("a list of ConfigMaps is masked: %v", err)
	}
	m, err = Answer{Objects: true, Secrets: true}.Masker(nil, 404)
	if err != nil {
		t.Fatal(err)
	}
	const status = `{"kind":"Status","message":"secrets \"db\" not found","details":{"name":"db"}}`
	if got := masked(t, m.NewJSON(), status, 7); got != status {
		t.Errorf("a refusal became %s", got)
	}
}

// TestFieldsAreMasked: policy's pointers are relative to each object, and what
// quotes values is masked with them.
func TestFieldsAreMasked(t *testing.T) {
	t.Parallel()
	masks := []access.Mask{{JSON: "/spec/containers/*/env/*/value"}, {Detect: []string{"CREDIT_CARD"}}}
	a := AnswerTo(&access.K8s{Verb: "list", Resource: "pods", Version: "v1"})
	const pod = `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"spec\":{\"containers\":[{\"env\":[{\"value\":\"hunter2\"}]}]}}"}},"spec":{"containers":[{"name":"x","env":[{"name":"a","value":"hunter2"}]}],"card":"4111111111111111"}}`
	for status, text := range map[int]string{
		200: `{"kind":"PodList","items":[` + pod + `]}`, 201: pod, 202: `{"type":"ADDED","object":` + pod + `}`,
		422: `{"kind":"Status","message":"invalid: value hunter2","details":{"causes":[{"message":"Invalid value: hunter2","field":"spec"}]}}`,
	} {
		m, err := a.Masker(masks, status)
		if err != nil {
			t.Fatal(err)
		}
		for n := 1; n < len(text); n += 3 {
			if got := masked(t, m.NewJSON(), text, n); strings.Contains(got, "hunter2") || strings.Contains(got, "4111111111111111") || !strings.Contains(got, "***") {
				t.Fatalf("%d: %s", status, got)
			}
		}
	}
	log := AnswerTo(&access.K8s{Verb: "get", Resource: "pods", Subresource: "log", Version: "v1"})
	m, err := log.Masker(masks, 200)
	if err != nil || m.Fields() || !m.Detects() {
		t.Errorf("a log is masked by fields, or not by detectors: %v", err)
	}
}

// TestSchemasAreNotMasked: what describes the API passes in any form; nothing
// else that is no resource does.
func TestSchemasAreNotMasked(t *testing.T) {
	t.Parallel()
	for path, empty := range map[string]bool{"/openapi/v2": true, "/openapi/v3/apis/apps/v1": true, "/openapi": false, "/metrics": false, "/api/v1/namespaces/x/secrets": false} {
		k, err := Read(Request{Method: "GET", Path: path, Body: Body{Whole: true}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := AnswerTo(k).Masker([]access.Mask{{Detect: []string{"CREDIT_CARD"}}}, 200)
		if err != nil || m.Empty() != empty {
			t.Errorf("%s: not masked is %t, want %t: %v", path, m.Empty(), empty, err)
		}
	}
}

func TestAccept(t *testing.T) {
	t.Parallel()
	const table = "application/json;as=Table;v=v1;g=meta.k8s.io"
	for _, c := range []struct {
		accept []string
		plain  bool
		want   string
	}{
		{nil, false, "application/json"},
		{[]string{"*/*"}, false, "application/json"},
		{[]string{"application/vnd.kubernetes.protobuf,application/json"}, false, "application/json"},
		{[]string{"application/vnd.kubernetes.protobuf"}, false, "application/json"},
		{[]string{"application/cbor", "application/yaml"}, false, "application/json"},
		{[]string{"application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io, " + table + ",application/json"}, false, table + ",application/json"},
		{[]string{table + ",application/json"}, true, "application/json"},
		{[]string{"Application/JSON;AS=Table"}, true, "application/json"},
	} {
		if got := Accept(c.accept, c.plain); got != c.want {
			t.Errorf("%v becomes %q, want %q", c.accept, got, c.want)
		}
	}
}
