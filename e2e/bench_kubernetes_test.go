package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

const (
	benchPods   = 5000
	benchEvents = 1000 // a second
	benchFor    = 5 * time.Second
	benchList   = 50 << 20 // bytes
)

// BenchmarkKubernetes measures what the gateway adds to kubectl get pods -A of
// 5,000 pods, to watch events at 1,000 a second, and how much memory it needs
// for a list of 50 MB of Secrets, each beside the same straight at the cluster.
func BenchmarkKubernetes(b *testing.B) {
	s := newKubernetesBench(b)
	b.Run("get-pods", s.getPods)
	b.Run("watch", s.watch)
	b.Run("list", s.list)
}

type kubernetesBench struct {
	site            *demo.Site
	token           string
	direct, through kubectl
}

func newKubernetesBench(b *testing.B) *kubernetesBench {
	b.Helper()
	if err := prepareCluster(); err != nil { // forgetCluster stops it
		b.Fatal(err)
	}
	cluster := prepared.cluster
	if err := cluster.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	seeds := make([]localserver.Seed, benchPods)
	for i := range seeds {
		seeds[i] = benchPod(i)
	}
	if err := cluster.Seed(b.Context(), seeds); err != nil {
		b.Fatal(err)
	}
	s := &kubernetesBench{}
	var err error
	if s.site, err = start(b.Context(), demo.Options{Config: withCluster}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		s.site.Close()
		os.RemoveAll(s.site.Dir)
	})
	if s.token, err = s.site.Dex.Token(b.Context(), demo.Alan); err != nil {
		b.Fatal(err)
	}
	home := b.TempDir()
	account, accountErr := account()
	admin, adminErr := cluster.Kubeconfig("admin", cluster.Admin)
	s.direct = kubectl{config: admin, home: home}
	if accountErr != nil || adminErr != nil {
		b.Fatal(accountErr, adminErr)
	}
	if _, err := s.direct.run(b.Context(), asAdmin+account, "apply", "-f", "-"); err != nil {
		b.Fatal(err)
	}
	s.through = kubectl{config: filepath.Join(home, "through.kubeconfig"), home: filepath.Join(home, "through")}
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]\nusers: [{name: u, user: {token: %q}}]\n"+
		"contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n", s.site.URL()+"/k8s/cluster", filepath.Join(s.site.Dir, "ca.crt"), s.token)
	if err := os.WriteFile(s.through.config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return s
}

// benchPod is a pod as they are: with what its controller and its node wrote.
func benchPod(i int) localserver.Seed {
	name, namespace := fmt.Sprintf("web-7d9c6b5f4-%05d", i), fmt.Sprintf("team-%02d", i%20)
	container := `{"name":"%[1]s","image":"registry.internal/%[1]s:1.2.3","ports":[{"containerPort":8080}],"env":[{"name":"A","value":"plain"},{"name":"B","value":"other"}],` +
		`"resources":{"limits":{"memory":"256Mi"},"requests":{"cpu":"100m","memory":"128Mi"}},"readinessProbe":{"httpGet":{"path":"/ready","port":8080}},"terminationMessagePath":"/dev/termination-log","imagePullPolicy":"IfNotPresent"}`
	return localserver.Seed{Key: "pods/" + namespace + "/" + name, Object: fmt.Sprintf(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":%q,"namespace":%q,`+
		`"uid":"00000000-0000-4000-8000-0000001%05d","creationTimestamp":"2026-01-02T03:04:05Z","labels":{"app":"web","pod-template-hash":"7d9c6b5f4","team":%[2]q},`+
		`"annotations":{"note":"%[4]s"}},"spec":{"nodeName":"node-%[3]d","containers":[%[5]s,%[6]s],"restartPolicy":"Always","serviceAccountName":"default"},"status":{"phase":"Running","podIP":"10.0.%[7]d.%[8]d",`+
		`"containerStatuses":[{"name":"web","ready":true,"restartCount":1,"image":"web","imageID":"sha256:0","state":{"running":{"startedAt":"2026-01-02T03:04:06Z"}}}]}}`,
		name, namespace, i, strings.Repeat("what a controller keeps ", 40), fmt.Sprintf(container, "web"), fmt.Sprintf(container, "proxy"), i/250, i%250)}
}

