package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/kube"
	"chaperone.dev/chaperone/internal/mask"
)

// previewWithin bounds all that is asked for one preview.
const previewWithin = 2 * time.Second

// hidden stands for what a mask left nothing of.
const hidden = mask.Mark

// A Question is a held request that reviewers want to know more of.
type Question struct {
	Call  *access.K8s
	Body  []byte        // as it would be sent
	As    http.Header   // the impersonation of its caller; nil: the gateway's account
	Masks []access.Mask // of everything shown
}

// Preview asks the API server what the request would do, as its caller and
// without doing it, and returns within a few seconds. It is nil for what changes
// no object; when there is none for another reason, that stands in it.
func (t Target) Preview(ctx context.Context, q Question, now time.Time) *access.Preview {
	p := &access.Preview{Taken: now.UTC()}
	ctx, cancel := context.WithTimeout(ctx, previewWithin)
	defer cancel()
	v := &viewer{Question: q, conn: t.Connect(q.As), preview: p}
	defer v.conn.Close()
	var err error
	switch k := q.Call; {
	case k.Resource == "" || k.LeavesHTTP() || k.ReadOnly:
		return nil
	case k.DryRun:
		p.None = "the request is a dry run itself: nothing is stored"
	case k.Verb == "create" || k.Verb == "update" || k.Verb == "patch":
		err = v.write(ctx)
	case k.Verb == "delete" || k.Verb == "deletecollection":
		err = v.removal(ctx)
	default:
		return nil
	}
	if err == nil {
		return p
	}
	if p.None = err.Error(); ctx.Err() != nil {
		p.None = "the API server did not answer within " + previewWithin.String()
	}
	p.None = cut(v.plain(p.None), 4*maxValue)
	return p
}

// A viewer makes one preview.
type viewer struct {
	Question
	conn    *Conn
	preview *access.Preview
}

// previewed are the subresources whose writes are ordinary objects.
var previewed = []string{"", "status", "scale", "ephemeralcontainers", "resize", "approval"}

// write compares the object with what a dry run makes of it.
func (v *viewer) write(ctx context.Context) error {
	k := v.Call
	if !slices.Contains(previewed, k.Subresource) || k.Group == "authorization.k8s.io" || k.Group == "authentication.k8s.io" {
		return errors.New("what this asks for is no object")
	}
	if kube.IsForeign(k) {
		if err := v.knowsDryRun(ctx); err != nil {
			return err
		}
	}
	before := absent
	if k.Verb != "create" {
		was, err := v.conn.do(ctx, call{method: http.MethodGet, path: k.Path})
		switch {
		case err != nil:
			return err
		case was.status == http.StatusNotFound:
			v.preview.Creates = true
		case was.status != http.StatusOK:
			return fmt.Errorf("the caller may not read what it changes: %s", v.says(was))
		default:
			if before, err = v.version(was); err != nil {
				return err
			}
		}
	} else {
		v.preview.Creates = true
	}
	query := maps.Clone(k.Query)
	if query == nil {
		query = map[string][]string{}
	}
	delete(query, "timeout")
	delete(query, "pretty")
	query["dryRun"] = []string{"All"}
	would, err := v.conn.do(ctx, call{method: k.Method, path: k.Path, query: query, contentType: k.ContentType, body: v.Body})
	if err != nil {
		return err
	}
	if would.status >= 300 {
		return fmt.Errorf("the API server would not do it, or not as a dry run: %s", v.says(would))
	}
	after, err := v.version(would)
	if err != nil {
		return err
	}
	v.preview.Changes, v.preview.More = differences(before, after)
	if len(v.preview.Changes) == 0 {
		v.preview.Notes = append(v.preview.Notes, "nothing would change")
	}
	return nil
}

// knowsDryRun reports an error unless the server of the group says that it
// takes dry runs: one that does not know the parameter would do what it is
// asked.
func (v *viewer) knowsDryRun(ctx context.Context) error {
	k := v.Call
	got, err := v.conn.do(ctx, call{method: http.MethodGet, path: "/openapi/v3/apis/" + k.Group + "/" + k.Version})
	if err != nil {
		return err
	}
	type parameters []struct {
		Name string `json:"name"`
	}
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if got.status == http.StatusOK && json.Unmarshal(got.body, &document) == nil {
		for path, operations := range document.Paths {
			var operation struct {
				Parameters parameters `json:"parameters"`
			}
			if !samePath(path, k.Path) || json.Unmarshal(operations[strings.ToLower(k.Method)], &operation) != nil {
				continue
			}
			for _, p := range operation.Parameters {
				if p.Name == "dryRun" {
					return nil
				}
			}
		}
	}
	return errors.New("the server of " + k.Group + " does not say that it takes dry runs")
}

// samePath reports whether a path of OpenAPI, with names in braces, is the path
// of a request.
func samePath(template, path string) bool {
	a, b := strings.Split(template, "/"), strings.Split(path, "/")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && !strings.HasPrefix(a[i], "{") {
			return false
		}
	}
	return true
}

// version reads an object, and masks it.
func (v *viewer) version(r reply) (out version, err error) {
	shown, err := v.masked(r)
	if err != nil {
		return absent, errors.New("the gateway cannot mask what the API server says")
	}
	if err = errors.Join(decode(r.body, &out.real), decode(shown, &out.shown)); err != nil {
		return absent, errors.New("the API server's answer is no JSON")
	}
	return out, nil
}

// decode keeps numbers as they are written.
func decode(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(v)
}

// masked is a JSON answer as policy's masks leave it.
func (v *viewer) masked(r reply) ([]byte, error) {
	m, err := kube.AnswerTo(v.Call).Masker(v.Masks, r.status)
	if err != nil {
		return nil, err
	}
	out := r.body
	if !m.Empty() {
		j := m.NewJSON()
		text, err := j.Write(r.body)
		if err != nil {
			return nil, err
		}
		out = slices.Clone(text)
		if text, err = j.Close(); err != nil {
			return nil, err
		}
		out = append(out, text...)
	}
	shown, _ := v.conn.target.Literals.Replace(string(out))
	return []byte(shown), nil
}

// plain is text without the gateway's credential and what detectors find.
func (v *viewer) plain(s string) string {
	s, _ = v.conn.target.Literals.Replace(s)
	m, err := kube.Answer{}.Masker(v.Masks, 0)
	if err != nil {
		return hidden
	}
	if text, found := m.Text([]byte(s)); found {
		return string(text)
	}
	return s
}

// says is what a Status says, masked.
func (v *viewer) says(r reply) string {
	var status struct {
		Message string `json:"message"`
	}
	if text, err := v.masked(r); err != nil || json.Unmarshal(text, &status) != nil || status.Message == "" {
		return http.StatusText(r.status)
	}
	return status.Message
}
