// Package config reads the one configuration file (DESIGN section 12): strict
// YAML, every fault reported at once with its place, secrets only by reference.
// It refuses whatever it does not know. What it returns is complete: defaults
// filled in, relative paths made absolute, secrets and certificates read.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/strictyaml"
)

// A Config is one whole, valid configuration.
type Config struct {
	Listen    Listen     `yaml:"listen" doc:"where Envoy listens"`
	Identity  Identity   `yaml:"identity" doc:"who may vouch for callers"`
	SSH       SSHGateway `yaml:"ssh" doc:"the gateway's own keys and certificates for SSH"`
	Tokens    *Tokens    `yaml:"tokens" doc:"the gateway's own token service; left out, there is none"`
	Resources []Resource `yaml:"resources" doc:"the targets"`
	Policies  string     `yaml:"policies" doc:"folder of policy files, one policy a file"`
	People    People     `yaml:"people" doc:"which groups of people may do what on the gateway itself"`
	Approvals Approvals  `yaml:"approvals" doc:"how long clients wait, and who is told"`
	Store     Store      `yaml:"store" doc:"where approvals, sessions and revocations live"`
	Recording Recording  `yaml:"recording" doc:"where recordings are written"`
	Telemetry Telemetry  `yaml:"telemetry" doc:"traces and metrics"`
	Parsers   int        `yaml:"parsers" doc:"SQL statements parsed at once, each in a process of its own of about 50 MB; default 2"`
	Sockets   string     `yaml:"sockets" doc:"folder of the unix sockets between Envoy and chaperone; default run"`

	// Dir is the folder of the file; Digest identifies its text.
	Dir    string `yaml:"-"`
	Digest string `yaml:"-"`

	files []string
}

// Listen says where clients reach Envoy.
type Listen struct {
	HTTPS    string `yaml:"https" doc:"host:port of the HTTPS listener"`
	Postgres string `yaml:"postgres" doc:"host:port of the PostgreSQL listener; empty for none"`
	SSH      string `yaml:"ssh" doc:"host:port of the SSH listener; empty for none"`
	TLS      TLS    `yaml:"tls" doc:"the gateway's certificate"`
	Public   string `yaml:"public_url" doc:"https URL at which clients reach the gateway; default tokens.issuer, else the first name in its certificate with the port of https"`

	WaitingPerAddress *int `yaml:"waiting_per_address" doc:"PostgreSQL connections, and as many of SSH, of one client address that may wait to authenticate, 1 to 256; default 32"`
}

// TLS is a certificate with its key.
type TLS struct {
	Cert SecretRef `yaml:"cert" doc:"certificate chain, PEM"`
	Key  SecretRef `yaml:"key" doc:"private key, PEM"`
}

// SSHGateway is how the gateway proves itself over SSH and certifies clients.
type SSHGateway struct {
	Keys string        `yaml:"keys" doc:"folder of the host key and of the two authorities, made on first start; share it among replicas; default ssh beside the store's key"`
	Life time.Duration `yaml:"life" doc:"how long the certificate of a client lives, 10s to 1h; default 5m"`
}

// Identity lists the issuers whose tokens are accepted.
type Identity struct {
	Skew    *time.Duration `yaml:"skew" doc:"clock difference allowed, 60s at most; default 30s"`
	Life    time.Duration  `yaml:"token_life" doc:"longest life of a provider's token, and so how long a revocation lasts, 168h at most; default 24h. A change needs a restart"`
	KeyAge  time.Duration  `yaml:"key_age" doc:"how long known keys serve while a provider is down; default 1h"`
	Issuers []Issuer       `yaml:"issuers" doc:"the providers"`
}

// An Issuer is one provider of identity tokens.
type Issuer struct {
	Name   string         `yaml:"name" doc:"how decisions and recordings name it"`
	OIDC   *OIDC          `yaml:"oidc" doc:"an OpenID Connect provider"`
	SAML   *SAML          `yaml:"saml" doc:"a SAML 2.0 identity provider"`
	SPIFFE *SPIFFE        `yaml:"spiffe" doc:"a SPIFFE trust domain, whose members prove themselves by client certificate"`
	Claims Claims         `yaml:"claims" doc:"which claim means what"`
	Skew   *time.Duration `yaml:"skew" doc:"overrides identity.skew"`
	LookUp *LookUp        `yaml:"look_up" doc:"where the groups of an OpenID Connect provider's users are looked up, in place of what its tokens say"`
}