// getPods runs kubectl straight and through in turn, and reports the ratio of
// the medians.
func (s *kubernetesBench) getPods(b *testing.B) {
	took := map[string][]float64{}
	var used []float64 // by the gateway
	var size int
	for i := 0; i < max(b.N, 5); i++ {
		for name, k := range map[string]kubectl{"direct": s.direct, "through": s.through} {
			before := s.pids(b).read(b)
			began := time.Now()
			out, err := k.run(b.Context(), "", "get", "pods", "-A")
			if err != nil || strings.Count(out, "\n") != benchPods+1 {
				b.Fatalf("%s: %d lines: %v", name, strings.Count(out, "\n"), err)
			}
			took[name] = append(took[name], time.Since(began).Seconds()*1000)
			if size = len(out); name == "through" {
				used = append(used, s.pids(b).read(b).minus(before).total().Seconds()*1000)
			}
		}
	}
	direct, through := median(took["direct"]), median(took["through"])
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(direct, "direct-ms")
	b.ReportMetric(through, "through-ms")
	b.ReportMetric(through/direct, "ratio")
	b.ReportMetric(median(used), "gateway-cpu-ms")
	if size == 0 {
		b.Error("kubectl prints nothing")
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func (s *kubernetesBench) pids(b *testing.B) (p pids) {
	b.Helper()
	var err error
	if p.envoy, err = s.site.Gateway.PID("envoy"); err != nil {
		b.Fatal(err)
	}
	if p.serve, err = s.site.Gateway.PID("serve"); err != nil {
		b.Fatal(err)
	}
	return p
}

// watch sends events at a steady rate, each with the time at which it was
// sent, and reports how much later they come through the gateway than straight.
func (s *kubernetesBench) watch(b *testing.B) {
	straight := s.delays(b, prepared.liar.server.Client(), prepared.liar.server.URL)
	client, err := s.site.Client()
	if err != nil {
		b.Fatal(err)
	}
	before := s.pids(b).read(b)
	through := s.delays(b, client, s.site.URL()+"/k8s/liar")
	used := s.pids(b).read(b).minus(before).total()
	b.ReportMetric(0, "ns/op")
	for _, p := range []int{50, 99} {
		b.ReportMetric(percentile(straight, p), fmt.Sprintf("direct-p%d-ms", p))
		b.ReportMetric(percentile(through, p), fmt.Sprintf("through-p%d-ms", p))
	}
	b.ReportMetric(percentile(through, 99)-percentile(straight, 99), "added-p99-ms")
	b.ReportMetric(float64(used.Microseconds())/float64(len(through)), "gateway-cpu-µs/event")
}

func percentile(sorted []float64, p int) float64 { return sorted[len(sorted)*p/100] }

var sentAt = regexp.MustCompile(`"sent":"([0-9]+)"`)

// delays watches Secrets and returns how long each event was under way, in
// milliseconds and order.
func (s *kubernetesBench) delays(b *testing.B, client *http.Client, url string) (delays []float64) {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url+"/api/v1/namespaces/shop/secrets?watch=true&how=events", nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	res, err := client.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		sent := sentAt.FindSubmatch(lines.Bytes())
		if sent == nil {
			b.Fatalf("an event is %s", lines.Bytes())
		}
		at, err := strconv.ParseInt(string(sent[1]), 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		delays = append(delays, float64(time.Now().UnixNano()-at)/1e6)
	}
	if want := int(benchFor.Seconds()) * benchEvents; lines.Err() != nil || len(delays) != want {
		b.Fatalf("%d events of %d: %v", len(delays), want, lines.Err())
	}
	slices.Sort(delays)
	return delays
}

// events is a watch at a steady rate: what is late is sent at once.
func events(ctx context.Context, w http.ResponseWriter) {
	flush := http.NewResponseController(w)
	tick := time.NewTicker(time.Second / benchEvents)
	defer tick.Stop()
	began := time.Now()
	for i := 0; i < int(benchFor.Seconds())*benchEvents; {
		due := int(time.Since(began).Seconds() * benchEvents)
		for ; i < due && i < int(benchFor.Seconds())*benchEvents; i++ {
			_, _ = fmt.Fprintf(w, `{"type":"MODIFIED","object":{"kind":"Secret","metadata":{"name":"s-%d","labels":{"sent":"%d"}},"data":{"p":"%s"}}}`+"\n", i, time.Now().UnixNano(), stolen)
		}
		_ = flush.Flush()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// bigList is a list of Secrets of that many bytes.
func bigList(w io.Writer) {
	out := bufio.NewWriterSize(w, 64<<10)
	item, _ := json.Marshal(map[string]any{"kind": "Secret", "type": "Opaque", "metadata": map[string]any{"name": "s"}, "data": map[string]any{"p": strings.Repeat("aHVudGVyMg", 500)}})
	_, _ = out.WriteString(`{"kind":"SecretList","items":[`)
	for n := 0; n < benchList; n += len(item) {
		if n > 0 {
			_ = out.WriteByte(',')
		}
		_, _ = out.Write(item)
	}
	_, _ = out.WriteString("]}")
	_ = out.Flush()
}

// list reads a list of 50 MB and reports how much more memory the gateway had
// at its peak than before, and its throughput beside that of the API server.
func (s *kubernetesBench) list(b *testing.B) {
	client, err := s.site.Client()
	if err != nil {
		b.Fatal(err)
	}
	read := func(client *http.Client, url string) time.Duration {
		began := time.Now()
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url+"/api/v1/namespaces/shop/secrets?how=list", nil)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.token)
		res, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		if n, err := io.Copy(io.Discard, res.Body); err != nil || n < benchList/100 { // masks are short
			b.Fatalf("%d bytes: %v", n, err)
		}
		return time.Since(began)
	}
	through := s.site.URL() + "/k8s/liar"
	read(client, through) // what the first needs, all later ones have
	p := s.pids(b)
	for name, pid := range map[string]int{"serve": p.serve, "envoy": p.envoy} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil { // the peak is forgotten
			b.Fatal(err)
		}
		before := memory(b, pid, "VmRSS")
		took := read(client, through)
		b.ReportMetric(float64(memory(b, pid, "VmHWM")-before)/1024, name+"-grew-MB")
		b.ReportMetric(float64(memory(b, pid, "VmHWM"))/1024, name+"-peak-MB")
		b.ReportMetric(benchList/took.Seconds()/1e6, "through-MB/s")
	}
	b.ReportMetric(benchList/read(prepared.liar.server.Client(), prepared.liar.server.URL).Seconds()/1e6, "direct-MB/s")
	b.ReportMetric(0, "ns/op")
}

// memory is a line of /proc/PID/status, in KiB.
func memory(b *testing.B, pid int, name string) int {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		b.Fatalf("no %s in %s", name, status)
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}
