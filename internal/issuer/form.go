package issuer

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// maxForm bounds a request: two tokens, an assertion and details fit.
const maxForm = 64 << 10

// A fault is a refusal: what the client gets (RFC 6749, section 5.2) and what
// only operators see.
type fault struct {
	status  int
	code    string
	reason  access.Reason // in the recording
	message string
	cause   error
}

// Error is for the log.
func (f *fault) Error() string {
	if f.cause != nil {
		return f.code + ": " + f.message + ": " + f.cause.Error()
	}
	return f.code + ": " + f.message
}

func invalidRequest(message string) *fault {
	return &fault{status: http.StatusBadRequest, code: "invalid_request", reason: access.Unreadable, message: message}
}

// badToken is uniform: it does not say what is wrong with a token.
func badToken(name string, cause error) *fault {
	return &fault{status: http.StatusBadRequest, code: "invalid_request", reason: access.Unauthenticated, message: "the " + name + " is not one that is taken here", cause: cause}
}

func invalidClient(cause error) *fault {
	return &fault{status: http.StatusUnauthorized, code: "invalid_client", reason: access.Unauthenticated,
		message: "the client is not authenticated", cause: cause}
}

func unavailable(message string, cause error) *fault {
	return &fault{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", reason: access.Unavailable, message: message, cause: cause}
}

// A form is a request with each parameter at most once, save those that may
// repeat. Parameters without a value count as absent (RFC 6749, section 3.2).
type form struct {
	values url.Values
	caller string // where it comes from
	bearer access.Secret
}

// repeatable parameters name targets (RFC 8693, section 2.1).
var repeatable = map[string]bool{"audience": true, "resource": true}

func (f *form) get(name string) string {
	if v := f.values[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func readForm(r *http.Request) (*form, *fault) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/x-www-form-urlencoded" {
		return nil, invalidRequest("the body must be application/x-www-form-urlencoded")
	}
	if r.URL.RawQuery != "" {
		return nil, invalidRequest("parameters belong in the body, not in the URL")
	}
	b, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		f := invalidRequest("the request is too large")
		f.status, f.reason = http.StatusRequestEntityTooLarge, access.LimitExceeded
		return nil, f
	}
	if err != nil {
		return nil, invalidRequest("the body did not arrive whole")
	}
	values, err := url.ParseQuery(string(b))
	if err != nil {
		return nil, invalidRequest("the body is not a form")
	}
	f := &form{values: url.Values{}, caller: clientOf(r)}
	for name, given := range values {
		if len(given) > 1 && !repeatable[name] {
			return nil, invalidRequest("a parameter is given twice")
		}
		for _, v := range given {
			if v != "" {
				f.values[name] = append(f.values[name], v)
			}
		}
	}
	headers := r.Header.Values("Authorization")
	if len(headers) > 1 {
		return nil, invalidRequest("there are several Authorization headers")
	}
	if len(headers) == 1 {
		scheme, token, _ := strings.Cut(headers[0], " ")
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return nil, invalidClient(errors.New("an authorization scheme other than Bearer"))
		}
		f.bearer = access.NewSecret(token)
	}
	return f, nil
}

// clientOf is the client's address as Envoy, which this service stands behind,
// wrote it: the last that was added.
func clientOf(r *http.Request) string {
	all := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	return strings.TrimSpace(all[len(all)-1])
}

// An endpoint takes a form and returns what to answer.
func (s *Service) endpoint(name string, serve func(*http.Request, *form, string) (any, *fault)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := access.NewRequestID()
		defer func() {
			if p := recover(); p != nil {
				s.Log.Error("the token service panicked", "request", id, "endpoint", name, "panic", p)
				writeFault(w, id, unavailable("the gateway failed; no token was issued", nil))
			}
		}()
		release, f := s.gate.enter(clientOf(r))
		if f != nil { // neither recorded nor logged: that is what is being saved
			s.answers.WithLabelValues(name, f.code).Inc()
			writeFault(w, id, f)
			return
		}
		defer release()
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		in, f := readForm(r)
		var out any
		if f == nil {
			out, f = serve(r, in, id)
		}
		if f != nil {
			s.answers.WithLabelValues(name, f.code).Inc()
			s.Log.Info("token service refused", "request", id, "endpoint", name, "client", clientOf(r), "error", f)
			if err := s.recordRefusal(r, id, name, f); err != nil {
				s.Log.Error("a refusal of the token service is not recorded", "request", id, "error", err)
			}
			writeFault(w, id, f)
			return
		}
		s.answers.WithLabelValues(name, "ok").Inc()
		w.Header().Set("Cache-Control", "no-store")
		writeJSON(w, http.StatusOK, out)
	})
}

// recordRefusal writes the evidence. The client is refused either way.
func (s *Service) recordRefusal(r *http.Request, id, endpoint string, f *fault) error {
	cause := ""
	if f.cause != nil {
		cause = f.cause.Error()
	}
	return s.Recorder.Append(r.Context(), access.Synced, access.Event{Request: id, Denied: &access.Denied{
		Denial: access.Denial{RequestID: id, Reason: f.reason, Rule: "token-service", Message: f.message},
		Cause:  cause, Client: clientOf(r), Text: "oauth " + endpoint,
	}})
}

func writeFault(w http.ResponseWriter, id string, f *fault) {
	w.Header().Set("Cache-Control", "no-store")
	switch f.status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, f.status, map[string]string{"error": f.code, "error_description": f.message, "request_id": id})
}

// earliest is the first of times; zero times do not count.
func earliest(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}
