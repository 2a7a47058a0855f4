package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"chaperone.dev/chaperone/internal/access"
)

// maxSecretBytes bounds a file that a reference names.
const maxSecretBytes = 1 << 20

// A SecretRef names where a secret stands, {file: path} or {env: NAME}, never
// the secret itself. After Load, Secret returns what was found there.
type SecretRef struct {
	File string
	Env  string

	secret access.Secret
}

// Set reports whether the reference was given at all.
func (r SecretRef) Set() bool { return r.File != "" || r.Env != "" }

// Secret returns the value that Load read; it is empty when Set is false.
func (r SecretRef) Secret() access.Secret { return r.secret }

// Bytes returns the value as bytes; nil when there is none.
func (r SecretRef) Bytes() []byte {
	if r.secret.Empty() {
		return nil
	}
	return []byte(r.secret.Reveal())
}

// DecodeNode reads {file: path} or {env: NAME}. Its errors never repeat a
// value: somebody may have put the secret itself there.
func (r *SecretRef) DecodeNode(n *yaml.Node) error {
	const want = "write {file: path} or {env: NAME}; a secret itself never stands in this file"
	if n.Kind != yaml.MappingNode || len(n.Content) != 2 {
		return errors.New(want)
	}
	key, value := n.Content[0], n.Content[1]
	if value.Kind != yaml.ScalarNode || value.Tag != "!!str" || value.Value == "" {
		return errors.New(want)
	}
	switch key.Value {
	case "file":
		r.File = value.Value
	case "env":
		r.Env = value.Value
	default:
		return errors.New(want)
	}
	return nil
}

// JSONSchema describes the two forms to editors.
func (SecretRef) JSONSchema() map[string]any {
	form := func(key string) map[string]any {
		return map[string]any{"type": "object", "additionalProperties": false, "required": []string{key},
			"properties": map[string]any{key: map[string]any{"type": "string", "minLength": 1}}}
	}
	return map[string]any{"oneOf": []any{form("file"), form("env")}}
}

// read fetches the value; dir is what a relative file is relative to. One
// newline at the end of a file is not part of the secret.
func (r *SecretRef) read(dir string) error {
	if r.Env != "" {
		value, ok := os.LookupEnv(r.Env)
		if !ok || value == "" {
			return fmt.Errorf("the environment variable %s is not set", r.Env)
		}
		r.secret = access.NewSecret(value)
		return nil
	}
	if r.File == "" {
		return nil
	}
	if !filepath.IsAbs(r.File) {
		r.File = filepath.Join(dir, r.File)
	}
	info, err := os.Stat(r.File)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", r.File)
	case info.Size() > maxSecretBytes:
		return fmt.Errorf("%s is larger than %d bytes", r.File, maxSecretBytes)
	}
	b, err := os.ReadFile(r.File)
	if err != nil {
		return err
	}
	value := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if value == "" {
		return fmt.Errorf("%s is empty", r.File)
	}
	r.secret = access.NewSecret(value)
	return nil
}