// LookUp asks a provider's directory for groups.
type LookUp struct {
	By     string        `yaml:"by" doc:"the claim that names the user in the directory; default email, for entra oid"`
	Fresh  time.Duration `yaml:"fresh" doc:"how long an answer is good; while the directory is down it serves three times as long. Default 5m, 1h at most"`
	Google *GoogleGroups `yaml:"google" doc:"Google Workspace: groups are e-mail addresses"`
	Entra  *EntraGroups  `yaml:"entra" doc:"Entra ID: groups are object ids"`
	CA     SecretRef     `yaml:"ca" doc:"certificates that the directory's TLS must lead to; default the system's"`
}

// GoogleGroups is the Directory API of a Workspace.
type GoogleGroups struct {
	Account SecretRef `yaml:"service_account" doc:"JSON key of a service account with domain-wide delegation for admin.directory.group.readonly"`
	Admin   string    `yaml:"admin" doc:"the administrator in whose name it asks"`
	API     string    `yaml:"api" doc:"default https://admin.googleapis.com"`
}

// EntraGroups is Microsoft Graph for a tenant.
type EntraGroups struct {
	Tenant string    `yaml:"tenant" doc:"tenant id"`
	Client string    `yaml:"client" doc:"an application with GroupMember.Read.All and User.Read.All"`
	Secret SecretRef `yaml:"secret" doc:"its secret"`
	Login  string    `yaml:"login" doc:"default https://login.microsoftonline.com"`
	API    string    `yaml:"api" doc:"default https://graph.microsoft.com"`
}

// OIDC pins one OpenID Connect provider.
type OIDC struct {
	Issuer     string    `yaml:"issuer" doc:"exact iss, and where discovery begins"`
	JWKS       string    `yaml:"jwks" doc:"where the keys are, when discovery is not to be used"`
	Audiences  []string  `yaml:"audiences" doc:"one of these must be in aud"`
	Algorithms []string  `yaml:"algorithms" doc:"signature algorithms accepted; default RS256 and ES256"`
	CA         SecretRef `yaml:"ca" doc:"certificates that the provider's TLS must lead to; default the system's"`
}

// SAML pins one SAML 2.0 identity provider, whose bearer assertions the token
// service takes.
type SAML struct {
	EntityID    string    `yaml:"entity_id" doc:"exact Issuer of its assertions"`
	Metadata    SecretRef `yaml:"metadata" doc:"its metadata, for its signing keys; or"`
	MetadataURL string    `yaml:"metadata_url" doc:"where its metadata is fetched"`
	CA          SecretRef `yaml:"ca" doc:"certificates that the TLS of metadata_url must lead to; default the system's"`
	Audience    string    `yaml:"audience" doc:"must be the audience; default tokens.issuer"`
	Recipient   string    `yaml:"recipient" doc:"whom assertions must be delivered to; default the token endpoint"`
	Algorithms  []string  `yaml:"algorithms" doc:"signature algorithms accepted: RS256 (default), RS384, RS512"`
	Subagent    string    `yaml:"subagent" doc:"the program that people with an assertion speak through, where claims.subagent is no attribute of it"`
}

// SPIFFE pins one trust domain.
type SPIFFE struct {
	TrustDomain string        `yaml:"trust_domain" doc:"as in spiffe://TRUST-DOMAIN/path"`
	Bundle      SecretRef     `yaml:"bundle" doc:"certificates that those of callers must lead to, PEM"`
	MaxLife     time.Duration `yaml:"max_life" doc:"longest life of a certificate, 168h at most; default 24h"`
	IDs         []SPIFFEID    `yaml:"ids" doc:"what the path of an id means; the first that matches does, and without any the caller is refused"`
}

// SPIFFEID maps paths onto principals.
type SPIFFEID struct {
	Path   string   `yaml:"path" doc:"such as /ns/{workflow}/sa/{subagent}: segments are themselves or {user}, {subagent}, {instance}, {workflow}, {job}"`
	Groups []string `yaml:"groups" doc:"the groups of whoever matches"`
}

