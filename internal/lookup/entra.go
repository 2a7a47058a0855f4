package lookup

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// Entra is an Entra ID tenant, asked by Microsoft Graph.
type Entra struct {
	Tenant string
	Client string // an application with GroupMember.Read.All and User.Read.All
	Secret access.Secret
	Login  string // https://login.microsoftonline.com
	API    string // https://graph.microsoft.com
	Roots  *x509.CertPool
}

type entra struct {
	*endpoint
	api string
}

// NewEntra returns the directory of a tenant; groups are object ids, as in its
// tokens.
func NewEntra(c Config, t Entra) (*Directory, error) {
	if t.Tenant == "" || t.Client == "" || t.Secret.Empty() {
		return nil, errors.New("tenant, client and secret are needed")
	}
	e := newEndpoint(t.Roots, c.Clock)
	e.grant = func(time.Time) (string, url.Values, error) {
		return t.Login + "/" + url.PathEscape(t.Tenant) + "/oauth2/v2.0/token", url.Values{"grant_type": {"client_credentials"},
			"client_id": {t.Client}, "client_secret": {t.Secret.Reveal()}, "scope": {t.API + "/.default"}}, nil
	}
	return newDirectory(c, &entra{e, t.API}), nil
}

func (e *entra) groups(ctx context.Context, user string) (all []string, err error) {
	path := e.api + "/v1.0/users/" + url.PathEscape(user) + "/transitiveMemberOf/microsoft.graph.group"
	query := url.Values{"$select": {"id"}, "$top": {"999"}}
	for range maxPages {
		var answer struct {
			Value []struct{ ID string }
			Next  string `json:"@odata.nextLink"`
		}
		if err := e.get(ctx, path+"?"+query.Encode(), &answer); err != nil {
			return nil, err
		}
		for _, one := range answer.Value {
			all = append(all, one.ID)
		}
		if answer.Next == "" {
			return all, nil
		}
		// Of the address only the position is taken: where to ask is configured.
		next, err := url.Parse(answer.Next)
		if err != nil || next.Query().Get("$skiptoken") == "" {
			return nil, errors.New("the directory does not say where its next page begins")
		}
		query.Set("$skiptoken", next.Query().Get("$skiptoken"))
	}
	return nil, fmt.Errorf("the groups of one user fill more than %d pages", maxPages)
}
