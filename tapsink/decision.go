package tapsink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/kube"
	"chaperone.dev/chaperone/internal/mask"
)

// DefaultNamespace is where Envoy puts the dynamic metadata of an authorizer:
// under the name of its filter.
const DefaultNamespace = "envoy.filters.http.ext_authz"

// MetadataKey is the member of that namespace with the decision. Its members, all
// but the last of them there and none of them empty, are
//
//	request      the request id
//	session      the session id
//	resource     the resource's name
//	obligations  access.Obligations as JSON text
//	kubernetes   kube.Answer as JSON text; only when the target is an API server
const MetadataKey = "chaperone"

// A decision is what the authorizer left for us about the request.
type decision struct {
	request, session, resource string

	text        string // of the obligations
	obligations access.Obligations
	kubernetes  *kube.Answer // nil: the target is no API server
}

// errUndecided says that nobody decided on the request that this answers.
var errUndecided = errors.New("no decision came with the response")

// readDecision takes the decision out of the metadata. Whatever is missing or
// not understood is an error: a response without a decision does not pass.
func readDecision(metadata *corev3.Metadata, namespace string) (decision, error) {
	fields := metadata.GetFilterMetadata()[namespace].GetFields()[MetadataKey].GetStructValue().GetFields()
	if len(fields) == 0 {
		return decision{}, errUndecided
	}
	var d decision
	for name, to := range map[string]*string{
		"request": &d.request, "session": &d.session, "resource": &d.resource, "obligations": &d.text,
	} {
		value, ok := fields[name].GetKind().(*structpb.Value_StringValue)
		if !ok || value.StringValue == "" {
			return decision{}, fmt.Errorf("%w: metadata %q is missing or no text", errUndecided, name)
		}
		*to = value.StringValue
	}
	in := json.NewDecoder(strings.NewReader(d.text))
	in.DisallowUnknownFields()
	if err := in.Decode(&d.obligations); err != nil {
		return decision{}, fmt.Errorf("metadata \"obligations\": %w", err)
	}
	if _, err := in.Token(); err != io.EOF || !strings.HasPrefix(d.text, "{") { // null would be no obligations
		return decision{}, errors.New("metadata \"obligations\": not one object")
	}
	if answer, ok := fields["kubernetes"]; ok {
		d.kubernetes = &kube.Answer{}
		in := json.NewDecoder(strings.NewReader(answer.GetStringValue()))
		in.DisallowUnknownFields()
		if err := in.Decode(d.kubernetes); err != nil {
			return decision{}, fmt.Errorf("metadata \"kubernetes\": %w", err)
		}
	}
	return d, nil
}

// quiet reports whether nothing may come for long, and nothing be wrong.
func (d decision) quiet() bool { return d.kubernetes != nil && d.kubernetes.Quiet }

// masksOf are the masks of an answer of that status, and a text that tells them
// from others.
func (d decision) masksOf(status int) (key string, compile func() (*mask.Masker, error)) {
	if d.kubernetes == nil {
		return d.text, func() (*mask.Masker, error) { return mask.Compile(d.obligations.Masks) }
	}
	return fmt.Sprintf("%+v %d %s", *d.kubernetes, status, d.text), func() (*mask.Masker, error) {
		return d.kubernetes.Masker(d.obligations.Masks, status)
	}
}

// refusal is how a denial is written for the client: as what, and its bytes.
func (d decision) refusal(denial *access.Denial, status int) (media string, body []byte) {
	if d.kubernetes != nil {
		return "application/json", denial.KubernetesStatus(status)
	}
	return access.ProblemType, denial.Problem(status)
}
