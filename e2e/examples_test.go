package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"chaperone.dev/chaperone/examples/demo"
)

// An example is what is read of the files in examples/agents.
type example struct {
	Permissions map[string]string
	Jobs        map[string]struct{ Steps []struct{ Run string } }
	Report      struct {
		IDTokens map[string]struct{ Aud string } `yaml:"id_tokens"`
		Script   []string
	}
	Spec struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Command      []string
					VolumeMounts []struct {
						MountPath string `yaml:"mountPath"`
					} `yaml:"volumeMounts"`
				}
				Volumes []struct {
					Projected struct {
						Sources []struct {
							Token struct{ Path, Audience string } `yaml:"serviceAccountToken"`
						}
					}
				}
			}
		}
	}
}

func readExample(t *testing.T, name string) (e example) {
	t.Helper()
	b, err := os.ReadFile("../examples/agents/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// TestExamples runs the command of each example against the gateway; only who
// vouches for the job is played by us.
func TestExamples(t *testing.T) {
	t.Parallel()
	s := site(t)
	ada := token(t, s, demo.Ada)
	github := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer of-the-job" || r.URL.Query().Get("audience") != "chaperone" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"value": ada})
	}))
	t.Cleanup(github.Close)
	file := filepath.Join(t.TempDir(), "chaperone")
	if err := os.WriteFile(file, []byte(ada), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, command string, env ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Dir = "../examples/agents"
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "XDG_CACHE_HOME="+t.TempDir(),
			"CHAPERONE_GATEWAY="+s.URL(), "CHAPERONE_CA="+filepath.Join(s.Dir, "ca.crt"))
		cmd.Env = append(cmd.Env, env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		return string(out)
	}
	reports := func(t *testing.T, out string) {
		t.Helper()
		if !strings.Contains(out, `"name"`) || strings.Contains(out, ada) {
			t.Errorf("it prints %s", out)
		}
	}
	t.Run("GitHub Actions", func(t *testing.T) {
		t.Parallel()
		e := readExample(t, "github-actions.yaml")
		steps := e.Jobs["report"].Steps
		if e.Permissions["id-token"] != "write" {
			t.Error("the job may not ask for a token")
		}
		reports(t, run(t, steps[len(steps)-1].Run, "ACTIONS_ID_TOKEN_REQUEST_URL="+github.URL+"/token?v=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=of-the-job"))
	})
	t.Run("GitLab", func(t *testing.T) {
		t.Parallel()
		e := readExample(t, "gitlab-ci.yaml").Report
		if e.IDTokens["CHAPERONE_TOKEN"].Aud != "chaperone" {
			t.Error("the job's token is for another audience")
		}
		reports(t, run(t, strings.Join(e.Script, "\n"), "CHAPERONE_TOKEN="+ada))
	})
	t.Run("Kubernetes", func(t *testing.T) {
		t.Parallel()
		pod := readExample(t, "kubernetes-job.yaml").Spec.Template.Spec
		projected := pod.Volumes[0].Projected.Sources[0].Token
		if at := pod.Containers[0].VolumeMounts[0].MountPath + "/" + projected.Path; at != "/var/run/secrets/tokens/chaperone" || projected.Audience != "chaperone" {
			t.Errorf("the token is at %s, for %s", at, projected.Audience)
		}
		// The file stands elsewhere on this machine.
		reports(t, run(t, strings.Join(pod.Containers[0].Command, " "), "CHAPERONE_TOKEN_FILE="+file))
	})
	t.Run("an LLM agent", func(t *testing.T) {
		t.Parallel()
		b, err := os.ReadFile("../examples/agents/agent.sh")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, ok := strings.Cut(string(b), "#   chaperone exec")
		command, _, _ := strings.Cut(rest, "\n")
		if !ok {
			t.Fatal("agent.sh does not say how it is started")
		}
		out := run(t, "chaperone exec"+command, "CHAPERONE_TOKEN="+ada)
		reports(t, out)
		if !strings.Contains(out, "delegation/hop-1") || !strings.Contains(out, `"through":[{"actor":"agent"`) {
			t.Errorf("the agent is not told its bounds: %s", out)
		}
	})
}
