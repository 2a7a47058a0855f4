package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// projectedToken is where a Kubernetes projected token is looked for when
// nothing else is set.
const projectedToken = "/var/run/secrets/tokens/chaperone"

// maxTokenFile bounds what is read of a file or an answer.
const maxTokenFile = 64 << 10

// A tokenSource is where a caller's own token comes from. identity tells sources
// apart in the cache without being a token.
type tokenSource struct {
	identity string
	get      func(ctx context.Context) (access.Secret, error)
}

// source finds the caller's own token: --token-file, CHAPERONE_TOKEN, GitHub
// Actions, a projected file, the last login.
func (g *gateway) source(audience string) (tokenSource, error) {
	request, requestToken := os.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), os.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	switch {
	case g.tokenFile != "":
		return fileSource(g.tokenFile)
	case os.Getenv("CHAPERONE_TOKEN") != "":
		t := access.NewSecret(os.Getenv("CHAPERONE_TOKEN"))
		return tokenSource{"env:" + digest(t.Reveal()), func(context.Context) (access.Secret, error) { return t, nil }}, nil
	case request != "" && requestToken != "":
		return tokenSource{"actions:" + digest(request, requestToken, audience), func(ctx context.Context) (access.Secret, error) {
			return actionsToken(ctx, request, requestToken, audience)
		}}, nil
	}
	if _, err := os.Stat(projectedToken); err == nil {
		return fileSource(projectedToken)
	}
	if t, ok := loggedIn(); ok {
		return tokenSource{"login:" + digest(t.Reveal()), func(context.Context) (access.Secret, error) { return t, nil }}, nil
	}
	return tokenSource{}, fmt.Errorf("%w: a token is needed: log in (chaperone login), set CHAPERONE_TOKEN, CHAPERONE_TOKEN_FILE or --token-file, or mount one at %s", errUsage, projectedToken)
}

// fileSource reads the file each time: whoever rotates it writes it anew.
func fileSource(path string) (tokenSource, error) {
	t, err := readTokenFile(path)
	if err != nil {
		return tokenSource{}, err
	}
	return tokenSource{"file:" + digest(t.Reveal()), func(context.Context) (access.Secret, error) { return readTokenFile(path) }}, nil
}

func readTokenFile(path string) (access.Secret, error) {
	f, err := os.Open(path)
	if err != nil {
		return access.Secret{}, fmt.Errorf("token: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
	if err != nil {
		return access.Secret{}, fmt.Errorf("token: %w", err)
	}
	return access.NewSecret(strings.TrimSpace(string(b))), nil
}

// actionsToken asks GitHub Actions for an ID token.
func actionsToken(ctx context.Context, request, bearer, audience string) (access.Secret, error) {
	u, err := url.Parse(request)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Hostname() != "127.0.0.1" {
		return access.Secret{}, errors.New("token: ACTIONS_ID_TOKEN_REQUEST_URL is not an https URL")
	}
	q := u.Query()
	q.Set("audience", audience)
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return access.Secret{}, err
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	client := &http.Client{Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		return access.Secret{}, fmt.Errorf("token: %w", err)
	}
	defer res.Body.Close()
	var answer struct{ Value string }
	if err := json.NewDecoder(io.LimitReader(res.Body, maxTokenFile)).Decode(&answer); err != nil || res.StatusCode != http.StatusOK || answer.Value == "" {
		return access.Secret{}, fmt.Errorf("token: GitHub Actions answers %s; does the job have the permission id-token: write?", res.Status)
	}
	return access.NewSecret(answer.Value), nil
}

func digest(parts ...string) string {
	b, err := json.Marshal(parts)
	if err != nil { // texts always encode
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// lifeOf reads exp and iat of a token of the caller's own. It verifies nothing.
func lifeOf(token access.Secret) (issued, expires time.Time, err error) {
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return issued, expires, errors.New("token: not a JSON web token")
	}
	var claims struct {
		Iat, Exp float64
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(b, &claims)
	}
	if err != nil || claims.Exp == 0 {
		return issued, expires, errors.New("token: not a JSON web token with an expiry")
	}
	return time.Unix(int64(claims.Iat), 0), time.Unix(int64(claims.Exp), 0), nil
}

// fresh reports whether a token is good for a third of its life yet.
func fresh(token access.Secret, now time.Time) bool {
	issued, expires, err := lifeOf(token)
	return err == nil && expires.Sub(now) > min(expires.Sub(issued)/3, 5*time.Minute) && expires.After(now)
}

// cachedToken returns the token kept under key, when it is still fresh.
func cachedToken(key string) (access.Secret, bool) {
	t, ok := keptToken(key)
	return t, ok && fresh(t, time.Now())
}

// keptToken returns the token kept under key, unless others can read it.
func keptToken(key string) (access.Secret, bool) {
	path, err := cachePath(key)
	if err != nil {
		return access.Secret{}, false
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return access.Secret{}, false
	}
	t, err := readTokenFile(path)
	return t, err == nil
}

// keepToken writes the cache; a token that cannot be kept is only not kept.
func keepToken(key string, token access.Secret) {
	path, err := cachePath(key)
	if err != nil || os.MkdirAll(filepath.Dir(path), 0o700) != nil {
		return
	}
	_ = writeSecret(path, token.Reveal()) // the next call asks again
}

func cachePath(key string) (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "chaperone", "tokens", key), nil
}

// writeSecret replaces a file whole, for this user alone.
func writeSecret(path, text string) error {
	return writeSecretFor(path, text, func(*os.File) error { return nil })
}

// writeSecretFor is writeSecret for a file that give hands to another user.
func writeSecretFor(path, text string, give func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	if err = give(f); err == nil {
		_, err = f.WriteString(text)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the error is what matters
	}
	return err
}
