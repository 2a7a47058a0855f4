// Package lookup asks a provider's directory for the groups of a user, for
// providers whose tokens do not carry them: Google Workspace, and Entra ID beyond
// what fits in a token. It owns what is asked, how often and for how long an
// answer is good. It sends requests to configured addresses only, whatever an
// answer says, and refuses answers that are late, long, redirected or odd.
package lookup

import (
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// ErrUnknownUser means that the directory knows no such user. Any other error
// means that the groups are not known.
var ErrUnknownUser = errors.New("the directory knows no such user")

// Bounds.
const (
	timeout     = 5 * time.Second // for one look-up, all of its requests together
	maxBytes    = 1 << 20         // of one answer
	maxPages    = 10
	maxGroups   = 1000
	maxName     = 256
	maxUsers    = 10_000 // that are remembered
	maxAtOnce   = 8      // look-ups
	retryAfter  = 10 * time.Second
	tokenMargin = time.Minute
)

// Config is how often to ask.
type Config struct {
	// Fresh is how long an answer is good; 0 is 5 minutes. Stale is how long it
	// serves while the directory cannot be reached; 0 is three times Fresh.
	Fresh, Stale time.Duration
	Clock        func() time.Time // nil is time.Now
}

// A Directory answers with the groups of users. It is safe for concurrent use.
type Directory struct {
	config Config
	source source
	slots  chan struct{}
	ctx    context.Context // ends with Close; look-ups serve many callers, and so outlive any
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	recent *list.List // of *user, the latest used first
	users  map[string]*list.Element
}

// A source asks one kind of directory.
type source interface {
	groups(ctx context.Context, user string) ([]string, error)
}

// A user is what is known of one. Its members but key are guarded by Directory.mu.
type user struct {
	key    string
	groups []string
	asked  time.Time // when groups were asked for; zero: they are not known
	failed time.Time // when the last look-up failed
	fault  error
	flight chan struct{} // closed when the look-up under way is over; nil: none is
}

func newDirectory(c Config, s source) *Directory {
	if c.Fresh == 0 {
		c.Fresh = 5 * time.Minute
	}
	if c.Stale == 0 {
		c.Stale = 3 * c.Fresh
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	d := &Directory{config: c, source: s, slots: make(chan struct{}, maxAtOnce), recent: list.New(), users: map[string]*list.Element{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Close ends look-ups under way and waits for them. What is known still serves.
func (d *Directory) Close() {
	d.cancel()
	d.work.Wait()
}

// Groups returns the groups of the user, sorted; the slice must not be written.
// It asks the directory when it does not know them, one look-up for each user at
// a time, and not again for ten seconds after one that failed.
func (d *Directory) Groups(ctx context.Context, key string) ([]string, error) {
	if !sane(key) {
		return nil, ErrUnknownUser
	}
	for {
		d.mu.Lock()
		u, now := d.user(key), d.config.Clock()
		age := now.Sub(u.asked)
		known := !u.asked.IsZero() && age < d.config.Stale
		due := u.asked.IsZero() || age >= d.config.Fresh
		waiting := u.flight
		if due && waiting == nil && now.Sub(u.failed) >= retryAfter {
			waiting = make(chan struct{})
			u.flight = waiting
			d.work.Go(func() { d.ask(u) })
		}
		groups, fault := u.groups, u.fault
		d.mu.Unlock()
		switch {
		case known && (!due || errors.Is(fault, errDown)):
			return groups, nil
		case waiting == nil:
			return nil, fault
		}
		select {
		case <-waiting:
		case <-ctx.Done():
			return nil, fmt.Errorf("look up groups: %w", context.Cause(ctx))
		}
	}
}

// errDown is a look-up that gave no answer.
var errDown = errors.New("no groups from the directory")

// user finds what is known of one, or begins with nothing. mu is held.
func (d *Directory) user(key string) *user {
	if e := d.users[key]; e != nil {
		d.recent.MoveToFront(e)
		return e.Value.(*user)
	}
	u := &user{key: key}
	d.users[key] = d.recent.PushFront(u)
	if d.recent.Len() > maxUsers {
		last := d.recent.Remove(d.recent.Back()).(*user)
		delete(d.users, last.key)
	}
	return u
}

// ask does one look-up and puts its outcome in place.
func (d *Directory) ask(u *user) {
	d.slots <- struct{}{}
	defer func() { <-d.slots }()
	ctx, cancel := context.WithTimeout(d.ctx, timeout)
	defer cancel()
	asked := d.config.Clock()
	groups, err := d.guarded(ctx, u.key)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil:
		u.groups, u.asked, u.failed, u.fault = groups, asked, time.Time{}, nil
	case errors.Is(err, ErrUnknownUser): // an answer, and what was known is wrong now
		u.groups, u.asked, u.failed, u.fault = nil, time.Time{}, asked, err
	default:
		u.failed, u.fault = asked, fmt.Errorf("%w: %w", errDown, err)
	}
	close(u.flight)
	u.flight = nil
}

// guarded never panics: the answer is a stranger's text.
func (d *Directory) guarded(ctx context.Context, key string) (groups []string, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			groups, err = nil, fmt.Errorf("panic of type %T", fault)
		}
	}()
	if groups, err = d.source.groups(ctx, key); err != nil {
		return nil, err
	}
	if len(groups) > maxGroups || slices.ContainsFunc(groups, func(g string) bool { return !sane(g) }) {
		return nil, errors.New("the directory names too many groups, or odd ones")
	}
	slices.Sort(groups)
	return slices.Compact(groups), nil
}

func sane(name string) bool {
	return name != "" && len(name) <= maxName && !strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.IsPrint(r) || unicode.Is(unicode.Bidi_Control, r)
	})
}

