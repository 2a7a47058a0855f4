package quota

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// The largest parts that are reserved at once.
const (
	maxRowsPart  = 1000
	maxBytesPart = 1 << 20
	partsOfRest  = 8 // a part is at most this fraction of what is left
)

// A Use is what one request uses. A nil Use counts nothing and allows
// everything. It serves one goroutine.
type Use struct {
	service *Service
	scopes  []scope
	parts   [measures]part // of rows and bytes
	left    time.Duration
}

// A scope is one counter and its limits.
type scope struct {
	name  string // per_session or per_hour
	key   string
	max   amounts
	frees time.Time
}

// A part is what was reserved, and how much of it was used.
type part struct{ reserved, used int64 }

// Begin counts a statement, or a request, before it runs, and refuses it when
// any limit is used up. The error is an *ExceededError, or the counters cannot
// be reached. Without such limits the Use is nil.
func (s *Service) Begin(ctx context.Context, session, account string, limits access.Limits) (*Use, error) {
	u := s.Resume(session, account, limits)
	if u == nil {
		return nil, nil
	}
	for i := range u.scopes {
		sc := &u.scopes[i]
		err := s.update(ctx, sc.key, func(c *counter) error {
			for m, most := range sc.max {
				if most > 0 && c.Used[m] >= most {
					return sc.exceeded(measure(m))
				}
			}
			if sc.max[statements] > 0 {
				c.Used[statements]++
			}
			if most := sc.max[timeUsed]; most > 0 {
				u.left = shorter(u.left, time.Duration(most-c.Used[timeUsed]))
			}
			return nil
		})
		if err != nil {
			return nil, errors.Join(err, u.giveBack(ctx, statements, 1, i))
		}
	}
	return u, nil
}

// Resume returns the Use of a request that has begun elsewhere.
func (s *Service) Resume(session, account string, limits access.Limits) *Use {
	u := &Use{service: s}
	if limits.Session != (access.Quota{}) {
		u.scopes = append(u.scopes, scope{name: "per_session", key: sessionPrefix + session, max: amountsOf(limits.Session)})
	}
	if limits.Hour != (access.Quota{}) {
		hour := hourOf(s.clock())
		u.scopes = append(u.scopes, scope{name: "per_hour", key: fmt.Sprintf("%s%010d/%s", hourPrefix, hour, account),
			max: amountsOf(limits.Hour), frees: time.Unix((hour+1)*3600, 0).UTC()})
	}
	if len(u.scopes) == 0 {
		return nil
	}
	return u
}

func (sc *scope) exceeded(m measure) error {
	return &ExceededError{Limit: sc.name + "." + m.String(), Max: sc.max[m], Frees: sc.frees}
}

// shorter takes the smaller of two times, 0 being none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b < a {
		return b
	}
	return a
}

// Left is how long the request may run; 0 is no limit.
func (u *Use) Left() time.Duration {
	if u == nil {
		return 0
	}
	return u.left
}

// CountsChanges reports whether changed rows have a limit.
func (u *Use) CountsChanges() bool { return u.limits(rowsChanged) }

func (u *Use) limits(m measure) bool {
	if u == nil {
		return false
	}
	for _, sc := range u.scopes {
		if sc.max[m] > 0 {
			return true
		}
	}
	return false
}

// Read counts a row of a result, or none, and its bytes before they are passed
// on. After an error they must not be.
func (u *Use) Read(ctx context.Context, rows, bytes int64) error {
	if u == nil {
		return nil
	}
	if err := u.draw(ctx, rowsRead, rows, maxRowsPart); err != nil {
		return err
	}
	return u.draw(ctx, bytesRead, bytes, maxBytesPart)
}

// draw uses n of what is reserved, after reserving more when it is too little.
func (u *Use) draw(ctx context.Context, m measure, n, most int64) error {
	p := &u.parts[m]
	if n == 0 || !u.limits(m) {
		return nil
	}
	if missing := p.used + n - p.reserved; missing > 0 {
		got, err := u.take(ctx, m, missing, max(missing, most))
		if err != nil {
			return err
		}
		p.reserved += got
	}
	p.used += n
	return nil
}

// Changed counts changed rows before the change becomes final. After an error
// it must not.
func (u *Use) Changed(ctx context.Context, rows int64) error {
	if rows <= 0 || !u.CountsChanges() {
		return nil
	}
	_, err := u.take(ctx, rowsChanged, rows, rows)
	return err
}

// take adds at least least and at most most to every counter that limits m, and
// returns how much; or adds nothing.
func (u *Use) take(ctx context.Context, m measure, least, most int64) (int64, error) {
	granted := most
	for i := range u.scopes {
		sc := &u.scopes[i]
		if sc.max[m] == 0 {
			continue
		}
		var got int64
		err := u.service.update(ctx, sc.key, func(c *counter) error {
			rest := sc.max[m] - c.Used[m]
			if rest < least {
				return sc.exceeded(m)
			}
			got = max(least, min(granted, rest/partsOfRest))
			c.Used[m] += got
			return nil
		})
		if err != nil {
			return 0, errors.Join(err, u.giveBack(ctx, m, granted, i))
		}
		if got < granted {
			if err := u.giveBack(ctx, m, granted-got, i); err != nil {
				return 0, err
			}
			granted = got
		}
	}
	return granted, nil
}

// giveBack takes n off the first scopes that limit m.
func (u *Use) giveBack(ctx context.Context, m measure, n int64, scopes int) error {
	var errs []error
	for _, sc := range u.scopes[:scopes] {
		if sc.max[m] == 0 || n == 0 {
			continue
		}
		errs = append(errs, u.service.update(ctx, sc.key, func(c *counter) error {
			c.Used[m] = max(c.Used[m]-n, 0)
			return nil
		}))
	}
	return errors.Join(errs...)
}

// End counts the time that the request took and gives back what was reserved
// and not used. When it fails the counters show too much.
func (u *Use) End(ctx context.Context, took time.Duration) error {
	if u == nil {
		return nil
	}
	var errs []error
	for i := range u.scopes {
		sc := &u.scopes[i]
		var change amounts
		for m, p := range u.parts {
			if sc.max[m] > 0 {
				change[m] = p.used - p.reserved
			}
		}
		if sc.max[timeUsed] > 0 {
			change[timeUsed] = int64(max(took, 0))
		}
		if change == (amounts{}) {
			continue
		}
		errs = append(errs, u.service.update(ctx, sc.key, func(c *counter) error {
			for m, n := range change {
				c.Used[m] = max(c.Used[m]+n, 0)
			}
			return nil
		}))
	}
	u.parts = [measures]part{}
	return errors.Join(errs...)
}