// Claims names the claims that fill a principal.
type Claims struct {
	User     string `yaml:"user" doc:"the person acted for; default email"`
	Subagent string `yaml:"subagent" doc:"the program; default azp"`
	Instance string `yaml:"instance" doc:"the running copy of the program"`
	Workflow string `yaml:"workflow" doc:"the workflow"`
	Job      string `yaml:"job" doc:"the job in it"`
	Groups   string `yaml:"groups" doc:"group names; default groups"`
}

// Tokens is the gateway's own token service.
type Tokens struct {
	Issuer     string        `yaml:"issuer" doc:"https URL at which clients reach the gateway, without a path: the iss and aud of its tokens"`
	Keys       string        `yaml:"keys" doc:"folder of the signing keys, made on first start; share it among replicas; default keys beside the store's key"`
	Life       time.Duration `yaml:"life" doc:"how long a token lives, 1h at most; default 5m"`
	Depth      int           `yaml:"depth" doc:"how often a token may be handed on, 8 at most; default 4"`
	Rotate     time.Duration `yaml:"rotate" doc:"how old a signing key may get; default 720h"`
	Clients    []TokenClient `yaml:"clients" doc:"programs that sign an assertion; with any, every exchange needs one"`
	Introspect []string      `yaml:"introspect" doc:"values of the subagent claim of resource servers, which may ask about tokens"`
}

// A TokenClient authenticates with an assertion that it signs.
type TokenClient struct {
	ID   string    `yaml:"id" doc:"the iss and sub of its assertions"`
	Keys SecretRef `yaml:"keys" doc:"its public keys, a JWK set"`
}

// A Resource is one target.
type Resource struct {
	Name     string            `yaml:"name" doc:"how clients and policies name it"`
	Kind     access.Kind       `yaml:"kind" doc:"postgres, http, ssh or kubernetes"`
	Address  string            `yaml:"address" doc:"host:port, or a URL for http and kubernetes"`
	Labels   map[string]string `yaml:"labels" doc:"what policies may ask about it"`
	Postgres *Postgres         `yaml:"postgres" doc:"settings of a PostgreSQL target"`
	HTTP     *HTTP             `yaml:"http" doc:"settings of an HTTP target"`
	SSH      *SSH              `yaml:"ssh" doc:"settings of an SSH target"`

	Kubernetes *Kubernetes `yaml:"kubernetes" doc:"settings of a Kubernetes API server"`
}

// Access is the resource in the words of decisions.
func (r Resource) Access() access.Resource {
	return access.Resource{Name: r.Name, Kind: r.Kind, Labels: r.Labels}
}

// Postgres is how a PostgreSQL target is reached.
type Postgres struct {
	Database   string             `yaml:"database" doc:"database at the target; default the resource's name"`
	TLS        TargetTLS          `yaml:"tls" doc:"TLS to the target"`
	Credential PostgresCredential `yaml:"credential" doc:"the role that is injected"`
	Unwalled   bool               `yaml:"unwalled" doc:"accept a role that may read masked columns"`
	Settings   map[string]string  `yaml:"settings" doc:"settings of sessions, such as app.tenant, for row security to tell rows apart by: the attribute of the caller that each has (issuer, subject, user, subagent, instance, workflow, job, or groups as a JSON array)"`
	Functions  []string           `yaml:"functions" doc:"functions of this database known to change nothing: schema.name, or schema.name(integer, text) for one of several"`
}

// TargetTLS says how the target proves itself.
type TargetTLS struct {
	Mode string    `yaml:"mode" doc:"verify-full (default), or disable, for loopback only"`
	CA   SecretRef `yaml:"ca" doc:"certificates that the target's TLS must lead to; default the system's"`
}

// PostgresCredential is the role that the gateway logs in with.
type PostgresCredential struct {
	User        string    `yaml:"user" doc:"role name"`
	Password    SecretRef `yaml:"password" doc:"its password"`
	Certificate SecretRef `yaml:"certificate" doc:"client certificate in place of a password (PEM)"`
	Key         SecretRef `yaml:"key" doc:"key of the certificate (PEM)"`
	Profile     string    `yaml:"profile" doc:"role whose rights sessions have: user makes a role in it for each of them"`
}

