package envoy

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// script writes an executable that prints what it is told as its version.
func script(t *testing.T, dir, version string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "envoy")
	text := "#!/bin/sh\necho '" + version + "'\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

const printed = "\nenvoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n"

func TestFind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bin := script(t, filepath.Join(dir, "chosen"), printed)
	onPath := script(t, filepath.Join(dir, "path"), printed)
	inTools := script(t, filepath.Join(dir, "tools", "bin"), printed)
	other := script(t, filepath.Join(dir, "other"), "envoy, a messenger")
	old := script(t, filepath.Join(dir, "old"), strings.Replace(printed, "1.40.0", "1.31.2", 1))
	empty := filepath.Join(dir, "empty")
	for _, c := range []struct {
		name string
		env  map[string]string
		want string
		err  string
		warn string
	}{
		{"ENVOY_BIN before PATH", map[string]string{"ENVOY_BIN": bin, "PATH": filepath.Dir(onPath)}, bin, "", ""},
		{"PATH before the tools", map[string]string{"PATH": empty + ":" + filepath.Dir(onPath)}, onPath, "", ""},
		{"the tools last", map[string]string{"PATH": empty}, inTools, "", ""},
		{"a broken ENVOY_BIN is not passed over", map[string]string{"ENVOY_BIN": filepath.Join(empty, "envoy"), "PATH": filepath.Dir(onPath)}, "", "ENVOY_BIN", ""},
		{"an ENVOY_BIN that is not Envoy", map[string]string{"ENVOY_BIN": other}, "", "not an Envoy version", ""},
		{"another program of that name on PATH", map[string]string{"PATH": filepath.Dir(other) + ":" + filepath.Dir(onPath)}, onPath, "", "passing over"},
		{"an untested version", map[string]string{"ENVOY_BIN": old}, old, "", "1.31.2"},
		{"nothing anywhere", map[string]string{"PATH": "", "CHAPERONE_TOOLS": empty}, "", "tools/install", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			env := map[string]string{"CHAPERONE_TOOLS": filepath.Join(dir, "tools")}
			for k, v := range c.env {
				env[k] = v
			}
			var log bytes.Buffer
			b, err := Find(t.Context(), Options{Env: func(k string) string { return env[k] }, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, %v", b, err)
				}
				return
			}
			if err != nil || b.Path != c.want || b.Tested() != (c.warn != "1.31.2") {
				t.Fatalf("got %+v, %v", b, err)
			}
			if !strings.Contains(log.String(), c.warn) || c.warn == "" && log.Len() > 0 {
				t.Errorf("logged %q", log.String())
			}
		})
	}
	if _, err := Find(t.Context(), Options{Env: func(string) string { return "" }, ToolsDir: empty}); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestToolsDir(t *testing.T) {
	t.Parallel()
	if got := ToolsDir(func(k string) string { return map[string]string{"CHAPERONE_TOOLS": "/t"}[k] }); got != "/t" {
		t.Errorf("got %s", got)
	}
	if got := ToolsDir(func(k string) string { return map[string]string{"HOME": "/home/ann"}[k] }); os.Geteuid() != 0 && got != "/home/ann/.cache/chaperone/tools" {
		t.Errorf("got %s", got)
	}
}
