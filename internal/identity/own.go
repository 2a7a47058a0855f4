package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// The claims that only the gateway's own tokens have. OriginClaim is the iss of
// the token that the principal was first read from; the others are members of
// act.
const (
	OriginClaim      = "origin"
	ParentClaim      = "parent"
	ActorTokenClaim  = "actor_token"
	AttenuationClaim = "attenuation"
)

// origin is the issuer that first vouched for the principal. One that is no
// longer configured vouches for nobody.
func origin(claims map[string]any, nameOf func(string) string) (string, error) {
	url, ok := claims[OriginClaim].(string)
	if !ok {
		return "", rejected("it has no origin claim")
	}
	name := nameOf(url)
	if name == "" {
		return "", rejected("the issuer that it goes back to is not configured")
	}
	return name, nil
}

// asserted reports whether a token of our own stands for a SAML assertion: it is
// its holder's, with nobody in between.
func asserted(claims map[string]any) bool {
	url, _ := claims[OriginClaim].(string)
	return strings.HasPrefix(url, samlScheme)
}

// ownHop reads the members of act that only our own tokens have.
func ownHop(hop *access.Hop, act map[string]any) (err error) {
	hop.Actor = hop.Subject
	for name, to := range map[string]*string{
		"user": &hop.User, "subagent": &hop.Actor, ParentClaim: &hop.Parent, ActorTokenClaim: &hop.ActorToken,
	} {
		value, err := text(act, claim{name: "act " + name, path: []string{name}})
		if err != nil {
			return err
		}
		if value != "" {
			*to = value
		}
	}
	value, present := act[AttenuationClaim]
	if !present {
		return nil
	}
	if hop.Attenuation, err = attenuation(value); err != nil {
		return rejected("its attenuation cannot be read")
	}
	return nil
}

// attenuation reads one strictly: a member that is not known could bound
// something.
func attenuation(value any) (*access.Attenuation, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return ParseAttenuation(b)
}

// ParseAttenuation reads the JSON object of an attenuation, strictly.
func ParseAttenuation(b []byte) (*access.Attenuation, error) {
	object, err := decodeObject(b)
	if err != nil {
		return nil, fmt.Errorf("the attenuation %w", err)
	}
	if miscased(object, "resources", "read_only", "methods", "paths", "tables", "rows", "depth") {
		return nil, fmt.Errorf("the attenuation %w", errMiscased)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	a := &access.Attenuation{}
	if err := d.Decode(a); err != nil {
		return nil, fmt.Errorf("the attenuation: %w", err)
	}
	return a, a.Check()
}

// MayAct returns whom the may_act claim (RFC 8693, section 4.4) of a token that
// has just been verified names: the iss ("" when it says none) and the sub. ok
// is false when there is no such claim, and then anybody may.
func MayAct(token access.Secret) (issuer, subject string, ok bool, err error) {
	t, err := parse(token.Reveal())
	if err != nil {
		return "", "", false, err
	}
	value, present := t.claims["may_act"]
	if !present {
		return "", "", false, nil
	}
	who, isObject := value.(map[string]any)
	if !isObject || miscased(who, "iss", "sub") {
		return "", "", true, rejected("its may_act claim is not an object that can be read in one way")
	}
	if issuer, err = text(who, claim{name: "may_act iss", path: []string{"iss"}}); err != nil {
		return "", "", true, err
	}
	subject, err = text(who, claim{name: "may_act sub", path: []string{"sub"}})
	return issuer, subject, true, err
}

// NameOf returns the configured name of the issuer with exactly that iss, or "".
func (v *Verifier) NameOf(iss string) string { return v.nameOf(iss) }

// URLOf returns the iss of the issuer with that configured name, or "".
func (v *Verifier) URLOf(name string) string {
	for is := range v.all() {
		if is.name == name {
			return is.url
		}
	}
	return ""
}

// DetailsType is the type of the one kind of authorization details (RFC 9396)
// that the token service takes: the members of an access.Attenuation, without
// resources, which the audience names, and expires_in, in seconds.
const DetailsType = "chaperone"

// ParseDetails reads an authorization_details parameter strictly: a list of at
// most one object. Absent members give up nothing; expiresIn is 0 when it is not
// bounded.
func ParseDetails(raw string) (a *access.Attenuation, expiresIn time.Duration, err error) {
	document, err := decodeObject([]byte(`{"details":` + raw + `}`))
	if err != nil {
		return nil, 0, fmt.Errorf("authorization_details %w", err)
	}
	list, ok := document["details"].([]any)
	if !ok || len(list) != 1 || len(document) != 1 {
		return nil, 0, errors.New("authorization_details is not a list of one object")
	}
	object, ok := list[0].(map[string]any)
	if !ok || object["type"] != DetailsType {
		return nil, 0, errors.New("authorization_details has no object of the type " + DetailsType)
	}
	if value, present := object["expires_in"]; present {
		number, _ := value.(json.Number)
		seconds, err := number.Int64()
		if err != nil || seconds < 1 || seconds > int64(MaxDetailsLife/time.Second) {
			return nil, 0, errors.New("expires_in is not a number of seconds")
		}
		expiresIn = time.Duration(seconds) * time.Second
	}
	if _, present := object["resources"]; present {
		return nil, 0, errors.New("resources are named by the audience parameter")
	}
	delete(object, "type")
	delete(object, "expires_in")
	a, err = attenuation(object)
	return a, expiresIn, err
}

// MaxDetailsLife is the most that expires_in may say.
const MaxDetailsLife = 24 * time.Hour