// HTTP is how an HTTP target is reached.
type HTTP struct {
	CA         SecretRef      `yaml:"ca" doc:"certificates that the target's TLS must lead to; default the system's"`
	Credential HTTPCredential `yaml:"credential" doc:"the credential that is injected"`
}

// HTTPCredential is one header with a secret value.
type HTTPCredential struct {
	Header string    `yaml:"header" doc:"header name"`
	Value  SecretRef `yaml:"value" doc:"header value, whole: for a bearer token with the word Bearer"`
}

// SSH is how an SSH target is reached: as one of Users, with a certificate of
// the gateway's that lives two minutes.
type SSH struct {
	Users       []string `yaml:"users" doc:"accounts of the host that clients may ask for; policy decides among them"`
	HostKeys    []string `yaml:"host_keys" doc:"the host's public keys, each as in ssh-keyscan without the name: ssh-ed25519 AAAA…"`
	HostCAs     []string `yaml:"host_cas" doc:"authorities that certify the host's key for the host of address"`
	Environment []string `yaml:"environment" doc:"variables beside LANG, LC_* and GIT_PROTOCOL that clients may set, as far as the host takes them"`
}

// Approvals bounds waiting and names listeners.
type Approvals struct {
	Wait     time.Duration `yaml:"wait" doc:"how long a held client waits; default 5m"`
	Webhooks []Webhook     `yaml:"webhooks" doc:"told of every step of every approval"`
}

// A Webhook is one listener.
type Webhook struct {
	URL    string    `yaml:"url" doc:"where to POST"`
	Secret SecretRef `yaml:"secret" doc:"key of the signature"`
}

// Store says where shared state lives. Exactly one is set.
type Store struct {
	Embedded *Embedded `yaml:"embedded" doc:"a file, for one replica"`
	Redis    *Redis    `yaml:"redis" doc:"a Redis, for many"`
	Key      string    `yaml:"key" doc:"file with the key that authenticates entries, made on first start; share it among replicas; default store.key beside the embedded store, or in the sockets' parent"`
}

// Embedded is the store in one file.
type Embedded struct {
	Dir string `yaml:"dir" doc:"its folder"`
}

// Redis is the store in a Redis.
type Redis struct {
	URL SecretRef `yaml:"url" doc:"redis://user:password@host:port/database"`
}

// Recording says where evidence is written and how long it is kept.
type Recording struct {
	Dir       string        `yaml:"dir" doc:"its folder; default data/recordings"`
	Retention time.Duration `yaml:"retention" doc:"how long content is kept, for example 90d; default for ever"`
}

// Telemetry says where traces go and metrics are served.
type Telemetry struct {
	OTLP    OTLP   `yaml:"otlp" doc:"where traces are sent"`
	Metrics string `yaml:"metrics" doc:"host:port of the Prometheus endpoint; empty for none"`
	Log     string `yaml:"log" doc:"debug, info (default), warn or error"`
}

// OTLP is a trace collector that speaks gRPC.
type OTLP struct {
	Endpoint string `yaml:"endpoint" doc:"host:port; empty for none"`
	Insecure bool   `yaml:"insecure" doc:"no TLS, for a collector on loopback"`
}

// Load reads, validates and completes the file at path. The error is
// strictyaml.Faults when the file could be read: every fault at once.
func Load(path string) (*Config, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	c := &Config{}
	doc, faults := strictyaml.Decode(path, data, c)
	sum := sha256.Sum256(data)
	c.Dir, c.Digest = filepath.Dir(path), hex.EncodeToString(sum[:])
	if len(faults) == 0 {
		// Judging half a document would report faults that are only consequences.
		v := &validation{config: c, doc: doc}
		v.all()
		faults = v.faults
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// Schema is a JSON Schema of the file for editors.
func Schema() []byte {
	return strictyaml.JSONSchema("chaperone configuration", Config{})
}

// Files are the files that secret references name: certificates, keys and
// credentials. A change of one makes a new revision.
func (c *Config) Files() []string { return c.files }
