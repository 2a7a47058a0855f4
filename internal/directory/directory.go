// Package directory tells an agent, in one JSON document, what its token may
// reach at this gateway, how, and how to ask for more. It shows a principal only
// what some policy could let it do something with, and nothing to nobody.
package directory

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/bearer"
)

// Path is where the document is.
const Path = "/.well-known/chaperone"

// Config is what the document is made from. All members are required, save
// TokenEndpoint.
type Config struct {
	Verify     func(ctx context.Context, token access.Secret) (access.Principal, error)
	MayConnect func(ctx context.Context, p access.Principal, r access.Resource) bool
	Resources  func() []access.Resource
	// PostgresPort and SSHPort are the ports of those listeners; 0 is none.
	PostgresPort, SSHPort func() int
	// Accounts are the accounts of an SSH resource.
	Accounts func(resource string) []string
	// SSHAuthority certifies the gateway's SSH host key: one line as OpenSSH writes
	// it. Nil is none.
	SSHAuthority func() string
	// PublicURL is where clients reach the gateway: https://host[:port].
	PublicURL func() *url.URL
	// Rejected tells a verdict on a token from the lack of one.
	Rejected      func(error) bool
	TokenEndpoint string // "": no token service
	Log           *slog.Logger
}

// A Document is what an agent reads.
type Document struct {
	Gateway       string     `json:"gateway"`
	User          string     `json:"user,omitempty"`
	Subagent      string     `json:"subagent,omitempty"`
	Workflow      string     `json:"workflow,omitempty"`
	Through       []Hop      `json:"through,omitempty"`
	TokenID       string     `json:"token_id"`
	Expires       time.Time  `json:"expires"`
	Resources     []Resource `json:"resources"`
	TokenEndpoint string     `json:"token_endpoint,omitempty"`
	SSHAuthority  string     `json:"ssh_authority,omitempty"` // of the gateway's host key, when hosts are among the resources
	More          []string   `json:"more"`                    // how to ask for more
}

// A Hop is one delegation, and what it gave up.
type Hop struct {
	Actor string `json:"actor"`
	Only  string `json:"only,omitempty"`
}

// A Resource is a target and how to reach it.
type Resource struct {
	Name     string            `json:"name"`
	Kind     access.Kind       `json:"kind"`
	Labels   map[string]string `json:"labels,omitempty"`
	URL      string            `json:"url,omitempty"`  // of an HTTP target
	Host     string            `json:"host,omitempty"` // of a PostgreSQL or SSH target, and so on
	Port     int               `json:"port,omitempty"`
	Database string            `json:"database,omitempty"`
	User     string            `json:"user,omitempty"`
	Users    []string          `json:"users,omitempty"` // accounts of an SSH target
	How      string            `json:"how"`
}

// Handler serves the document.
func Handler(c Config) http.Handler {
	gate := bearer.Gate{Name: "directory", Verify: c.Verify, Rejected: c.Rejected, Log: c.Log}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := access.NewRequestID()
		p, denial := gate.Authenticate(r)
		if denial == nil && r.Method != http.MethodGet {
			denial = &access.Denial{Reason: access.Unsupported, Message: "this document is read with GET"}
		}
		if denial != nil {
			denial.RequestID = id
			bearer.Refuse(w, denial)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		b, err := json.Marshal(c.document(r, p))
		if err != nil { // texts, numbers and times of this century always encode
			panic("directory: " + err.Error())
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(b, '\n')) // the client may have left
	})
}

// document is for one principal. Nothing in it is the caller's own word: a
// forged Host must not send a token elsewhere.
func (c Config) document(r *http.Request, p access.Principal) Document {
	gateway := c.PublicURL()
	host := gateway.Hostname()
	d := Document{Gateway: "https://" + gateway.Host, User: p.User, Subagent: p.Subagent, Workflow: p.Workflow, TokenID: p.Token.ID, Expires: p.Token.ExpiresAt,
		Resources: []Resource{}, TokenEndpoint: c.TokenEndpoint}
	for _, h := range p.Chain {
		d.Through = append(d.Through, Hop{Actor: h.Actor, Only: h.Attenuation.Text()})
	}
	for _, known := range c.Resources() {
		if !c.MayConnect(r.Context(), p, known) {
			continue
		}
		one := Resource{Name: known.Name, Kind: known.Kind, Labels: known.Labels}
		switch known.Kind {
		case access.HTTP:
			one.URL = d.Gateway + "/http/" + known.Name + "/"
			one.How = "send the token in the header Authorization: Bearer TOKEN"
		case access.Kubernetes:
			one.URL = d.Gateway + "/k8s/" + known.Name
			one.How = "point kubectl's server at the URL and send the token as its bearer token: chaperone env " + known.Name + " prints a kubeconfig"
		case access.Postgres:
			one.Port = c.PostgresPort()
			if one.Port == 0 {
				continue
			}
			one.Host, one.Database, one.User = host, known.Name, "agent"
			one.How = "give the token as the password, with sslmode=verify-full: psql \"host=" + host + " port=" + strconv.Itoa(one.Port) + " dbname=" + known.Name + " user=agent\""
		case access.SSH:
			one.Port, one.Users = c.SSHPort(), c.Accounts(known.Name)
			if one.Port == 0 || len(one.Users) == 0 {
				continue
			}
			one.Host, one.User = host, one.Users[0]
			if c.SSHAuthority != nil {
				d.SSHAuthority = c.SSHAuthority()
			}
			one.How = "chaperone env " + known.Name + " writes what ssh needs, chaperone ssh-cert its certificate: ssh -p " + strconv.Itoa(one.Port) + " " + one.User + "@" + known.Name + "@" + host + "; where only HTTPS leaves, with ProxyCommand=\"chaperone connect " + known.Name + "\""
		}
		d.Resources = append(d.Resources, one)
	}
	d.More = []string{
		"a refusal says which rule refused, and whether a reviewer could lift it (requestable)",
		"a request that needs a reviewer is held: psql is told so at once; over HTTP send Prefer: respond-async, get the request id, and repeat the request once it is granted",
		"what no rule allows is for the owners of the policies: quote the request id",
	}
	if c.TokenEndpoint != "" {
		d.More = append(d.More, "to hand on less than this token may do, exchange it at token_endpoint (RFC 8693)")
	}
	return d
}
