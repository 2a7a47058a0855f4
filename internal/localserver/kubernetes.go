package localserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Kubernetes is an API server with its etcd, on loopback. It has no nodes and
// no controllers: objects are stored, and nothing acts on them. It checks RBAC.
type Kubernetes struct {
	URL     string
	CA      []byte // PEM
	Admin   string // token of somebody who may do everything
	Gateway string // token of the account chaperone-gateway, which may do nothing yet
	Audit   string // file of the audit log: metadata of every request
	dir     string
	port    int
	store   string // URL of etcd
	etcd    *process
	api     *process
}

// PrepareKubernetes chooses a port and makes certificates and tokens in dir.
func PrepareKubernetes(dir string) (k *Kubernetes, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	k = &Kubernetes{dir: dir, Admin: rand.Text(), Gateway: rand.Text(), Audit: filepath.Join(dir, "audit.log")}
	if k.port, err = FreePort(); err != nil {
		return nil, err
	}
	k.URL = "https://" + loopback(k.port)
	files := map[string][]byte{
		"tokens":     []byte(k.Admin + ",admin,1,system:masters\n" + k.Gateway + ",chaperone-gateway,2\n"),
		"audit.yaml": []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n"),
	}
	if k.CA, files["server.key"], err = serverCertificate(); err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	files["server.crt"] = k.CA
	for name, content := range files {
		if err := os.WriteFile(k.path(name), content, 0o600); err != nil {
			return nil, fmt.Errorf("kubernetes: %w", err)
		}
	}
	return k, nil
}

func (k *Kubernetes) path(name string) string { return filepath.Join(k.dir, name) }

// serverCertificate is one for loopback that vouches for itself.
func serverCertificate() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), err
}

// ClientCertificate makes a certificate by which the API server knows its holder
// as name, and its key, both in PEM.
func (k *Kubernetes) ClientCertificate(name string) (cert, key []byte, err error) {
	pair, err := tls.LoadX509KeyPair(k.path("server.crt"), k.path("server.key"))
	if err != nil {
		return nil, nil, fmt.Errorf("kubernetes: %w", err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, pair.Leaf, &private.PublicKey, pair.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), err
}

// Start starts etcd and the API server.
func (k *Kubernetes) Start(ctx context.Context) error {
	etcd, etcdErr := Tool("etcd")
	api, apiErr := Tool("kube-apiserver")
	if err := errors.Join(etcdErr, apiErr); err != nil {
		return err
	}
	client, clientErr := FreePort()
	peer, peerErr := FreePort()
	err := errors.Join(clientErr, peerErr)
	if err != nil {
		return err
	}
	clients, peers := "http://"+loopback(client), "http://"+loopback(peer)
	k.store = clients
	k.etcd, err = start(exec.Command(etcd, "--data-dir", k.path("etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", clients, "--advertise-client-urls", clients, "--listen-peer-urls", peers,
		"--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers), k.path("etcd.log"))
	if err != nil {
		return err
	}
	if err := k.etcd.ready(ctx, dial(loopback(client))); err != nil {
		k.Close()
		return err
	}
	k.api, err = start(exec.Command(api, "--etcd-servers", clients, "--bind-address", "127.0.0.1", "--secure-port", fmt.Sprint(k.port),
		"--tls-cert-file", k.path("server.crt"), "--tls-private-key-file", k.path("server.key"), "--token-auth-file", k.path("tokens"), "--client-ca-file", k.path("server.crt"),
		"--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24", "--allow-privileged",
		"--service-account-issuer", k.URL, "--service-account-signing-key-file", k.path("server.key"), "--service-account-key-file", k.path("server.crt"),
		"--disable-admission-plugins", "ServiceAccount", // no controller makes any
		"--audit-policy-file", k.path("audit.yaml"), "--audit-log-path", k.Audit), k.path("apiserver.log"))
	if err == nil {
		err = k.api.ready(ctx, k.readyz)
	}
	if err != nil {
		k.Close()
	}
	return err
}

// A Seed is an object as the API server stores it: Key is behind /registry/, for
// example secrets/shop/db, Object JSON with a uid.
type Seed struct{ Key, Object string }

// seedTogether is how many objects etcd takes in one transaction.
const seedTogether = 100

// Seed stores objects behind the back of the API server, which would take many
// of them one by one and slowly, and reads them like its own. There is one at least.
func (k *Kubernetes) Seed(ctx context.Context, seeds []Seed) error {
	type put struct {
		Put struct {
			Key   []byte `json:"key"`
			Value []byte `json:"value"`
		} `json:"requestPut"`
	}
	// What one transaction wrote has one version, so whoever asks the API server
	// for it may get a part: the last object has a version of its own.
	batches := slices.Collect(slices.Chunk(seeds[:len(seeds)-1], seedTogether))
	for _, batch := range append(batches, seeds[len(seeds)-1:]) {
		puts := make([]put, len(batch))
		for i, s := range batch {
			puts[i].Put.Key, puts[i].Put.Value = []byte("/registry/"+s.Key), []byte(s.Object)
		}
		body, err := json.Marshal(map[string]any{"success": puts})
		if err != nil {
			return fmt.Errorf("kubernetes: seed: %w", err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.store+"/v3/kv/txn", bytes.NewReader(body))
		if err != nil {
			return fmt.Errorf("kubernetes: seed: %w", err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return fmt.Errorf("kubernetes: seed: %w", err)
		}
		said, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			return fmt.Errorf("kubernetes: seed: %s: %.300s: %w", res.Status, said, err)
		}
	}
	return nil
}

// Client trusts the API server.
func (k *Kubernetes) Client() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(k.CA)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}
}

func (k *Kubernetes) readyz(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.URL+"/readyz", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+k.Admin)
	res, err := k.Client().Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz: %s", res.Status)
	}
	return nil
}

// Kubeconfig writes a kubeconfig that leads straight to the API server with a
// token, and returns its path.
func (k *Kubernetes) Kubeconfig(name, token string) (string, error) {
	path, ca := k.path(name+".kubeconfig"), k.path("server.crt")
	text := strings.NewReplacer("URL", k.URL, "CA", ca, "TOKEN", token).Replace(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "URL", certificate-authority: "CA"}}]
users: [{name: u, user: {token: "TOKEN"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
`)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// Close stops what runs.
func (k *Kubernetes) Close() error {
	for _, p := range []*process{k.api, k.etcd} {
		if p != nil {
			p.stop(syscall.SIGTERM)
		}
	}
	return nil
}
