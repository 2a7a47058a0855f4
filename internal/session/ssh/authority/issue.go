package authority

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/bearer"
)

// Path is where clients have their key certified.
const Path = "/api/v1/ssh/certificate"

const maxRequest = 16 << 10

// An Ask is what a client sends.
type Ask struct {
	PublicKey string   `json:"public_key"` // one line, as OpenSSH writes it
	Resources []string `json:"resources"`
}

// An Answer is what it gets.
type Answer struct {
	Certificate string    `json:"certificate"` // one line
	Expires     time.Time `json:"expires"`
	CA          string    `json:"ca"` // that certifies the gateway's host key: one line
	RequestID   string    `json:"request_id"`
}

// Issuer is what the endpoint is made of. All members are required.
type Issuer struct {
	Keys *Keys
	Gate bearer.Gate
	// Resource finds a target by name; MayConnect is policy's word on it.
	Resource   func(name string) (access.Resource, bool)
	MayConnect func(ctx context.Context, p access.Principal, r access.Resource) bool
	// Record keeps an event; after an error the certificate must not leave.
	Record func(ctx context.Context, d access.Durability, evs ...access.Event) error
	Life   func() time.Duration // of a certificate
	Clock  func() time.Time
	Log    *slog.Logger
}

// ServeHTTP certifies the key in the body for the caller.
func (i Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := access.NewRequestID()
	answer, denial := i.answer(w, r, id)
	if denial != nil {
		denial.RequestID = id
		bearer.Refuse(w, denial)
		return
	}
	b, err := json.Marshal(answer)
	if err != nil { // texts and times of this century always encode
		panic("authority: " + err.Error())
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // the client may have left
}

func (i Issuer) answer(w http.ResponseWriter, r *http.Request, id string) (Answer, *access.Denial) {
	p, denial := i.Gate.Authenticate(r)
	if denial != nil {
		return Answer{}, denial
	}
	if r.Method != http.MethodPost {
		return Answer{}, &access.Denial{Reason: access.Unsupported, Message: "a certificate is asked for with POST"}
	}
	var ask Ask
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&ask); err != nil || decoder.More() {
		return Answer{}, &access.Denial{Reason: access.Unreadable, Message: "the body is not one JSON object with public_key and resources"}
	}
	key, err := ParseUserKey(ask.PublicKey)
	if err != nil {
		return Answer{}, &access.Denial{Reason: access.Unreadable, Message: "public_key: " + err.Error(), Hint: "ssh-keygen -t ed25519"}
	}
	if denial := i.reachable(r.Context(), p, ask.Resources); denial != nil {
		return Answer{}, denial
	}
	cert, err := i.Keys.Grant(key, p, ask.Resources, i.Clock(), i.Life())
	if err == nil {
		err = i.record(r.Context(), id, p, ask.Resources, cert)
	}
	if err != nil {
		i.Log.Error("ssh certificate not made", "request", id, "error", err)
		return Answer{}, &access.Denial{Reason: access.Unavailable, Message: "the gateway cannot make a certificate now", Hint: "try again with a fresh token"}
	}
	return Answer{Certificate: AuthorizedKey(cert), Expires: time.Unix(int64(cert.ValidBefore), 0).UTC(), CA: AuthorizedKey(i.Keys.CA()), RequestID: id}, nil
}

// reachable refuses resources that the principal could do nothing on, and does
// not tell which of them exist.
func (i Issuer) reachable(ctx context.Context, p access.Principal, names []string) *access.Denial {
	if len(names) == 0 || len(names) > maxResources {
		return &access.Denial{Reason: access.Unreadable, Message: fmt.Sprintf("resources: name 1 to %d", maxResources)}
	}
	for at, name := range names {
		resource, ok := i.Resource(name)
		if !ok || resource.Kind != access.SSH || slices.Contains(names[:at], name) || !i.MayConnect(ctx, p, resource) {
			return &access.Denial{Reason: access.UnknownResource, Message: fmt.Sprintf("there is no host %.63q that you may use", name),
				Hint: "ask its owners for a policy if you need one"}
		}
	}
	return nil
}

// record notes who holds which certificate, before it leaves.
func (i Issuer) record(ctx context.Context, id string, p access.Principal, resources []string, cert *gossh.Certificate) error {
	input, err := json.Marshal(struct {
		Serial    uint64    `json:"serial"`
		Key       string    `json:"key"`
		Resources []string  `json:"resources"`
		Expires   time.Time `json:"expires"`
	}{cert.Serial, gossh.FingerprintSHA256(cert.Key), resources, time.Unix(int64(cert.ValidBefore), 0).UTC()})
	if err != nil {
		return err
	}
	event := access.Event{Request: id, Admin: &access.Administrative{Actor: p, Act: "ssh.certificate", On: gossh.FingerprintSHA256(cert.Key), Input: input}}
	if err := i.Record(ctx, access.Synced, event); err != nil {
		return errors.Join(errors.New("not recorded"), err)
	}
	return nil
}
