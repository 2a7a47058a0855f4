package kube

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/yaml"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/strictjson"
)

// A Body is a request body. Whole says that Bytes are all of it.
type Body struct {
	ContentType     []string
	ContentEncoding []string
	Bytes           []byte
	Whole           bool
}

func (b Body) present() bool { return !b.Whole || len(b.Bytes) > 0 }

// The media types of bodies that are read; CBOR is not.
const (
	jsonType           = "application/json"
	yamlType           = "application/yaml"
	jsonPatchType      = "application/json-patch+json"
	mergePatchType     = "application/merge-patch+json"
	strategicPatchType = "application/strategic-merge-patch+json"
	applyPatchType     = "application/apply-patch+yaml"
)

// readBody fills in what is known of the body.
func readBody(k *access.K8s, r Request) error {
	b := r.Body
	if !b.Whole {
		k.BodyState = access.BodyUnread
		return nil
	}
	if len(b.Bytes) == 0 {
		return nil
	}
	if k.Verb == "get" || k.Verb == "list" || k.Verb == "watch" {
		return unsupported("a request that reads has no body")
	}
	media, err := mediaType(k, b)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b.Bytes)
	k.ContentType, k.BodyDigest, k.BodyBytes = media, "sha256:"+hex.EncodeToString(sum[:]), int64(len(b.Bytes))
	k.BodyState = access.BodyUndecodable
	text := b.Bytes
	if media == protobufType {
		if text, err = bodies.json(b.Bytes); err != nil {
			return unreadable("the body in protobuf cannot be read whole: send JSON")
		}
	}
	if media == yamlType || media == applyPatchType {
		// The API server's own decoder, but it lets a name stand twice.
		if text, err = yaml.YAMLToJSONStrict(b.Bytes); err != nil {
			return unreadable("the body is not YAML that can be read in one way only")
		}
	}
	body, err := strictjson.Decode(text)
	if err != nil {
		return unreadable("the body cannot be read in one way only: %s", err)
	}
	if at := maskedAt(body, k.Group == "" && k.Resource == "secrets"); at != "" && !r.Recorded {
		return &Refusal{access.MaskedField, "the body would write a mask over the value at " + at + ": leave that field out, or give it its real value"}
	}
	if media == jsonPatchType {
		if err := plainPatch(k, body); err != nil {
			return err
		}
	}
	k.Body, k.BodyState = body, access.BodyWhole
	if k.Verb == "create" && k.Name == "" {
		k.Name = nameIn(body)
	}
	return nil
}

// mediaType is the one type of the body, without its parameters.
func mediaType(k *access.K8s, b Body) (string, error) {
	if len(b.ContentEncoding) > 0 {
		return "", unsupported("a compressed body is not read")
	}
	media := jsonType // what the API server takes it for
	if len(b.ContentType) > 0 {
		t, parameters, err := mime.ParseMediaType(b.ContentType[0])
		if charset, ok := parameters["charset"]; err != nil || len(b.ContentType) > 1 || ok && !strings.EqualFold(charset, "utf-8") {
			return "", unreadable("the body does not have one type that can be read")
		}
		media = t
	}
	read := []string{jsonType, yamlType, protobufType}
	if k.Method == http.MethodPatch {
		read = []string{jsonPatchType, mergePatchType, strategicPatchType, applyPatchType}
	}
	if !slices.Contains(read, media) {
		return "", &Refusal{access.Unsupported, "a body of type " + shortened(media) + " is not read here: send JSON"}
	}
	return media, nil
}

// plainPatch refuses the operations of a JSON patch (RFC 6902) that carry a value
// from a place that may be masked to one that is not, and, in a Secret, those
// that tell whether a guess is right.
func plainPatch(k *access.K8s, body any) error {
	operations, ok := body.([]any)
	if !ok {
		return unreadable("a JSON patch is a list of operations")
	}
	for _, o := range operations {
		operation, _ := o.(map[string]any)
		switch op, _ := operation["op"].(string); op {
		case "add", "replace", "remove":
		case "test":
			if k.Group == "" && k.Resource == "secrets" {
				return &Refusal{access.MaskedField, "a patch of a Secret cannot test its values: they are masked"}
			}
		case "copy", "move":
			return &Refusal{access.MaskedField, "a patch cannot copy or move values, which may be masked where they come from: write the value itself"}
		default:
			return unreadable("a JSON patch has the operations add, remove, replace, move, copy and test")
		}
	}
	return nil
}

func shortened(text string) string {
	if len(text) > 80 {
		return strings.ToValidUTF8(text[:80], "") + "…"
	}
	return text
}

func nameIn(body any) string {
	object, _ := body.(map[string]any)
	metadata, _ := object["metadata"].(map[string]any)
	name, _ := metadata["name"].(string)
	return name
}

// maskedAt finds a value that is nothing but a mask, and says where. secret says
// that values are base64 of what they mean.
func maskedAt(v any, secret bool) string {
	switch v := v.(type) {
	case string:
		if isMask(v) {
			return "/"
		}
		if b, err := base64.StdEncoding.DecodeString(v); secret && err == nil && isMask(string(b)) {
			return "/"
		}
	case []any:
		for _, element := range v {
			if at := maskedAt(element, secret); at != "" {
				return "/*" + strings.TrimSuffix(at, "/")
			}
		}
	case map[string]any:
		for name, member := range v {
			if at := maskedAt(member, secret); at != "" {
				return "/" + shortened(name) + strings.TrimSuffix(at, "/")
			}
		}
	}
	return ""
}

// isMask reports whether text is what a mask leaves of a value: the mark alone,
// or with the last characters behind it.
func isMask(text string) bool {
	rest, ok := strings.CutPrefix(text, mask.Mark)
	return ok && (rest == "" || utf8.RuneCountInString(rest) == mask.PartialKept && !strings.ContainsAny(rest, " \n\t*"))
}

// lastApplied holds the object as kubectl apply was last given it.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// shown returns the body for people and for recordings: of a Secret without its
// values.
func shown(k *access.K8s) any {
	if k.Group != "" || k.Resource != "secrets" || k.Body == nil || k.Verb == "delete" || k.Verb == "deletecollection" {
		return k.Body
	}
	object, ok := k.Body.(map[string]any)
	if !ok { // a list of patches
		return mask.Mark
	}
	out := make(map[string]any, len(object))
	for name, member := range object {
		out[name] = member
	}
	for _, name := range []string{"data", "stringData"} {
		values, ok := object[name].(map[string]any)
		if !ok && object[name] != nil {
			out[name] = mask.Mark
			continue
		}
		hidden := make(map[string]any, len(values))
		for key := range values {
			hidden[key] = mask.Mark
		}
		if ok {
			out[name] = hidden
		}
	}
	out["metadata"] = withoutLastApplied(object["metadata"])
	return out
}

func withoutLastApplied(v any) any {
	metadata, _ := v.(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	if annotations[lastApplied] == nil {
		return v
	}
	hidden, out := make(map[string]any, len(annotations)), make(map[string]any, len(metadata))
	for name, value := range annotations {
		hidden[name] = value
	}
	hidden[lastApplied] = mask.Mark
	for name, value := range metadata {
		out[name] = value
	}
	out["annotations"] = hidden
	return out
}
