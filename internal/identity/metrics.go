package identity

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count verdicts and fetches. The zero value counts nothing.
type metrics struct {
	verdicts *prometheus.CounterVec
	fetches  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	if r == nil {
		return &metrics{}, nil
	}
	var m metrics
	var err error
	if m.verdicts, err = counter(r, "chaperone_identity_tokens_total",
		"Tokens by issuer and verdict: accepted, rejected, none.", "issuer", "verdict"); err != nil {
		return nil, err
	}
	if m.fetches, err = counter(r, "chaperone_identity_key_fetches_total",
		"Fetches of signing keys by issuer and outcome: ok, failed.", "issuer", "outcome"); err != nil {
		return nil, err
	}
	return &m, nil
}

// counter registers a counter, or takes the one that an earlier Verifier, before
// a reload, has registered.
func counter(r prometheus.Registerer, name, help string, labels ...string) (*prometheus.CounterVec, error) {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	err := r.Register(c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if earlier, ok := already.ExistingCollector.(*prometheus.CounterVec); ok {
			return earlier, nil
		}
	}
	return c, err
}

// verified counts one verdict; is may be nil when the issuer is not known.
func (m *metrics) verified(is *issuer, err error) {
	if m.verdicts == nil {
		return
	}
	name, verdict := "", "accepted"
	if is != nil {
		name = is.name
	}
	switch {
	case errors.Is(err, ErrTokenRejected):
		verdict = "rejected"
	case err != nil:
		verdict = "none"
	}
	m.verdicts.WithLabelValues(name, verdict).Inc()
}

func (m *metrics) fetched(issuer string, err error) {
	if m.fetches == nil {
		return
	}
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.fetches.WithLabelValues(issuer, outcome).Inc()
}
