package approval

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// The names of what is in the store.
const (
	recordPrefix = "approval/"      // + id: the approval
	samePrefix   = "approval-same/" // + digest: the id that identical asks share
	leasePrefix  = "approval-held/" // + id: lives as long as the client that waits
	lockPrefix   = "approval-lock/" // + id or digest: one step at a time
	feedTopic    = "approval"
)

// An entry is the stored form of one approval.
type entry struct {
	Approval access.Approval `json:"approval"`
	Uses     int             `json:"uses,omitempty"`   // of a grant
	Ended    time.Time       `json:"ended,omitzero"`   // when it reached a final state
	Replica  string          `json:"replica"`          // where it was asked
	Shared   bool            `json:"shared,omitempty"` // identical asks find it
	version  uint64
}

func (e *entry) state() access.ApprovalState { return e.Approval.State }

func (e *entry) terms() *access.ApprovalTerms { return e.Approval.Ask.Decision.Obligations.Approval }

// final reports whether nothing can follow any more.
func (e *entry) final() bool {
	return e.state() != access.Pending && e.state() != access.Granted
}

// onLease reports whether the approval ends when its client's lease does. A
// window grant that was used stands on its own from then on.
func (e *entry) onLease() bool {
	return e.Approval.Ask.Leased && !e.final() && e.Uses == 0
}

// shareable reports whether an identical ask may be answered with this
// approval: never with one that dies with another client.
func (e *entry) shareable() bool { return !e.final() && !e.onLease() }

// period is how long the present state may last at most.
func (e *entry) period() time.Duration {
	if e.state() == access.Granted && e.terms().Window > 0 {
		return e.terms().Window
	}
	return e.terms().Expires
}

// principal names the requester in counts and in the feed; a digest, because
// the key holds claims.
func (e *entry) principal() string { return shortHash(e.Approval.Ask.Request.Principal.Key()) }

// same names all asks that are identical and come from the same principal.
func (e *entry) same() string {
	key := e.Approval.Ask.Request.Principal.Key()
	return shortHash(strconv.Itoa(len(key)) + ":" + key + e.Approval.Digest)
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// follows are the steps that there are.
func follows(from, to access.ApprovalState) bool {
	switch from {
	case access.Pending:
		return to != access.Consumed
	case access.Granted:
		return to != access.Pending && to != access.Refused
	default:
		return false
	}
}

func (e *entry) encode() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode approval: %w", err)
	}
	return b, nil
}

// decode reads a stored entry. The store vouches for the bytes; what does not
// hold together all the same is refused.
func decode(r store.Record) (*entry, error) {
	e := &entry{version: r.Version}
	d := json.NewDecoder(bytes.NewReader(r.Value))
	d.UseNumber()
	if err := d.Decode(e); err != nil {
		return nil, fmt.Errorf("stored approval %s: %w", r.Key, err)
	}
	if recordPrefix+e.Approval.ID != r.Key || e.terms() == nil {
		return nil, fmt.Errorf("stored approval %s is incomplete", r.Key)
	}
	return e, nil
}

// load returns the approval as it is stored.
func (s *Service) load(ctx context.Context, id string) (*entry, error) {
	if !validID(id) {
		return nil, ErrNotFound
	}
	r, err := s.store.Get(ctx, recordPrefix+id)
	if errors.Is(err, store.ErrNotFound) {
		s.live.remove(id)
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return decode(r)
}

// validID keeps ids from reaching other parts of the store.
func validID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
