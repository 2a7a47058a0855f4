package main

import (
	"context"
	"encoding/json"
	"time"

	"chaperone.dev/chaperone/internal/console"
	"chaperone.dev/chaperone/internal/store"
	"chaperone.dev/chaperone/xds"
)

// Every replica tells the others what it runs, in a lease that ends with it.
const (
	replicaPrefix = "replica/"
	replicaEvery  = time.Second
	replicaTTL    = 10 * time.Second
	maxToldFault  = 8 << 10 // bytes of why files were refused
	maxToldNodes  = 50      // Envoys of one replica
)

// A replicaStatus is what one replica runs, and what its Envoys took.
type replicaStatus struct {
	Replica  string     `json:"replica"`
	Revision string     `json:"revision"`
	Config   string     `json:"config"` // digest of the configuration
	Since    time.Time  `json:"since"`
	Failed   string     `json:"failed,omitempty"`
	Envoys   xds.Status `json:"envoys"`
}

func (s *server) replicaStatus() replicaStatus {
	r := s.current.revision.Load()
	out := replicaStatus{Replica: s.replica, Revision: r.policies.Revision(), Config: r.config.Digest[:12], Since: r.since,
		Failed: s.reloader.failed(), Envoys: s.xds.Status()}
	if len(out.Failed) > maxToldFault {
		out.Failed = out.Failed[:maxToldFault] + "…"
	}
	if len(out.Envoys.Nodes) > maxToldNodes {
		out.Envoys.Nodes = out.Envoys.Nodes[:maxToldNodes]
	}
	return out
}

// tell keeps the lease until ctx ends.
func (s *server) tell(ctx context.Context) error {
	tick := time.NewTicker(replicaEvery)
	defer tick.Stop()
	told := true
	for {
		value, err := json.Marshal(s.replicaStatus())
		if err == nil {
			err = s.store.Acquire(ctx, replicaPrefix+s.replica, s.replica, value, replicaTTL)
		}
		if failed := err != nil && ctx.Err() == nil; failed && told {
			s.log.Warn("the other replicas do not learn what this one runs", "error", err)
			told = false
		} else if !failed {
			told = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// replicas lists what every live replica runs. This one is always among them.
func (s *server) replicas(ctx context.Context) []replicaStatus {
	all := []replicaStatus{s.replicaStatus()}
	page, err := s.store.Holders(ctx, replicaPrefix, "", store.MaxPage)
	if err != nil {
		s.log.Warn("what the other replicas run is not known", "error", err)
		return all
	}
	for _, lease := range page.Items {
		var one replicaStatus
		if json.Unmarshal(lease.Value, &one) == nil && one.Replica != s.replica {
			all = append(all, one)
		}
	}
	return all
}

func (s *server) status(ctx context.Context) console.Status {
	r := s.current.revision.Load()
	return console.Status{Revision: r.policies.Revision(), Since: r.since.Format(time.RFC3339), Failed: s.reloader.failed(),
		Envoys: s.xds.Status(), Replicas: s.replicas(ctx)}
}