// An endpoint is the client of one directory, and its access token.
type endpoint struct {
	client *http.Client
	grant  func(now time.Time) (address string, form url.Values, err error)
	clock  func() time.Time

	mu      sync.Mutex
	token   string
	expires time.Time
}

func newEndpoint(roots *x509.CertPool, clock func() time.Time) *endpoint {
	if clock == nil {
		clock = time.Now
	}
	return &endpoint{clock: clock, client: &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxConnsPerHost: maxAtOnce, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// bearer returns an access token, of the grant when the last one is nearly over.
func (e *endpoint) bearer(ctx context.Context) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.clock()
	if e.token != "" && now.Before(e.expires) {
		return e.token, nil
	}
	address, form, err := e.grant(now)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var answer struct {
		Token   string `json:"access_token"`
		Seconds int64  `json:"expires_in"`
	}
	if err := e.do(req, &answer); err != nil {
		return "", fmt.Errorf("access token: %w", err)
	}
	if answer.Token == "" || answer.Seconds < 1 || answer.Seconds > 24*60*60 {
		return "", errors.New("access token: the answer holds none")
	}
	e.token, e.expires = answer.Token, now.Add(time.Duration(answer.Seconds)*time.Second-tokenMargin)
	return e.token, nil
}

// get asks an address with the access token.
func (e *endpoint) get(ctx context.Context, address string, into any) error {
	token, err := e.bearer(ctx)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return e.do(req, into)
}

func (e *endpoint) do(req *http.Request, into any) error {
	req.Header.Set("Accept", "application/json")
	res, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusNotFound && req.Method == http.MethodGet:
		return ErrUnknownUser
	case res.StatusCode != http.StatusOK:
		if res.StatusCode == http.StatusUnauthorized && req.Method == http.MethodGet {
			e.forget()
		}
		return fmt.Errorf("%s answers %d", req.URL.Host, res.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBytes+1))
	if err != nil {
		return err
	}
	if len(b) > maxBytes {
		return fmt.Errorf("%s answers with more than %d bytes", req.URL.Host, maxBytes)
	}
	if json.Unmarshal(b, into) != nil {
		return fmt.Errorf("%s does not answer with what was asked for", req.URL.Host)
	}
	return nil
}

// forget has the next look-up get another access token.
func (e *endpoint) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.token = ""
}
