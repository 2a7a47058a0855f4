package kube

import (
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
