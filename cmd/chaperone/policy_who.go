package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
)

// principalFlags say who asks: by name, or by a token.
type principalFlags struct {
	access.Principal
	file, token string
}

func (p *principalFlags) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&p.file, "principal", "", "file with the principal as JSON, as recorded")
	f.StringVar(&p.token, "principal-token", "", "file with the principal's token")
	for name, to := range p.texts() {
		f.StringVar(to, name, "", "the principal's "+name)
	}
	f.StringArrayVar(&p.Groups, "group", nil, "a group of the principal's; may be repeated")
	c.MarkFlagsMutuallyExclusive("principal", "principal-token")
}

func (p *principalFlags) texts() map[string]*string {
	return map[string]*string{"issuer": &p.Issuer, "subject": &p.Subject, "user": &p.User, "subagent": &p.Subagent,
		"instance": &p.Instance, "workflow": &p.Workflow, "job": &p.Job}
}

// change replaces the principal by that of a file or token, and then what the
// other flags name.
func (p *principalFlags) change(ctx context.Context, cfg *config.Config, to *access.Principal) (notes []string, err error) {
	switch {
	case p.token != "":
		if *to, notes, err = principalOf(ctx, cfg, p.token); err != nil {
			return nil, err
		}
	case p.file != "":
		b, err := os.ReadFile(p.file)
		if err != nil {
			return nil, fmt.Errorf("principal: %w", err)
		}
		*to = access.Principal{}
		if err := json.Unmarshal(b, to); err != nil {
			return nil, fmt.Errorf("principal: %s: %w", p.file, err)
		}
	}
	target := principalFlags{Principal: *to}
	for name, given := range p.texts() {
		if *given != "" {
			*target.texts()[name] = *given
		}
	}
	*to = target.Principal
	if p.Groups != nil {
		to.Groups = p.Groups
	}
	return notes, nil
}

// principalOf reads the token in a file: verified when there is a configuration.
func principalOf(ctx context.Context, cfg *config.Config, file string) (access.Principal, []string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return access.Principal{}, nil, fmt.Errorf("principal: %w", err)
	}
	token := access.NewSecret(strings.TrimSpace(string(b)))
	if cfg == nil {
		p, err := claimedPrincipal(token)
		return p, []string{"the token was NOT verified (no --config): these are claims that anybody can write"}, err
	}
	v, err := newVerifier(cfg, slog.New(slog.DiscardHandler), nil, nil, nil)
	if err != nil {
		return access.Principal{}, nil, err
	}
	defer v.Close()
	p, err := v.Verify(ctx, token)
	if err != nil {
		return access.Principal{}, nil, fmt.Errorf("principal: %w", err)
	}
	return p, []string{"the token was verified as issued by " + p.Issuer}, nil
}

// claimedPrincipal takes a token's claims at their word, by the names that they
// have unless a configuration says otherwise.
func claimedPrincipal(token access.Secret) (access.Principal, error) {
	bad := errors.New("principal: this is not a JSON web token")
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return access.Principal{}, bad
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return access.Principal{}, bad
	}
	var claims struct {
		Issuer   string   `json:"iss"`
		Subject  string   `json:"sub"`
		Email    string   `json:"email"`
		Party    string   `json:"azp"`
		Workflow string   `json:"workflow"`
		Groups   []string `json:"groups"`
	}
	if json.Unmarshal(b, &claims) != nil {
		return access.Principal{}, bad
	}
	return access.Principal{Issuer: claims.Issuer, Subject: claims.Subject, User: claims.Email, Subagent: claims.Party,
		Workflow: claims.Workflow, Groups: claims.Groups}, nil
}

// loadedConfig reads a configuration, nil when no file is named.
func loadedConfig(file string) (*config.Config, error) {
	if file == "" {
		return nil, nil
	}
	return config.Load(file)
}
