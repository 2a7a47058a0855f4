package identity

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"time"
)

// errClockJumped means that the verdict hangs on which of two clocks is right.
var errClockJumped = errors.New("the clock of this machine has jumped; no verdict until it has settled")

// maxNumericDate is the end of the year 9999.
const maxNumericDate = 253402300799

// times are a token's time claims in Unix seconds, rounded towards refusing.
type times struct {
	expires   int64
	notBefore int64
	issued    int64
	hasIssued bool
}

// readTimes reads exp, nbf and iat (RFC 7519, section 4.1) and whatever can be
// said of them without knowing the time.
func readTimes(claims map[string]any, maxLife time.Duration) (times, error) {
	var t times
	var hasExpires bool
	var err error
	if t.expires, hasExpires, err = numericDate(claims, "exp", math.Floor); err != nil {
		return times{}, err
	}
	if !hasExpires {
		return times{}, rejected("it has no exp claim")
	}
	if t.notBefore, _, err = numericDate(claims, "nbf", math.Ceil); err != nil {
		return times{}, err
	}
	if t.issued, t.hasIssued, err = numericDate(claims, "iat", math.Ceil); err != nil {
		return times{}, err
	}
	switch {
	case t.hasIssued && t.issued > t.expires:
		return times{}, rejected("it is issued after it expires")
	case t.notBefore > t.expires:
		return times{}, rejected("it becomes valid after it expires")
	case maxLife > 0 && !t.hasIssued:
		return times{}, rejected("it has no iat claim, and a longest life is configured")
	case maxLife > 0 && t.expires-t.issued > int64(maxLife/time.Second):
		return times{}, rejected("it lives longer than is configured")
	}
	return t, nil
}

func numericDate(claims map[string]any, name string, round func(float64) float64) (int64, bool, error) {
	value, present := claims[name]
	if !present {
		return 0, false, nil
	}
	number, ok := value.(json.Number)
	if !ok {
		return 0, false, rejected("its " + name + " claim is not a number")
	}
	seconds, err := strconv.ParseFloat(number.String(), 64)
	if err != nil || seconds < 0 || seconds > maxNumericDate {
		return 0, false, rejected("its " + name + " claim is not a sane time")
	}
	return int64(round(seconds)), true, nil
}

// checkTimes judges t by both times that it may be. Only where they agree is
// there a verdict, so that no jump of the clock can let a token in.
func (is *issuer) checkTimes(t times, now reading) error {
	early, late := is.timeFault(t, now.early), is.timeFault(t, now.late)
	if (early == nil) != (late == nil) {
		return errClockJumped
	}
	if late != nil {
		return late
	}
	if t.hasIssued {
		is.witness(t.issued)
	}
	return nil
}

func (is *issuer) timeFault(t times, now time.Time) error {
	// A clock that runs behind a token which the issuer has signed, and which
	// was good at the time, has gone back: what expired before stays expired.
	if proven := time.Unix(is.newest.Load(), 0).Add(-is.skew); now.Before(proven) {
		now = proven
	}
	switch {
	case !now.Before(time.Unix(t.expires, 0).Add(is.skew)):
		return rejected("it has expired")
	case now.Before(time.Unix(t.notBefore, 0).Add(-is.skew)):
		return rejected("it is not valid yet")
	case t.hasIssued && now.Before(time.Unix(t.issued, 0).Add(-is.skew)):
		return rejected("it is issued in the future")
	}
	return nil
}

// witness raises newest to issued.
func (is *issuer) witness(issued int64) {
	for {
		old := is.newest.Load()
		if issued <= old || is.newest.CompareAndSwap(old, issued) {
			return
		}
	}
}
