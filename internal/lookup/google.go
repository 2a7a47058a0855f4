package lookup

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"

	"chaperone.dev/chaperone/internal/access"
)

// Google is a Google Workspace, asked by the Admin SDK's Directory API.
type Google struct {
	// ServiceAccount is the JSON key of a service account with domain-wide
	// delegation for the scope admin.directory.group.readonly.
	ServiceAccount access.Secret
	Admin          string // the administrator in whose name it asks
	API            string // https://admin.googleapis.com
	Roots          *x509.CertPool
}

const googleScope = "https://www.googleapis.com/auth/admin.directory.group.readonly"

type google struct {
	*endpoint
	api string
}

// NewGoogle returns the directory of a Workspace; groups are e-mail addresses.
func NewGoogle(c Config, g Google) (*Directory, error) {
	var account struct {
		Email   string `json:"client_email"`
		Key     string `json:"private_key"`
		KeyID   string `json:"private_key_id"`
		Address string `json:"token_uri"`
	}
	if json.Unmarshal([]byte(g.ServiceAccount.Reveal()), &account) != nil || account.Email == "" {
		return nil, errors.New("the service account is not the JSON key of one")
	}
	key, err := jwk.ParseKey([]byte(account.Key), jwk.WithPEM(true))
	if err != nil {
		return nil, errors.New("the service account holds no private key")
	}
	if u, err := url.Parse(account.Address); err != nil || u.Scheme != "https" {
		return nil, errors.New("the token_uri of the service account is not https")
	}
	e := newEndpoint(g.Roots, c.Clock)
	e.grant = func(now time.Time) (string, url.Values, error) {
		claims, err := json.Marshal(map[string]any{"iss": account.Email, "sub": g.Admin, "scope": googleScope, "aud": account.Address,
			"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()})
		if err != nil {
			return "", nil, err
		}
		headers := jws.NewHeaders()
		if err := errors.Join(headers.Set(jws.TypeKey, "JWT"), headers.Set(jws.KeyIDKey, account.KeyID)); err != nil {
			return "", nil, err
		}
		assertion, err := jws.Sign(claims, jws.WithKey(jwa.RS256, key, jws.WithProtectedHeaders(headers)))
		return account.Address, url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {string(assertion)}}, err
	}
	return newDirectory(c, &google{e, g.API}), nil
}

func (g *google) groups(ctx context.Context, user string) (all []string, err error) {
	page := ""
	for range maxPages {
		q := url.Values{"userKey": {user}, "maxResults": {"200"}}
		if page != "" {
			q.Set("pageToken", page)
		}
		var answer struct {
			Groups []struct{ Email string }
			Next   string `json:"nextPageToken"`
		}
		if err := g.get(ctx, g.api+"/admin/directory/v1/groups?"+q.Encode(), &answer); err != nil {
			return nil, err
		}
		for _, one := range answer.Groups {
			all = append(all, one.Email)
		}
		if page = answer.Next; page == "" {
			return all, nil
		}
	}
	return nil, fmt.Errorf("the groups of one user fill more than %d pages", maxPages)
}
